# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for numpy's arrays and types in untrusted pickles: they keep the bytes of the file and make no array."""
from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

_TYPE = re.compile(r"b1|[iu][1248]|f[248]|O[48]?|S[0-9]{1,9}")


class TypeStandIn:
    """A stand-in for ``numpy.dtype``: whole, real and truth values, bytes of one length, Python's objects."""

    def __init__(self, name: str | bytes, *_: object):
        self.name = name.decode("latin1") if isinstance(name, bytes) else str(name)
        self.order = "<"
        if not _TYPE.fullmatch(self.name):
            raise ValueError(f"it has numpy values of type {self.name[:20]!r}")
        self.width = int(self.name[1:] or 8)

    def __setstate__(self, state: Any) -> None:
        """Keep the byte order; fields, which such types do not have, are ignored."""
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else "<"
        self.order = ">" if order in (">", b">") else "<"


class ArrayStandIn:
    """A stand-in for a numpy array."""

    def __init__(self, shape: tuple[int, ...] = (0,), dtype: TypeStandIn | None = None, data: Any = b""):
        self.shape, self.dtype, self.data, self.by_columns = shape, dtype, data, False
        if dtype is not None:
            self.__setstate__((1, shape, dtype, False, data))

    def __setstate__(self, state: tuple[int, tuple[int, ...], TypeStandIn, bool, Any]) -> None:
        _, self.shape, self.dtype, self.by_columns, self.data = state
        good = isinstance(self.dtype, TypeStandIn) and len(self.shape) <= 4 and all(
            type(side) is int and side >= 0 for side in self.shape)
        if good and self.dtype is not None:
            count = math.prod(self.shape)
            good = (isinstance(self.data, list) and len(self.data) == count) if self.dtype.name[0] == "O" else (
                isinstance(self.data, (bytes, bytearray)) and len(self.data) == count * self.dtype.width)
        if not good:
            size = f" of {len(self.data)}" if isinstance(self.data, (bytes, bytearray, list)) else ""
            raise ValueError(f"it has a numpy array of shape {self.shape} with {type(self.data).__name__}{size}")

    @property
    def is_bytes(self) -> bool:
        """True for an array of uint8: the bytes of an encoded image."""
        return self.dtype is not None and self.dtype.name == "u1"

    def values(self) -> list[Any]:
        """The elements, in order, as Python's values."""
        if self.dtype is None:
            return []
        if self.dtype.name[0] == "O":
            return list(self.data)
        if self.dtype.name[0] == "S":
            width = self.dtype.width
            return [bytes(self.data[low : low + width]).rstrip(b"\0") for low in range(0, len(self.data), width or 1)]
        return np.frombuffer(self.data, self.dtype.order + self.dtype.name).tolist()

    def rows(self) -> list[Any]:
        """The elements along the first axis: of an array of uint8 of two dimensions the bytes of each row."""
        if self.is_bytes and len(self.shape) == 2 and not self.by_columns:
            side = self.shape[1]
            return [bytes(self.data[low : low + side]) for low in range(0, len(self.data), side or 1)]
        return self.values()
