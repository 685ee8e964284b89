# SPDX-License-Identifier: Apache-2.0
"""The parser of every command's flags."""
from __future__ import annotations

import argparse
from typing import NoReturn

from recognition.errors import UserError


class Parser(argparse.ArgumentParser):
    """Reports bad flags as a :class:`UserError`, like any other bad input."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help lists the flags")

    def add_overwrite(self) -> None:
        """Add the flag ``--overwrite``, which each command has that writes files of a name that the user gives."""
        self.add_argument("--overwrite", action="store_true", help="replace files that are there already")
