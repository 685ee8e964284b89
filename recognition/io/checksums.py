# SPDX-License-Identifier: Apache-2.0
"""Checksums: computed while a file is written, kept beside it or in a manifest, compared before it is used.

A file ``NAME`` that MXNet reads has ``NAME.sha256`` beside it, in the format of ``sha256sum``, which can check it too.
A file without one, such as other programs write, is used unchecked.
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
from recognition.io.files import replacing, sync_folder, write_whole, writing

SUFFIX = ".sha256"
_BYTES_AT_ONCE = 1 << 22  # digested, or written and digested, in one call
_SMALL_BYTES = 1 << 16  # digested without the thread: waking it would take longer
_ATTEMPTS = 5  # to compare a file that a run keeps replacing


class Sum(NamedTuple):
    """The length and the digest of a file's content."""

    size: int  # bytes
    sha256: str


class UnreadableFile(UserError):
    """A file could not be read for a reason outside its content, such as a disk that fails: a later try may succeed."""


# errno values that mean that the content is wrong: retrying cannot help.
_OF_CONTENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL)


def require_readable(path: Path, error: OSError) -> None:
    """Raise if an error of reading a file has a cause outside the file's content; else return.

    :raises UnreadableFile: if so.
    """
    if error.errno is not None and error.errno not in _OF_CONTENT:
        raise UnreadableFile(f"{path}: cannot be read: {error.strerror or error}") from None


def size_of(path: Path) -> int:
    """The size of a regular file in bytes.

    :raises OSError: EINVAL for a folder, a pipe (opening one waits for a writer) or a device; others if stat fails.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "is no regular file")
    return found.st_size


class HashedFile:
    """A new file that a thread digests while it is written, and that is forced to disk at the end.

    It has no ``seek``: ZipFile, which would write over a header, takes it for a pipe.
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
            self._file.raw.close()  # without writing what is still buffered
            return
        with self._file:
            self._file.flush()
            os.fsync(self._file.fileno())

    def write(self, data: Any) -> int:
        """Write bytes or the memory of a C-contiguous array; returns the number of bytes."""
        view = memoryview(data).cast("B") if memoryview(data).nbytes else memoryview(b"")
        for low in range(0, len(view), _BYTES_AT_ONCE):
            piece = view[low : low + _BYTES_AT_ONCE]
            if len(piece) <= _SMALL_BYTES:
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
        """The sum of all bytes written until now."""
        return Sum(self._size, self._digest.hexdigest())


def write_npy(path: Path, array: np.ndarray) -> Sum:
    """Write the bytes that ``np.save`` would write; returns their sum."""
    with HashedFile(path) as file:
        array = np.asarray(array, order="C")
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.data)
    return file.sum


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> Sum:
    """Write an archive that holds what that of ``np.savez`` holds; returns its sum."""
    with HashedFile(path) as file, ZipFile(file, "w") as archive:  # type: ignore[call-overload]  # a pipe to ZipFile
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
    return file.sum


def sum_of(path: Path) -> Sum:
    """The sum of a file.

    :raises OSError: if it cannot be read.
    """
    digest, buffer, size = hashlib.sha256(), memoryview(bytearray(_BYTES_AT_ONCE)), 0
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            size += count
    return Sum(size, digest.hexdigest())


def file_problem(path: Path, wanted: Sum, known: Mapping[str, str] | None = None) -> str:
    """The difference of a file from its sum, in words that begin with its path; empty if there is none.

    :param known: names, by sha256, of other files that it may have been mixed up with.
    :raises UnreadableFile: if it cannot be read now, but perhaps later.
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
    """Remove the sum beside a file that is about to be replaced: it does not describe the new one."""
    beside = sum_beside(path)
    if beside.exists():
        with writing(beside):
            beside.unlink(missing_ok=True)
        sync_folder(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file and the sum beside it."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)
        forget_sum(path)
    write_sum(path, Sum(len(content), hashlib.sha256(content).hexdigest()))


def write_sum(path: Path, found: Sum) -> None:
    """Write the sum of a file beside it."""
    write_whole(sum_beside(path), f"{found.sha256}  {path.name}\n")


def check_sum(path: Path) -> None:
    """Compare a file with the sum beside it, if there is one.

    :raises UserError: if they differ.
    """
    for attempt in range(_ATTEMPTS):
        text = _text_beside(path)
        if text is None or not path.is_file():
            return
        problem = file_problem(path, Sum(path.stat().st_size, _wanted(path, text)))
        if not problem:
            return
        if text == _text_beside(path) or attempt == _ATTEMPTS - 1:  # otherwise a run has just replaced both
            raise UserError(f"{problem}, as {sum_beside(path).name} says{_other(path)}; if another program wrote it on "
                            f"purpose, remove {sum_beside(path).name}")


def _wanted(path: Path, text: str) -> str:
    """The sha256 of a file in lines of sha256sum. If there is one line, it counts under any name, as the file may have
    been renamed; if there are several, the line with the file's name counts.

    :raises UserError: unless there is exactly one such sum.
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


# A line of sha256sum, with or without --tag. A leading backslash marks names in which \\ and line ends are escaped.
_LINE = re.compile(r"(?P<escaped>\\?)(?:(?P<sum>[0-9a-fA-F]{64}) [ *](?P<name>.+)"
                   r"|SHA256 \((?P<other>.+)\) = (?P<tagged>[0-9a-fA-F]{64}))")
_ESCAPES = {"\\\\": "\\", "\\n": "\n", "\\r": "\r"}


def _name(line: re.Match[str]) -> str:
    name = line["name"] or line["other"]
    return re.sub(r"\\[\\nr]", lambda found: _ESCAPES[found[0]], name) if line["escaped"] else name


def _other(path: Path) -> str:
    """The end of an error about a damaged checkpoint: the newest sound one beside it; empty if there is none."""
    match = re.fullmatch(r"(.+)-\d{4,9}\.params", path.name)
    beside = [other for other in path.parent.glob("*.params") if match and other != path
              and re.fullmatch(re.escape(match[1]) + r"-\d{4,9}\.params", other.name)]
    for other in sorted(beside, key=lambda one: one.stat().st_mtime_ns, reverse=True):
        with contextlib.suppress(UserError, OSError):  # one that cannot be read is not offered
            text = _text_beside(other)
            if text and not file_problem(other, Sum(size_of(other), _wanted(other, text))):
                return f"; {other.name} beside it is whole"
    return ""


def sum_beside(path: Path) -> Path:
    """The file that holds the sum of ``path``."""
    return path.with_name(path.name + SUFFIX)


def _text_beside(path: Path) -> str | None:
    try:
        size_of(sum_beside(path))
        return sum_beside(path).read_text(encoding="utf-8-sig", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{sum_beside(path)}: cannot be read: {error.strerror or error}") from None
