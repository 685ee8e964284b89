# SPDX-License-Identifier: Apache-2.0
"""One row of the table of options: default, kind of value, meaning, and the commands that have a flag for it."""
from __future__ import annotations

from dataclasses import field
from typing import Any

from recognition.config import types

ENTRIES = PARALL, _ = ("train_parall", "train")
PARALL_ONLY = (PARALL,)


def option(default: Any, option_type: types.OptionType, help: str, flag: tuple[str, ...] = ()) -> Any:
    """A field of a group; ``flag``: the commands that have a flag of its name."""
    return field(default=default, metadata={"type": option_type, "help": help, "flag": flag})
