# SPDX-License-Identifier: Apache-2.0
"""Restricted reading of untrusted pickles: only names that the caller lists are built, by the caller's functions."""
from __future__ import annotations

import pickle
import pickletools
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, Callable

_MOST_BITS = 53  # of a number: a Python dictionary takes hours over keys that are multiples of 2 ** 61 - 1
_CODES = {opcode.code.encode("latin1"): opcode for opcode in pickletools.opcodes}
_FREE_MEMOS = 1 << 12  # beyond one an opcode
_MOST_DIGITS = 32
_NUMBERS_IN_TEXT = frozenset(("INT", "LONG", "FLOAT"))
_STORE = frozenset(("PUT", "BINPUT", "LONG_BINPUT"))


def load_restricted(file: BinaryIO, opcodes: frozenset[str], known: Mapping[str, Any],
                    persistent: Callable[[Any], Any] | None = None) -> Any:
    """Load the object of the pickle in ``file``; text of Python 2 becomes bytes.

    :param opcodes: the allowed opcodes.
    :param known: replacements, by ``module.name``, for the functions and classes that the pickle names.
    :param persistent: gives the object of a persistent id; an opcode for them has to be allowed.
    :raises Exception: of any type. The text of our ValueErrors is the end of a sentence that begins with the file.
    """
    _check_opcodes(file, opcodes)
    file.seek(0)
    return _Unpickler(file, known, persistent).load()


def _check_opcodes(file: BinaryIO, allowed: frozenset[str]) -> None:
    """Refuse opcodes that are not ``allowed``, memo numbers that would make the memo huge, and long numbers.

    :raises ValueError: with what was found, as the end of a sentence that begins with the file's name.
    """
    for count, (opcode, argument) in enumerate(_opcodes(file)):
        if opcode.name not in allowed:
            raise ValueError(f"it has the opcode {opcode.name}")
        if opcode.name in _STORE and int(argument or 0) > count + _FREE_MEMOS:
            raise ValueError(f"it stores memo {argument} after {count} opcodes")
        if opcode.name in ("INT", "LONG", "LONG1") and isinstance(argument, int) and argument.bit_length() > _MOST_BITS:
            raise ValueError(f"it has a number of {argument.bit_length()} bits")


def _opcodes(file: BinaryIO) -> Iterator[tuple[pickletools.OpcodeInfo, Any]]:
    """Yield opcodes and arguments up to the end of the pickle, like ``pickletools.genops``, which refuses texts of
    Python 2 that are not ASCII, as its protocol 0 has them, and reads numbers of any length.

    :raises ValueError: if there is no such opcode, or no end
    """
    while True:
        code = file.read(1)
        opcode = _CODES.get(code)
        if opcode is None:
            raise ValueError(f"it has the byte {code!r}, which is no opcode" if code else "it ends before its end")
        argument = None
        if opcode.name == "STRING":
            argument = file.readline()  # the unpickler reads what is in it
        elif opcode.name in _NUMBERS_IN_TEXT:
            place = file.tell()
            if not file.readline(_MOST_DIGITS).endswith(b"\n"):
                raise ValueError("it has a number of many digits")
            file.seek(place)
        if opcode.arg is not None and argument is None:
            argument = opcode.arg.reader(file)
        yield opcode, argument
        if opcode.name == "STOP":
            return


class _Unpickler(pickle.Unpickler):
    """An unpickler that builds only what ``known`` names."""

    def __init__(self, file: BinaryIO, known: Mapping[str, Any], persistent: Callable[[Any], Any] | None) -> None:
        super().__init__(file, encoding="bytes")
        self._known, self._persistent = known, persistent

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full not in self._known:
            raise ValueError(f"it asks for {full}, which was not run")
        found = self._known[full]
        return _StandIn(found) if callable(found) else found

    def persistent_load(self, pid: Any) -> Any:
        if self._persistent is None:
            raise ValueError(f"it has a persistent id {str(pid)[:60]!r}")
        return self._persistent(pid)


class _StandIn:
    """A callable in the place of a function or class that a pickle names. It has no attribute that BUILD could set."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]):
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: object) -> None:
        raise ValueError("it sets the state of a function")
