# SPDX-License-Identifier: Apache-2.0
"""The parser of the flags of every command."""
from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from recognition.errors import UserError


def british(word: str) -> str:
    """A flag or a key with "centre" in the place of "center": the documented spelling."""
    return word.replace("center", "centre")


class Parser(argparse.ArgumentParser):
    """A parser that reports bad flags as a :class:`UserError`, like any other bad input, and that accepts flags with
    "centre" under their other spelling, too. A description keeps its lines."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, **options})

    def parse_known_args(self, args: Sequence[str] | None = None,  # type: ignore[override]
                         namespace: Any = None) -> tuple[argparse.Namespace, list[str]]:
        words = [re.sub(r"^--[a-z-]+", self._spelt, word) for word in (sys.argv[1:] if args is None else args)]
        return super().parse_known_args(words, namespace)

    def _spelt(self, flag: re.Match[str]) -> str:
        """The flag in the documented spelling if this parser has it: a command that is passed on stays as it is."""
        spelt = british(flag[0])
        return spelt if any(option.startswith(spelt) for option in self._option_string_actions) else flag[0]

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help lists the flags")

    def add_overwrite(self) -> None:
        """Add the flag ``--overwrite``, which each command has that writes files of a name that the user gives."""
        self.add_argument("--overwrite", action="store_true", help="replace files that are there already")


def check_ranges(flags: argparse.Namespace, **ranges: float | tuple[float, float]) -> None:
    """Refuse numbers of flags that were given, ``--name``, below the least or above the most.

    :param ranges: ``name=least`` or ``name=(least, most)``.
    :raises UserError: if one is out of its range.
    """
    for name, bounds in ranges.items():
        value, (least, most) = getattr(flags, name), bounds if isinstance(bounds, tuple) else (bounds, math.inf)
        if value is not None and not least <= value <= most:
            raise UserError(f"--{name.replace('_', '-')}: found {value}, expected "
                            + (f"at least {least}" if most == math.inf else f"{least} to {most}"))
