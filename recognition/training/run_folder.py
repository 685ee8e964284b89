# SPDX-License-Identifier: Apache-2.0
"""Checks of the folder that a run writes to: it must be writable, and no other run may write to it."""
from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recognition.errors import UserError

LOCKS = Path("/proc/locks")


def require_writable(folder: Path) -> None:
    """Make the folder and write a file to it, before hours of training are spent.

    :raises UserError: if that fails.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"--models-root: {folder} cannot be written to: {error.strerror}") from None


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Lock the folder against other runs. The kernel releases the lock at any end of the process.

    :raises UserError: if another run has locked it; with its process number, if the kernel tells it.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"--models-root: {folder} is written to by another run{_holder(os.fstat(handle).st_ino)}, "
                            "expected a folder of this run's own") from None
        except OSError:  # a file system without locks, such as some network file systems
            pass
        yield
    finally:
        os.close(handle)


def _holder(inode: int) -> str:
    """A text ``, process 4711``, from the kernel's list of locks: number, type, manner, mode, process, device:inode.
    Empty if the list has no such lock."""
    try:
        lines = [line.split() for line in LOCKS.read_text(encoding="ascii").splitlines()]
    except OSError:
        return ""
    found = [line[4] for line in lines if len(line) > 5 and line[1] == "FLOCK" and line[5].endswith(f":{inode}")]
    return f", process {found[0]}" if found else ""
