# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

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
