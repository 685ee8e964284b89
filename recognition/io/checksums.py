# SPDX-License-Identifier: Apache-2.0
"""Checksums: computed while a file is written, kept beside it or in a manifest, compared before it is used.

A file ``NAME`` that MXNet reads has ``NAME.sha256`` beside it, in the form of sha256sum, which can check it too. A file
without one, as other programs leave it, is taken as it is.
"""
from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import stat
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple
from zipfile import ZipFile

import numpy as np

from recognition.errors import UserError
from recognition.io.files import replacing, sync_folder, writing

SUFFIX = ".sha256"
_CHUNK = 1 << 22  # bytes digested, or written and digested, at once
_SMALL = 1 << 16  # bytes that are not worth waking a thread for
_ATTEMPTS = 5  # at a file that a run replaces while it is compared


class Sum(NamedTuple):
    """What identifies the content of a file."""

    size: int  # bytes
    sha256: str


class UnreadableFile(UserError):
    """A file that could not be read, for a reason that says nothing about its content and may pass."""


# That there is no such file, or no such place in it: the fault of who wrote it, and it will not pass.
_OF_CONTENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL)


def require_readable(path: Path, error: OSError) -> None:
    """:raises UnreadableFile: if what went wrong with reading a file is no fault of the file."""
    if error.errno is not None and error.errno not in _OF_CONTENT:
        raise UnreadableFile(f"{path}: cannot be read: {error.strerror or error}") from None


def size_of(path: Path) -> int:
    """The bytes of a file that can be opened without waiting for somebody to write into it.

    :raises OSError: of EINVAL if it is a folder, a pipe or a device; others if it cannot be looked at.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "is no regular file")
    return found.st_size


class HashedFile:
    """A new file that is digested while it is written: by a thread, as the disk has its own time; then forced to disk.

    ``sum`` is that of what was written until now. ZipFile, which needs to seek in a file that can, takes it for a pipe.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._digest, self._size = path, hashlib.sha256(), 0
        self._thread = ThreadPoolExecutor(1)

    def __enter__(self) -> HashedFile:
        self._file = open(self._path, "wb")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._thread.shutdown()
        if error is not None:
            self._file.raw.close()  # what is still buffered has no place there
            return
        with self._file:
            self._file.flush()
            os.fsync(self._file.fileno())

    def write(self, data: Any) -> int:
        """Write bytes, or the memory of an array whose rows follow each other in it."""
        view = memoryview(data).cast("B") if memoryview(data).nbytes else memoryview(b"")
        for low in range(0, len(view), _CHUNK):
            piece = view[low : low + _CHUNK]
            if len(piece) <= _SMALL:
                self._digest.update(piece)
                self._file.write(piece)
            else:
                digested = self._thread.submit(self._digest.update, piece)
                self._file.write(piece)
                digested.result()
        self._size += len(view)
        return len(view)

    def flush(self) -> None:
        self._file.flush()

    @property
    def sum(self) -> Sum:
        return Sum(self._size, self._digest.hexdigest())


def write_npy(path: Path, array: np.ndarray) -> Sum:
    """As ``np.save``, to the same bytes, and their sum."""
    with HashedFile(path) as file:
        array = np.asarray(array, order="C")
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.data)
    return file.sum


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> Sum:
    """As ``np.savez``, to an equal archive, and its sum."""
    with HashedFile(path) as file, ZipFile(file, "w") as archive:  # type: ignore[call-overload]  # a pipe to ZipFile
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
    return file.sum


def sum_of(path: Path) -> Sum:
    """The sum of a file.

    :raises OSError: if it cannot be read.
    """
    digest, buffer, size = hashlib.sha256(), memoryview(bytearray(_CHUNK)), 0
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            size += count
    return Sum(size, digest.hexdigest())


def complaint(path: Path, wanted: Sum, known: Mapping[str, str] | None = None) -> str:
    """What is wrong with a file, in words that begin with its path; empty if it is as wanted.

    :param known: by sha256, what other files are called that it may have been mixed up with.
    :raises UnreadableFile: if that cannot be known now.
    """
    try:
        size = size_of(path)
        found = sum_of(path) if size == wanted.size else Sum(size, "")
    except FileNotFoundError:
        return f"{path}: is missing"
    except OSError as error:
        require_readable(path, error)
        return f"{path}: damaged: {error.strerror or error}"
    if found == wanted:
        return ""
    if found.size != wanted.size:
        return f"{path}: damaged: found {found.size} bytes, expected {wanted.size}"
    if known and found.sha256 in known:
        return f"{path}: another file: found {known[found.sha256]}"
    return f"{path}: damaged: found sha256 {found.sha256[:12]}..., expected {wanted.sha256[:12]}..."


def forget_sum(path: Path) -> None:
    """Before a file is replaced: what stands beside it is not that of the new one."""
    beside = sum_beside(path)
    if beside.exists():
        with writing(beside):
            beside.unlink(missing_ok=True)
        sync_folder(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file, and the sum beside it."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)
        forget_sum(path)
    write_sum(path, Sum(len(content), hashlib.sha256(content).hexdigest()))


def write_sum(path: Path, found: Sum) -> None:
    """Write the sum of a file beside it."""
    with replacing(sum_beside(path)) as temporary:
        temporary.write_text(f"{found.sha256}  {path.name}\n")


def check_sum(path: Path) -> None:
    """Compare a file with the sum that stands beside it, if one does.

    :raises UserError: if it is another.
    """
    for attempt in range(_ATTEMPTS):
        text = _text_beside(path)
        if text is None or not path.is_file():
            return
        problem = complaint(path, Sum(path.stat().st_size, _wanted(path, text)))
        if not problem:
            return
        if text == _text_beside(path) or attempt == _ATTEMPTS - 1:  # else a run has just replaced both
            raise UserError(f"{problem}, as {sum_beside(path).name} says{_other(path)}; if another program wrote it on "
                            f"purpose, remove {sum_beside(path).name}")


def _wanted(path: Path, text: str) -> str:
    """The sha256 of a file in lines of sha256sum: that of the one line whatever it calls the file, which may have been
    renamed; of several, that of the line which names it.

    :raises UserError: if there is none, or not just one.
    """
    lines = [found for line in re.split(r"\r?\n", text) if (found := _LINE.fullmatch(line))]
    if not lines:
        raise UserError(f"{sum_beside(path)}: found {text[:80]!r}, expected a line of sha256sum; remove it to use "
                        f"{path.name} unchecked")
    named = lines if len(lines) == 1 else [line for line in lines if os.path.basename(_name(line)) == path.name]
    sums = {(line["sum"] or line["tagged"]).lower() for line in named}
    if len(sums) != 1:
        raise UserError(f"{sum_beside(path)}: found {len(sums)} sums for {path.name} in {len(lines)} lines, expected "
                        f"one; remove it to use {path.name} unchecked")
    return sums.pop()


# As sha256sum writes them, and with --tag; after a backslash, names in which \\ and line ends are escaped.
_LINE = re.compile(r"(?P<escaped>\\?)(?:(?P<sum>[0-9a-fA-F]{64}) [ *](?P<name>.+)"
                   r"|SHA256 \((?P<other>.+)\) = (?P<tagged>[0-9a-fA-F]{64}))")
_ESCAPES = {"\\\\": "\\", "\\n": "\n", "\\r": "\r"}


def _name(line: re.Match[str]) -> str:
    name = line["name"] or line["other"]
    return re.sub(r"\\[\\nr]", lambda found: _ESCAPES[found[0]], name) if line["escaped"] else name


def _other(path: Path) -> str:
    """The newest whole checkpoint beside a damaged one, for the end of an error."""
    match = re.fullmatch(r"(.+)-\d{4,9}\.params", path.name)
    beside = [other for other in path.parent.glob("*.params") if match and other != path
              and re.fullmatch(re.escape(match[1]) + r"-\d{4,9}\.params", other.name)]
    for other in sorted(beside, key=lambda one: one.stat().st_mtime_ns, reverse=True):
        with contextlib.suppress(UserError, OSError):  # then it is none to offer
            text = _text_beside(other)
            if text and not complaint(other, Sum(size_of(other), _wanted(other, text))):
                return f"; {other.name} beside it is whole"
    return ""


def sum_beside(path: Path) -> Path:
    """The file that holds the sum of ``path``."""
    return path.with_name(path.name + SUFFIX)


def _text_beside(path: Path) -> str | None:
    try:
        size_of(sum_beside(path))
        return sum_beside(path).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{sum_beside(path)}: cannot be read: {error.strerror or error}") from None
