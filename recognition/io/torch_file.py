# SPDX-License-Identifier: Apache-2.0
"""PyTorch's files of tensors (``.pth``, ``.pt``), read and written without PyTorch, and without running their code.

Since PyTorch 1.6 such a file is a zip archive, not compressed: ``<folder>/data.pkl`` is a pickle of what was saved, in
which a tensor is a call of ``torch._utils._rebuild_tensor_v2`` on a storage, and a storage is a persistent id
``("storage", torch.FloatStorage, key, device, count)`` whose values lie in ``<folder>/data/<key>``, little endian.
"""
from __future__ import annotations

import io
import math
import os
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from recognition.errors import UserError
from recognition.io.files import replacing
from recognition.io.pickles import load_restricted

NESTED = ("state_dict_backbone", "state_dict", "model_state_dict", "model", "backbone")
MOST_PICKLE_BYTES = 64 << 20  # of data.pkl, which has some hundred bytes a tensor
_STORAGES = {"FloatStorage": "<f4", "HalfStorage": "<f2", "DoubleStorage": "<f8", "BFloat16Storage": "bfloat16",
             "LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "i1",
             "ByteStorage": "u1", "BoolStorage": "?"}
_SMALL = 1 << 30  # bytes: larger members have sizes of 64 bits
_EXPECTED = "expected a .pth of named tensors (a state_dict) that PyTorch 1.6 or newer wrote"
_OPCODES = frozenset((
    "PROTO", "FRAME", "STOP", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "BINPERSID", "MARK", "NONE", "NEWTRUE",
    "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "EMPTY_TUPLE",
    "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS",
    "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET",
))


def read_object(path: Path) -> Any:
    """Read what was saved: tensors as arrays (those of bfloat16 as float32), in dictionaries, lists, tuples and
    numbers.

    :raises UserError: if the file is no such archive, names anything but tensors, or is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _Reader(archive).content()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except zipfile.BadZipFile:
        raise UserError(f"{path}: not a zip archive; {_EXPECTED}: torch.load and torch.save of a newer PyTorch convert "
                        "older ones") from None
    except Exception as error:  # a broken pickle fails in any way, within the bounds of what was checked
        raise UserError(f"{path}: {' '.join(str(error).split())[:200] or type(error).__name__}; {_EXPECTED}") from error


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a ``state_dict`` by name.

    If the dictionary holds another under one of NESTED, as training checkpoints do, that one is read.

    :raises UserError: as :func:`read_object`, and if there is something else in it.
    """
    content = read_object(path)
    for key in NESTED:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path}: found {type(content).__name__}; {_EXPECTED}")
    for name, value in content.items():
        if not (isinstance(name, str) and isinstance(value, np.ndarray)):
            raise UserError(f"{path}: {str(name)[:60]!r} is no tensor; {_EXPECTED}")
    return content


class _Reader:
    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError(f"found {len(pickles)} members data.pkl, expected one")
        self._folder = pickles[0][: -len("data.pkl")]
        self._storages: dict[str, np.ndarray] = {}
        # What members say of themselves is no more than the file: they might lie on each other.
        self._left = os.fstat(archive.fp.fileno()).st_size  # type: ignore[union-attr]

    def member(self, name: str) -> bytes:
        info = self._archive.getinfo(self._folder + name)
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{name} is compressed, which PyTorch's files are not")
        self._left -= info.file_size
        if self._left < 0:
            raise ValueError("it unfolds to more than its own size")
        return self._archive.read(info)

    def content(self) -> Any:
        names = self._archive.namelist()
        if self._folder + "byteorder" in names and self.member("byteorder") != b"little":
            raise ValueError("it was written on a big-endian machine")
        if self._archive.getinfo(self._folder + "data.pkl").file_size > MOST_PICKLE_BYTES:
            raise ValueError(f"data.pkl is larger than {MOST_PICKLE_BYTES >> 20} MB")
        return load_restricted(io.BytesIO(self.member("data.pkl")), _OPCODES, _KNOWN, self.storage)

    def storage(self, pid: Any) -> np.ndarray:
        """The values of ``data/<key>``; read once."""
        kind, dtype, key, _, count = pid
        if kind != "storage" or dtype not in _STORAGES.values() or not isinstance(key, str):
            raise ValueError(f"it has a persistent id {str(pid)[:60]!r}")
        if key not in self._storages:
            data = self.member(f"data/{key}")
            if dtype == "bfloat16":  # the upper half of a float32
                values = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
            else:
                values = np.frombuffer(data, dtype)
            if len(values) != count:
                raise ValueError(f"data/{key} holds {len(values)} values, expected {count}")
            self._storages[key] = values
        return self._storages[key]


class _Dict(dict):
    """Stands for ``OrderedDict``; ignores the attribute ``_metadata`` that PyTorch gives it."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        pass


def _tensor(storage: np.ndarray, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> np.ndarray:
    """A view of a storage; its elements are contiguous in some order of axes, as those of parameters are."""
    count = math.prod(size)
    if not isinstance(storage, np.ndarray) or len(size) != len(stride) or min((*size, *stride, offset), default=0) < 0:
        raise ValueError(f"it has a tensor of size {size} and stride {stride}")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride)) if count else offset
    if last >= len(storage) + (count == 0) or count > len(storage):
        raise ValueError(f"it has a tensor of size {size} and stride {stride} in {len(storage)} values")
    width = storage.itemsize
    return np.lib.stride_tricks.as_strided(storage[offset:], size, [step * width for step in stride], writeable=False)


_ORDERED = b"ccollections\nOrderedDict\n)R"  # an empty one
_KNOWN: dict[str, Any] = {
    "collections.OrderedDict": lambda: _Dict(),
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    **{f"torch.{name}": dtype for name, dtype in _STORAGES.items()},
}


def write_object(path: Path, content: Any) -> None:
    """Write what :func:`read_object` reads, with arrays of float32 and of integers, as ``torch.save`` does: for
    ``torch.load`` of any version, ``weights_only`` or not."""
    writer = _Writer()
    text = b"\x80\x02" + writer.pickled(content) + b"."
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        folder = path.stem
        archive.writestr(f"{folder}/data.pkl", text)
        archive.writestr(f"{folder}/byteorder", "little")
        for key, value in enumerate(writer.arrays):
            with archive.open(f"{folder}/data/{key}", "w", force_zip64=value.nbytes > _SMALL) as member:
                member.write(np.ascontiguousarray(value, _stored(value)[1]).reshape(-1).view(np.uint8).data)
        archive.writestr(f"{folder}/version", "3\n")


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a ``state_dict`` of float32 and int64 arrays."""
    write_object(path, OrderedDict(tensors))


def _stored(value: np.ndarray) -> tuple[str, str]:
    return ("LongStorage", "<i8") if value.dtype.kind in "iu" else ("FloatStorage", "<f4")


class _Writer:
    """A writer of pickles of protocol 2, by hand: they name PyTorch's functions, and PyTorch need not be installed.
    ``arrays`` are the tensors that it has met, by their numbers."""

    def __init__(self) -> None:
        self.arrays: list[np.ndarray] = []

    def pickled(self, value: Any) -> bytes:
        """The opcodes that put ``value`` on the stack."""
        if value is None or isinstance(value, bool):
            return {None: b"N", True: b"\x88", False: b"\x89"}[value]
        if isinstance(value, np.ndarray):
            return self._tensor(value)
        if isinstance(value, Mapping):
            items = b"".join(self.pickled(part) for item in value.items() for part in item)
            return (_ORDERED if isinstance(value, OrderedDict) else b"}") + b"(" + items + b"u"
        if isinstance(value, (list, tuple)):
            items = b"".join(map(self.pickled, value))
            return b"](" + items + b"e" if isinstance(value, list) else b"(" + items + b"t"
        if isinstance(value, str):
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        if isinstance(value, float):
            return b"G" + struct.pack(">d", value)
        small = -(1 << 31) <= value < 1 << 31
        return b"J" + struct.pack("<i", value) if small else b"\x8a\x08" + struct.pack("<q", value)

    def _tensor(self, value: np.ndarray) -> bytes:
        strides = [step // value.itemsize for step in np.empty(value.shape, value.dtype).strides]
        key, kind = str(len(self.arrays)), f"ctorch\n{_stored(value)[0]}\n".encode()
        self.arrays.append(value)
        storage = b"".join((b"(", self.pickled("storage"), kind, self.pickled(key), self.pickled("cpu"),
                            self.pickled(value.size), b"tQ"))
        return b"".join((b"ctorch._utils\n_rebuild_tensor_v2\n(", storage, self.pickled(0),
                         self.pickled(tuple(value.shape)), self.pickled(tuple(strides)), b"\x89", _ORDERED, b"tR"))
