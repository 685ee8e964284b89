# SPDX-License-Identifier: Apache-2.0
"""The folder that a run writes to: it can be written to, and one run alone does."""
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
    """:raises UserError: if no file can be written in the folder of the run, before hours are spent."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"--models-root: {folder} cannot be written to: {error.strerror}") from None


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold the folder against other runs. The kernel lets go when the process ends, however it does.

    :raises UserError: if another run holds it, by its process where the kernel tells.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"--models-root: {folder} is written to by another run{_holder(os.fstat(handle).st_ino)}, "
                            "expected a folder of this run's own") from None
        except OSError:  # a file system without locks, such as some of the network
            pass
        yield
    finally:
        os.close(handle)


def _holder(inode: int) -> str:
    """``, process 4711`` by the kernel's list of locks: number, kind, manner, mode, process, devices:inode, ..."""
    try:
        lines = [line.split() for line in LOCKS.read_text(encoding="ascii").splitlines()]
    except OSError:
        return ""
    found = [line[4] for line in lines if len(line) > 5 and line[1] == "FLOCK" and line[5].endswith(f":{inode}")]
    return f", process {found[0]}" if found else ""
