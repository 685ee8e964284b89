# SPDX-License-Identifier: Apache-2.0
"""MXNet's files of arrays (``.params``, ``.param``), read and written without MXNet. Values are read when used.

The format, little endian: u64 0x112, u64 0, u64 count, the arrays, u64 count of names (0 for a list), each u64 length
and bytes. An array: u32 magic, i32 storage type, i32 dimensions, i64 each, i32 device type, i32 device number, i32
element type, values. Files of MXNet before 0.12 have no storage type, those before 0.10 u32 dimensions and no magic.
"""
from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from recognition.errors import UserError
from recognition.io.checksums import HashedFile, check_sum, forget_sum, write_sum
from recognition.io.files import replacing
from recognition.io.stored_array import OpenFile, Rows, StoredArray

Arrays = dict[str, np.ndarray]  # by the names of a checkpoint
_LIST_MAGIC = 0x112
_V1, _V2, _V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
_DTYPES = {0: np.float32, 1: np.float64, 2: np.float16, 3: np.uint8, 4: np.int32, 5: np.int8, 6: np.int64, 7: np.bool_}
_MOST_DIMENSIONS = 32
_MOST_ARRAYS = 1 << 17  # of a file. r200 has 2,000
_VALUES_AT_ONCE = 1 << 22  # converted and written in one call: 16 MB

Pieces = Sequence[Rows]  # one array cut along its first axis


class ParamsFile(NamedTuple):
    """The arrays of a file, read when they are used. ``names`` is empty if they were saved as a list."""

    arrays: list[StoredArray]
    names: list[str]


def read_arrays(path: Path) -> ParamsFile:
    """Open the arrays of a file. Their values are read when they are used.

    :raises UserError: if it is no such file, is cut short, holds sparse arrays or elements that NumPy lacks, or does
        not match the checksum beside it.
    """
    check_sum(path)
    try:
        reader = _Reader(OpenFile(path))
        magic, _, count = reader.take("QQQ")
        if magic != _LIST_MAGIC:
            raise ValueError("it does not begin as one")
        if count > _MOST_ARRAYS:
            raise ValueError(f"it has {count} arrays, expected at most {_MOST_ARRAYS}")
        arrays = [reader.array() for _ in range(count)]
        (count,) = reader.take("Q")
        if count not in (0, len(arrays)):
            raise ValueError(f"{len(arrays)} arrays and {count} names")
        names = [reader.text() for _ in range(count)]
        if len(set(names)) < len(names):
            raise ValueError(f"two arrays have the name {Counter(names).most_common(1)[0][0]!r}")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path}: not a file of MXNet's arrays that can be read: {reason}") from None
    return ParamsFile(arrays, names)


class _Reader:
    def __init__(self, file: OpenFile) -> None:
        self._file, self._place = file, 0

    def take(self, form: str) -> tuple[Any, ...]:
        return struct.unpack(f"<{form}", self._bytes(struct.calcsize(f"<{form}")))

    def text(self) -> str:
        return self._bytes(*self.take("Q")).decode()

    def array(self) -> StoredArray:
        shape = self._shape()
        if shape is None:  # an array that was never filled
            return StoredArray(self._file, 0, (0,), np.dtype(np.float32))
        _, _, kind = self.take("iii")
        if kind not in _DTYPES:
            raise ValueError(f"an array has elements of MXNet's type {kind}")
        dtype = np.dtype(_DTYPES[kind]).newbyteorder("<")
        return StoredArray(self._file, self._skip(math.prod(shape) * dtype.itemsize), shape, dtype)

    def _bytes(self, count: int) -> bytes:
        return self._file.read(self._skip(count), count).tobytes()

    def _skip(self, count: int) -> int:
        """Go on by ``count`` bytes; returns the offset at which they begin."""
        if count > self._file.size - self._place:
            raise ValueError(f"it ends at byte {self._file.size}, where {count} more are expected")
        self._place += count
        return self._place - count

    def _shape(self) -> tuple[int, ...] | None:
        (magic,) = self.take("I")
        if magic in (_V2, _V3):
            (storage,) = self.take("i")
            if storage > 0:
                raise ValueError("an array is sparse")
        dimensions = self.take("i")[0] if magic in (_V1, _V2, _V3) else magic
        if dimensions > _MOST_DIMENSIONS:
            raise ValueError(f"an array has {dimensions} dimensions")
        if dimensions < 0 or (dimensions == 0 and magic != _V3):
            return None
        shape = self.take(f"{dimensions}{'q' if magic in (_V1, _V2, _V3) else 'I'}")
        if min(shape, default=0) < 0:
            raise ValueError(f"an array has the shape {shape}")
        return shape


def write_arrays(path: Path, arrays: Mapping[str, Pieces] | Sequence[Pieces]) -> None:
    """Write arrays by name, or a list of them, for ``mx.nd.load``: float32, dense.

    Each array comes in pieces, which are joined while they are written: an array larger than memory can be copied.
    The file's checksum is written beside it.
    """
    names = list(arrays) if isinstance(arrays, Mapping) else []
    values = list(arrays.values()) if isinstance(arrays, Mapping) else list(arrays)
    with replacing(path) as temporary:
        with HashedFile(temporary) as file:
            _write(file, names, values)
        forget_sum(path)
    write_sum(path, file.sum)


def _write(file: HashedFile, names: Sequence[str], values: Sequence[Pieces]) -> None:
    file.write(struct.pack("<QQQ", _LIST_MAGIC, 0, len(values)))
    for pieces in values:
        shape = (sum(len(piece) for piece in pieces), *pieces[0].shape[1:])
        file.write(struct.pack(f"<IiI{len(shape)}qiii", _V2, 0, len(shape), *shape, 1, 0, 0))
        for piece in pieces:
            rows = max(1, _VALUES_AT_ONCE // max(1, math.prod(piece.shape[1:])))
            for low in range(0, len(piece), rows):
                file.write(np.ascontiguousarray(piece[low : low + rows], "<f4").data)
    file.write(struct.pack("<Q", len(names)))
    for name in names:
        file.write(struct.pack("<Q", len(name.encode())) + name.encode())
