# SPDX-License-Identifier: Apache-2.0
"""Arrays in files, which may be larger than memory: rows are read when they are used.

They are read by plain reads, not mapped: SIGBUS kills a process that reads a mapped file which somebody cut short.
"""
from __future__ import annotations

import math
import os
import tokenize
import weakref
from pathlib import Path
from typing import Any, Union, overload

import numpy as np

from recognition.errors import UserError
from recognition.io.files import regular

_MOST_ROWS_PER_WANTED_ROW = 4  # rows that lie so close together are read in one go with those between them
_ROWS_AT_ONCE = 1 << 10  # wanted rows, so that those between them take little memory
_MOST_DIMENSIONS = 32
_MOST_BYTES = 1 << 62


class OpenFile:
    """A file that stays open as long as anything refers to it. ``size``: its bytes when it was opened."""

    def __init__(self, path: Path) -> None:
        """:raises OSError: if it cannot be opened."""
        self.path, self._handle = path, regular(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._handle)
        self.size = os.fstat(self._handle).st_size

    def read(self, place: int, count: int) -> np.ndarray:
        """Read ``count`` bytes from offset ``place`` on: uint8 (count,).

        :raises UserError: if the file ends before that, or cannot be read.
        """
        data, done = np.empty(count, np.uint8), 0
        while done < count:
            try:
                got = os.preadv(self._handle, [data[done:].data], place + done)
            except OSError as error:
                raise UserError(f"{self.path}: cannot be read: {error.strerror}") from error
            if not got:
                raise UserError(f"{self.path}: it was cut short while it was used: it ends at byte "
                                f"{os.fstat(self._handle).st_size}, expected at least {place + count}")
            done += got
        return data


class StoredArray:
    """An array in a file, C-contiguous. A slice of its rows is another such array; ``np.asarray`` and other functions
    of NumPy read it; an index, int64 (n,), reads those rows."""

    def __init__(self, file: OpenFile, place: int, shape: tuple[int, ...], dtype: np.dtype) -> None:
        """:param place: offset of the first value, in bytes.
        :raises ValueError: if the shape is too large for NumPy, which also limits shapes with a side of 0."""
        if math.prod(max(1, length) for length in shape) * dtype.itemsize >= _MOST_BYTES:
            raise ValueError(f"an array has the shape {str(shape)[:60]}")
        self._file, self._place, self.shape, self.dtype = file, place, shape, dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        count = math.prod(self.shape) * self.dtype.itemsize
        values = self._file.read(self._place, count).view(self.dtype).reshape(self.shape)
        return values if dtype is None else values.astype(dtype, copy=False)

    @overload
    def __getitem__(self, key: slice) -> StoredArray: ...

    @overload
    def __getitem__(self, key: np.ndarray) -> np.ndarray: ...

    def __getitem__(self, key: slice | np.ndarray) -> StoredArray | np.ndarray:
        if not isinstance(key, slice):
            return self._read_rows(key)
        low, high, step = key.indices(len(self))
        if step != 1:
            raise IndexError(f"rows in steps of {step}, expected a range")
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        return StoredArray(self._file, self._place + low * row, (max(high - low, 0), *self.shape[1:]), self.dtype)

    def _read_rows(self, rows: np.ndarray) -> np.ndarray:
        """Read the rows numbered ``rows``, int64 (n,).

        :raises IndexError: if a number is negative or beyond the last row.
        """
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {len(self)}")
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        for at in range(0, len(rows), _ROWS_AT_ONCE):
            part, into = rows[at : at + _ROWS_AT_ONCE], found[at : at + _ROWS_AT_ONCE]
            low, high = int(part.min()), int(part.max()) + 1
            if high - low <= _MOST_ROWS_PER_WANTED_ROW * len(part):
                into[:] = np.asarray(self[low:high])[part - low]
            else:
                for i, row in enumerate(part.tolist()):
                    into[i] = self[row : row + 1]
        return found


Rows = Union[np.ndarray, StoredArray]  # an array in memory or in a file


def open_npy(path: Path) -> StoredArray:
    """Open the array of an ``.npy`` file of :func:`recognition.io.checksums.write_npy` or ``np.save``.

    :raises ValueError: with what was found, if it is no such file.
    :raises OSError: if the file cannot be opened.
    """
    with open(path, "rb", opener=regular) as header:
        if (version := np.lib.format.read_magic(header)) != (1, 0):
            raise ValueError(f"version {version} of the format, expected 1.0")
        try:
            shape, in_columns, dtype = np.lib.format.read_array_header_1_0(header)
        except (SyntaxError, TypeError, KeyError, RecursionError, MemoryError, tokenize.TokenError) as error:
            raise ValueError(f"a header that cannot be read: {error}") from error
        place = header.tell()
    file = OpenFile(path)
    if dtype.hasobject or dtype.itemsize == 0 or in_columns or not 0 < len(shape) <= _MOST_DIMENSIONS or any(
            type(side) is not int or side < 0 for side in shape):
        raise ValueError(f"an array of {str(dtype)[:40]} {str(shape)[:60]}, expected rows of numbers")
    if file.size - place != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"found {file.size - place} bytes for {str(dtype)[:40]} {str(shape)[:60]}")
    return StoredArray(file, place, shape, dtype)
