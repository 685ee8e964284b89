# SPDX-License-Identifier: Apache-2.0
"""Whole numbers in text: a single one, or files of columns, read in pieces: pair lists of IJB have 16 million lines."""
from __future__ import annotations

import codecs
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from recognition.errors import UserError
from recognition.io.files import reading

_CHUNK_BYTES = 1 << 24
_MOST_DIGITS = 18  # always fit int64; Python itself refuses 4301
_ALLOWED = np.isin(np.arange(256), list(b"0123456789-+ \t\r\n"))


def whole_number(text: str) -> int | None:
    """A number from the decimal digits in an untrusted file; None for anything else, and for more than 18 digits."""
    return int(text) if text.isdecimal() and len(text) <= _MOST_DIGITS else None


def read_whole_numbers(path: Path, columns: int, what: str) -> np.ndarray:
    """Read lines of ``columns`` whole numbers with spaces or tabs: int64 ``(lines, columns)``.

    :param what: a description of a line, for messages
    :raises UserError: with its number, at the first malformed line.
    """
    parts, line = [], 1
    for chunk in _chunks(path):
        numbers = _parse(chunk, columns)
        if numbers is None:
            raise _line_error(path, chunk, columns, line, what)
        parts.append(numbers)
        line += len(numbers)
    if not parts:
        raise UserError(f"{path}: found no lines, expected {what}")
    return np.concatenate(parts)


def _chunks(path: Path) -> Iterator[bytes]:
    """Yield the file in pieces of whole lines, without empty lines at its end."""
    with reading(path), open(path, "rb") as file:
        file.seek(3 if file.read(3) == codecs.BOM_UTF8 else 0)
        while chunk := file.read(_CHUNK_BYTES):
            chunk += file.readline()
            if not chunk.endswith(b"\n"):
                chunk += b"\n"
            if chunk.strip() or file.peek(1):
                yield chunk.rstrip() + b"\n" if not file.peek(1) else chunk


def _parse(chunk: bytes, columns: int) -> np.ndarray | None:
    """The numbers of whole lines, int64 (lines, columns); None if a line is malformed."""
    letters = np.frombuffer(chunk, np.uint8)
    if not _ALLOWED[letters].all():
        return None
    ends = np.flatnonzero(letters == 10)
    blank = (letters == 32) | (letters == 9) | (letters == 13) | (letters == 10)
    starts = np.flatnonzero(~blank & np.concatenate([[True], blank[:-1]]))
    if len(starts) != columns * len(ends):
        return None
    of_line = starts.reshape(-1, columns)
    if (of_line[:, -1] >= ends).any() or (of_line[1:, 0] <= ends[:-1]).any():
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # NumPy stops at a wrong number: the count below differs
        try:
            numbers = np.fromstring(chunk, np.int64, sep=" ")  # type: ignore[call-overload]
        except ValueError:
            return None
    return numbers.reshape(-1, columns) if len(numbers) == len(starts) else None


def _line_error(path: Path, chunk: bytes, columns: int, first_line: int, what: str) -> UserError:
    """The error about the first malformed line of a piece that begins at ``first_line``."""
    for number, text in enumerate(chunk.split(b"\n"), first_line):
        if _parse(text + b"\n", columns) is None:
            return UserError(f"{path}: line {number}: found {text[:60].decode('utf-8', 'replace')!r}, expected {what}")
    return UserError(f"{path}: lines from {first_line} on cannot be read, expected {what}")
