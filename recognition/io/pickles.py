# SPDX-License-Identifier: Apache-2.0
"""Parts of the restricted unpicklers for untrusted files. Each unpickler adds its own list of names that it builds."""
from __future__ import annotations

import pickletools
from typing import Any, BinaryIO, Callable

_MOST_BITS = 53  # of a number: a Python dictionary takes hours over keys that are multiples of 2 ** 61 - 1
_STORE = frozenset(("PUT", "BINPUT", "LONG_BINPUT"))


def check_opcodes(data: bytes | BinaryIO, allowed: frozenset[str]) -> None:
    """Refuse opcodes that are not ``allowed``, memo numbers that would make the memo huge, and long numbers.

    :raises ValueError: with what was found, as the end of a sentence that begins with the file's name.
    """
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if opcode.name not in allowed:
            raise ValueError(f"it has the opcode {opcode.name}")
        if opcode.name in _STORE and int(argument or 0) > count:
            raise ValueError(f"it stores memo {argument} after {count} opcodes")
        if opcode.name == "LONG1" and isinstance(argument, int) and argument.bit_length() > _MOST_BITS:
            raise ValueError(f"it has a number of {argument.bit_length()} bits")


class StandIn:
    """A callable in the place of a function or class that a pickle names. It has no attribute that BUILD could set."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]):
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: object) -> None:
        raise ValueError("it sets the state of a function")
