# SPDX-License-Identifier: Apache-2.0
"""The index ``.idx`` beside a ``.rec``: a line ``key<TAB>offset`` for each record."""
from __future__ import annotations

import codecs
import contextlib
import os
import re
from pathlib import Path
from typing import Union

import numpy as np

from recognition.errors import UserError
from recognition.io.files import reading, regular

PathLike = Union[str, Path]
_BYTES_AT_ONCE = 1 << 24  # read and parsed in one go
_INDEX_LINE = re.compile(rb"[0-9]{1,18}\t[0-9]{1,18}")


def read_index(path: PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Keys and offsets of a ``.idx`` file, both int64 ``(N,)``, in the file's order.

    :raises UserError: if the file cannot be read, a line is malformed or a key is there twice.
    """
    keys, offsets, again = read_index_lines(path)
    if again.size:
        raise UserError(repeated_key(path, keys, again[0]))
    return keys, offsets


def require_fitting(path: PathLike, record_bytes: int) -> None:
    """Refuse an index that is too large for its record file of ``record_bytes``: a record has at least 32 bytes, its
    line at most 38.

    :raises UserError: if so.
    """
    with contextlib.suppress(OSError):  # the reader reports it
        size = os.stat(path).st_size
        if size > 2 * record_bytes + _BYTES_AT_ONCE:
            raise UserError(f"{path}: found {size} bytes, which no index of a file of {record_bytes} has")


def repeated_key(path: PathLike, keys: np.ndarray, place: int) -> str:
    """The message about line ``place`` (from 0), whose key an earlier line has, too."""
    return f"{path}: line {place + 1}: key {keys[place]} stands there a second time"


def read_index_lines(path: PathLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keys and offsets of a ``.idx`` file, both int64 ``(N,)``, in the file's order; and the numbers, rising, of the
    lines (from 0) whose key an earlier line has.

    Blocks are parsed without a Python object for each line: files of 42 million lines are in use.

    :raises UserError: if the file cannot be read or a line is malformed.
    """
    blocks = [np.empty((0, 2), np.int64)]
    lines = 0
    with reading(path), open(path, "rb", opener=regular) as file:
        rest = b""
        file.seek(3 if file.read(3) == codecs.BOM_UTF8 else 0)
        while True:
            data = file.read(_BYTES_AT_ONCE)
            text, newline, rest = (rest + data).rpartition(b"\n") if data else (rest, b"", b"")
            if text or newline:
                blocks.append(_parse_index(path, text.replace(b"\r", b"") + b"\n", lines))
                lines += len(blocks[-1])
            if not data:
                break
    keys, offsets = np.concatenate(blocks).T.copy()
    order = np.argsort(keys, kind="stable")
    again = order[1:][keys[order[1:]] == keys[order[:-1]]]
    return keys, offsets, np.sort(again)


def _parse_index(path: PathLike, text: bytes, lines_before: int) -> np.ndarray:
    """Check the form of whole index lines byte by byte and parse them: int64 ``(lines, 2)``."""
    symbols = np.frombuffer(text, np.uint8)
    separators = np.flatnonzero((symbols < ord("0")) | (symbols > ord("9")))
    found = symbols[separators]
    gaps = np.diff(separators, prepend=-1) - 1  # digits before each separator; 18 fit an int64
    fits = found.size % 2 == 0 and (found[0::2] == ord("\t")).all() and (found[1::2] == ord("\n")).all()
    if fits and gaps.min() > 0 and gaps.max() <= 18:
        return np.fromstring(text, np.int64, sep=" ").reshape(-1, 2)
    for number, line in enumerate(text.split(b"\n")[:-1], lines_before + 1):
        if not _INDEX_LINE.fullmatch(line):
            shown = line[:60].decode("ascii", "backslashreplace")
            raise UserError(f"{path}: line {number}: found {shown!r}, expected 'key<TAB>offset'")
    raise AssertionError("unreachable: some line was malformed")
