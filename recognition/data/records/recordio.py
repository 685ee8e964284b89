# SPDX-License-Identifier: Apache-2.0
"""RecordIO files as MXNet writes them: the framing and the header of an image record. ``record_index`` reads the
``.idx`` beside a ``.rec``.

A record has one part, or several if its payload holds the magic word at a multiple of four bytes::

    part:    uint32 magic 0xced7230a | uint32 cflag << 29 | length | length bytes | zeros up to a multiple of 4
    cflag:   0 whole record, 1 first part, 2 middle part, 3 last part; the magic word stands between parts
    payload: uint32 flag | float32 label | uint64 id | uint64 id2 | flag x float32 labels | body

All little-endian. An index line is ``key<TAB>offset``.
"""
from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Callable, NamedTuple

import numpy as np

from recognition.data.records.record_index import PathLike as PathLike
from recognition.data.records.record_index import read_index as read_index
from recognition.errors import UserError
from recognition.io.files import regular

MAGIC = 0xCED7230A
MAX_LENGTH = (1 << 29) - 1
MAX_PARTS = 1 << 16  # of a record; no honest record holds the magic word more often
_MAGIC_BYTES = struct.pack("<I", MAGIC)
_PART = struct.Struct("<II")
_HEADER = struct.Struct("<IfQQ")
_LABEL = struct.Struct("<f")
_FIRST_READ_BYTES = 16384  # one system call for most records: a 112 x 112 JPEG has 3 to 12 KB
_SCAN_READ_BYTES = 1 << 20


class Record(NamedTuple):
    """An unpacked payload: ``label`` is float32 ``(1,)`` for flag 0 and ``(flag,)`` otherwise."""

    flag: int
    label: np.ndarray
    id: int
    body: bytes


def pack_record(label: float | Sequence[float] | np.ndarray, body: bytes = b"", id: int = 0) -> bytes:
    """The payload of ``label`` and ``body``. The flag is 0 for a number, and its length for a sequence.

    The format holds labels as float32: whole numbers above 2**24 are rounded to a multiple of 2, 4, ...
    """
    if np.ndim(label) == 0:
        return _HEADER.pack(0, float(label), id, 0) + body  # type: ignore[arg-type]
    vector = np.asarray(label, dtype="<f4")
    return _HEADER.pack(vector.size, 0.0, id, 0) + vector.tobytes() + body


def unpack_record(payload: bytes) -> Record:
    """Undo :func:`pack_record`.

    :raises ValueError: if the payload is too short for its header or its labels.
    """
    if len(payload) < _HEADER.size:
        raise ValueError(f"record of {len(payload)} bytes, an image record has a header of {_HEADER.size}")
    flag, label, id_, _ = _HEADER.unpack_from(payload)
    end = _HEADER.size + 4 * flag
    if end > len(payload):
        raise ValueError(f"record says {flag} labels and has only {len(payload) - _HEADER.size} bytes after its header")
    labels = np.frombuffer(payload, "<f4", flag, _HEADER.size) if flag else np.array([label], np.float32)
    return Record(flag, labels, id_, payload[end:])


def first_label_and_body(payload: bytes) -> tuple[float, bytes]:
    """The first label and the body of a payload: :func:`unpack_record` without an array, in a third of its time.

    :raises ValueError: as :func:`unpack_record` does.
    """
    if len(payload) < _HEADER.size:
        unpack_record(payload)  # raises
    flag, label, _, _ = _HEADER.unpack_from(payload)
    end = _HEADER.size + 4 * flag
    if end > len(payload):
        unpack_record(payload)
    if flag:
        (label,) = _LABEL.unpack_from(payload, _HEADER.size)
    return label, payload[end:]


class RecordReader:
    """Random and sequential access to the records of one file. Every method may be called from any thread."""

    def __init__(self, path: PathLike):
        self.path = Path(path)
        try:
            self._file = open(self.path, "rb", buffering=0, opener=regular)  # noqa: SIM115
        except OSError as error:
            raise UserError(f"{self.path}: cannot be opened: {error.strerror}") from error
        self._opened = os.fstat(self._file.fileno())
        self.size = self._opened.st_size

    def read(self, offset: int) -> bytes:
        """The payload of the record that starts at byte ``offset``.

        :raises UserError: if its framing is damaged or the file cannot be read.
        """
        window = self._pread(_FIRST_READ_BYTES, offset) if offset >= 0 else b""
        if len(window) >= _PART.size:  # the usual record has one part, which the first read holds
            magic, length = _PART.unpack_from(window)
            if magic == MAGIC and _after(_PART.size, length) <= len(window):
                return window[_PART.size:_PART.size + length]
        return self._parse(offset, window, offset)[0]

    def peek(self, offset: int, length: int) -> bytes:
        """The first ``length`` bytes of the payload at ``offset``, fewer if it is shorter."""
        window = self._pread(_PART.size + length, offset) if offset >= 0 else b""
        payload_offset, part_length = next(self._parts(offset, window, offset))
        if part_length < length:  # the payload is short, or a magic word cuts it
            return self.read(offset)[:length]
        return self._bytes(payload_offset, length, window, offset)

    def raw(self, offset: int, length: int) -> bytes:
        """``length`` bytes of the file, framing included; fewer at its end."""
        return os.pread(self._file.fileno(), length, offset)

    def scan(self) -> Iterator[tuple[int, bytes]]:
        """``(offset, payload)`` of every record in file order."""
        offset, start, window = 0, 0, b""
        while offset < self.size:
            if offset + _FIRST_READ_BYTES > start + len(window):
                start, window = offset, self._pread(_SCAN_READ_BYTES, offset)
            payload, after = self._parse(offset, window, start)
            yield offset, payload
            offset = after

    def offsets(self, on_damage: Callable[[UserError], object] | None = None) -> np.ndarray:
        """The offset of each record, int64 ``(N,)``, in file order. Reads the framing only.

        :param on_damage: called with the error where the framing is damaged. The search then goes on at the next offset
            with a sound record: one that another record, or the end of the file, follows.
        :raises UserError: where the framing is damaged, without ``on_damage``.
        """
        found = array("q")
        offset = 0
        while offset < self.size:
            try:
                after = self.end(offset)
                if on_damage is not None and not self._is_sound(offset) and self._next_record(offset + 4) < after:
                    raise self._error(offset, f"a record up to {after}, within which another stands")
                found.append(offset)
            except UserError as error:
                if on_damage is None:
                    raise
                on_damage(error)
                after = self._next_record(offset + 4)
            offset = after
        return np.frombuffer(found, np.int64)

    def require_unchanged(self) -> None:
        """Compare size and time of the open file with those at its opening. A file renamed over this one does not
        matter: we keep reading the open descriptor.

        :raises UserError: if the file has been written to since it was opened.
        """
        now = os.fstat(self._file.fileno())
        if (now.st_size, now.st_mtime_ns) != (self._opened.st_size, self._opened.st_mtime_ns):
            raise UserError(f"{self.path}: written to while it is read: {self._opened.st_size} bytes when it was "
                            f"opened, {now.st_size} now, expected a file that stays as it is")

    def end(self, offset: int) -> int:
        """The offset at which the record at ``offset`` ends: the next record's, or the file's size."""
        *_, (payload_offset, length) = self._parts(offset, b"", offset)
        return _after(payload_offset, length)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> RecordReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _parse(self, offset: int, window: bytes, start: int) -> tuple[bytes, int]:
        """The payload at ``offset`` and the offset after it. ``window`` holds the file's bytes from ``start`` on."""
        pieces = []
        for payload_offset, length in self._parts(offset, window, start):
            pieces.append(self._bytes(payload_offset, length, window, start))
        return _MAGIC_BYTES.join(pieces), _after(payload_offset, length)

    def _parts(self, offset: int, window: bytes, start: int) -> Iterator[tuple[int, int]]:
        """Offset and length of the payload of each part of the record at ``offset``.

        :raises UserError: if the framing is damaged, or a part reaches beyond the file's end.
        """
        cflag, expected, count = None, (0, 1), 0
        while cflag not in (0, 3):
            count += 1
            if count > MAX_PARTS:
                raise self._error(offset, f"a record of more than {MAX_PARTS} parts")
            magic, word = _PART.unpack(self._bytes(offset, _PART.size, window, start))
            if magic != MAGIC:
                raise self._error(offset, f"found 0x{magic:08x}, expected the record magic 0x{MAGIC:08x}")
            cflag, length = word >> 29, word & MAX_LENGTH
            if cflag not in expected:
                raise self._error(offset, f"part of kind {cflag}, expected {expected[0]} or {expected[1]}")
            expected = (2, 3)
            after = _after(offset + _PART.size, length)
            if after > self.size:
                raise self._error(offset, f"a part of {length} bytes, the file ends at {self.size}")
            yield offset + _PART.size, length
            offset = after

    def _bytes(self, offset: int, length: int, window: bytes, start: int) -> bytes:
        """``length`` bytes of the file from ``offset``, out of ``window`` if it holds them.

        :raises UserError: if the file ends before that.
        """
        local = offset - start
        if local + length <= len(window):
            return window[local:local + length]
        if offset < 0 or offset + length > self.size:
            raise self._error(offset, f"{length} bytes expected, the file ends at {self.size}")
        data = self._pread(length, offset)
        if len(data) != length:
            raise self._error(offset, f"{length} bytes expected, {len(data)} read: the file has changed")
        return data

    def _next_record(self, start: int) -> int:
        """The first offset from ``start`` on, a multiple of four, with a sound record; the file's size if there is
        none."""
        place = start + (-start & 3)
        while place < self.size:
            window = self._pread(_SCAN_READ_BYTES, place)
            at = window.find(_MAGIC_BYTES)
            while at >= 0:
                if at % 4 == 0 and self._is_sound(place + at):
                    return place + at
                at = window.find(_MAGIC_BYTES, at + 1)
            place += _SCAN_READ_BYTES
        return self.size

    def _is_sound(self, offset: int) -> bool:
        """True if a whole record begins at ``offset`` and another one, or the end of the file, follows."""
        try:
            after = self.end(offset)
            return after == self.size or self._bytes(after, 4, b"", after) == _MAGIC_BYTES
        except UserError:
            return False

    def _pread(self, length: int, offset: int) -> bytes:
        try:
            return os.pread(self._file.fileno(), length, offset)
        except OSError as error:
            raise self._error(offset, f"cannot be read: {error.strerror}") from error

    def _error(self, offset: int, what: str) -> UserError:
        return UserError(f"{self.path}: offset {offset}: {what}")


def _after(payload_offset: int, length: int) -> int:
    """The offset of the next part: a payload is padded to a multiple of four bytes."""
    return payload_offset + length + (-length & 3)


class RecordWriter:
    """A writer of a ``.rec`` and its ``.idx``. Both appear whole when the ``with`` block ends; on an error, neither.

    If the process is killed, at most ``<name>.tmp`` files are left, which the next writer of the same path overwrites.
    """

    def __init__(self, rec_path: PathLike, idx_path: PathLike):
        self._targets = [Path(rec_path), Path(idx_path)]
        self._temporaries = [path.with_name(path.name + ".tmp") for path in self._targets]
        self._files: list[BinaryIO] = []
        self._offset = 0
        self._first_length = 0
        self._last_key = -1

    def __enter__(self) -> RecordWriter:
        try:
            for path in self._temporaries:
                path.unlink(missing_ok=True)  # a link would be written through
                self._files.append(open(path, "wb"))
        except OSError as error:
            self._discard()
            raise UserError(f"{path}: cannot be written: {error.strerror}") from error
        return self

    def write(self, key: int, payload: bytes) -> None:
        """Append ``payload`` (under 512 MiB) under ``key``, which must be greater than the last key.

        :raises ValueError: if it is not, or if the payload does not fit the format.
        """
        if len(payload) > MAX_LENGTH:
            raise ValueError(f"record {key} has {len(payload)} bytes, the format holds at most {MAX_LENGTH}")
        if key <= self._last_key:
            raise ValueError(f"record {key} is written after record {self._last_key}, keys must rise")
        self._last_key = key
        framed = _frame(payload)
        if payload.count(_MAGIC_BYTES) >= MAX_PARTS:
            raise ValueError(f"record {key} holds the magic word {MAX_PARTS} times or more")
        self._files[0].write(framed)
        self._files[1].write(b"%d\t%d\n" % (key, self._offset))
        self._first_length = self._first_length or len(framed)
        self._offset += len(framed)

    def rewrite_first(self, payload: bytes) -> None:
        """Replace the first record, a header whose content is known at the end, by ``payload``.

        :raises ValueError: unless both have the same length.
        """
        framed = _frame(payload)
        if len(framed) != self._first_length:
            raise ValueError(f"the first record takes {self._first_length} bytes, the new one {len(framed)}")
        self._files[0].seek(0)
        self._files[0].write(framed)
        self._files[0].seek(self._offset)

    def __exit__(self, error_type: object, *_: object) -> None:
        if error_type is not None:
            self._discard()
            return
        try:
            for file in self._files:
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            self._discard()
            raise
        self._close()
        # Remove the old index first: a kill between the two renames must not leave it beside the new records.
        self._targets[1].unlink(missing_ok=True)
        for temporary, target in zip(self._temporaries, self._targets):
            os.replace(temporary, target)

    def _close(self) -> None:
        while self._files:
            self._files.pop().close()

    def _discard(self) -> None:
        try:
            self._close()
        finally:
            for path in self._temporaries:
                path.unlink(missing_ok=True)


def _frame(payload: bytes) -> bytes:
    """Frame and pad ``payload``, cut into parts where it holds the magic word at a multiple of four bytes."""
    cuts = []
    found = payload.find(_MAGIC_BYTES)
    while found >= 0:
        if found % 4 == 0:
            cuts.append(found)
            found = payload.find(_MAGIC_BYTES, found + 4)
        else:
            found = payload.find(_MAGIC_BYTES, found + 1)
    pieces, start = [], 0
    for cut in cuts:
        pieces += [_PART.pack(MAGIC, (1 if start == 0 else 2) << 29 | cut - start), payload[start:cut]]
        start = cut + 4
    length = len(payload) - start
    pieces += [_PART.pack(MAGIC, (3 if cuts else 0) << 29 | length), payload[start:], b"\0" * (-length & 3)]
    return b"".join(pieces)
