# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import argparse

import pytest

from recognition.config.command_line import Parser
from recognition.errors import UserError


@pytest.mark.parametrize("arguments, found", [
    (["--size", "x"], "argument --size: invalid int value: 'x'"), (["--sise"], "unrecognized arguments: --sise")])
def test_bad_flags_are_user_errors_of_one_line(arguments: list[str], found: str) -> None:
    parser = Parser(prog="python -m room")
    parser.add_argument("--size", type=int)
    with pytest.raises(UserError) as error:
        parser.parse_args(arguments)
    assert str(error.value) == f"{found}; python -m room --help lists the flags"


def test_both_spellings_of_centre_are_accepted() -> None:
    """A command that is passed on keeps its words."""
    parser = Parser()
    parser.add_argument("--sub-centres", type=int)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    for flag in "--sub-centres", "--sub-centers":
        assert vars(parser.parse_args([f"{flag}=3", "python", "--center"])) == {
            "sub_centres": 3, "command": ["python", "--center"]}
    assert parser.parse_args(["--sub-centers", "4"]).sub_centres == 4
