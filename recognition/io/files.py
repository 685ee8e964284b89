# SPDX-License-Identifier: Apache-2.0
"""Files that are whole or absent: written under another name, forced to disk, then renamed.

If the disk is full, fails or refuses to write or to read, a :class:`UserError` names the file.
"""
from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from recognition.errors import UserError

WRITING = ".writing"  # the suffix of a file that is not complete yet


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turn an OSError of the block into a :class:`UserError` that names ``path``."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into a :class:`UserError` that names ``path``."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error


def regular(path: str | Path, flags: int) -> int:
    """An ``opener`` for :func:`open` that refuses everything but regular files: opening a pipe waits for a writer.

    :raises OSError: EISDIR for a folder, EINVAL for a pipe or a device.
    """
    handle = os.open(path, flags | os.O_NONBLOCK)  # it has no effect on a regular file
    if stat.S_ISREG(mode := os.fstat(handle).st_mode):
        return handle
    os.close(handle)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    raise OSError(errno.EINVAL, "it is a pipe or a device, expected a file", path)


def sync_folder(folder: Path) -> None:
    """Force the names in a folder to disk, so that a rename survives a power cut."""
    with writing(folder):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sync_file(path: Path) -> None:
    """Force a file's bytes to disk."""
    with writing(path), open(path, "rb+") as handle:
        os.fsync(handle.fileno())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; it replaces ``path`` when the block ends without an error.

    An older file ``path`` is never written to: a link is replaced, not followed.
    """
    temporary = path.with_name(f".{path.name}{WRITING}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _require_file(path)
        temporary.unlink(missing_ok=True)  # a killed process left it, or it is a link, which would be written through
        try:
            yield temporary
            sync_file(temporary)
            os.replace(temporary, path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_whole(path: Path, content: str | bytes) -> None:
    """Replace a file by this content; text is written in UTF-8.

    Not a ``BytesIO.getbuffer()``: on a full disk the traceback keeps it in a cycle, and CPython 3.12.0 and 3.12.1 crash
    when their collector finds one there (python/cpython#111049). ``getvalue()`` copies nothing either.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def _require_file(path: Path) -> None:
    """Refuse to replace anything but a file: a device such as /dev/null would be lost for everybody.

    :raises OSError: EISDIR for a folder, EINVAL for a pipe or a device.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is a pipe or a device, expected a file", path)


def require_new(outputs: Iterable[Path | None], inputs: Iterable[Path | None] = (), overwrite: bool = False) -> None:
    """Check, before any work, the files that a command will write; None for one that is not wanted.

    :param inputs: files and folders that the command reads; it must not replace them, nor a file in them
    :param overwrite: allow to replace other files
    :raises UserError: if a file must not be written, or if two outputs are the same
    """
    read = [path.resolve() for path in inputs if path is not None]
    names = set()
    for path in filter(None, outputs):
        name = path.parent.resolve() / path.name  # of the link, where it is one
        if name in names:
            raise UserError(f"{path}: found as the name of two outputs, expected two names")
        names.add(name)
        if not os.path.lexists(path):
            continue
        for other in read:
            if path.resolve() == other or (path.exists() and other.exists() and path.samefile(other)):
                raise UserError(f"{path}: is an input, expected another name for the output")
            if other in path.resolve().parents:
                raise UserError(f"{path}: exists already, in the input {other}, expected a new name")
        if not overwrite:
            raise UserError(f"{path}: exists already, expected a new name; --overwrite replaces it")
        with writing(path):
            _require_file(path)


def discard_temporaries(folder: Path) -> None:
    """Remove the files that :func:`replacing` left in ``folder`` when its process was killed."""
    for path in folder.glob(f".*{WRITING}"):
        with writing(path):
            path.unlink(missing_ok=True)
