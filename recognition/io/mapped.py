# SPDX-License-Identifier: Apache-2.0
"""Arrays of the host: in memory, or in files that the kernel maps into it, for what is larger than memory.

A mapped file has no name, and goes when the process ends in any way. It is written at the start: a process that writes
to a mapped page without room on the disk is killed, and a file that is written page by page at random, even where its
room was set aside, is in as many pieces, which a disk takes long to free. The kernel keeps the pages
that were used last in memory, and writes changed ones back by itself. So whoever reads a row gets what was written to
it last.
"""
from __future__ import annotations

import math
import mmap
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from recognition.errors import UserError
from recognition.io.files import writing

READERS = 32  # threads, each of which waits for one page: disks read many at a time, and fastest so
ROWS_A_TASK = 2048
ZEROS = bytes(1 << 24)  # written at once


def host_zeros(shape: Sequence[int], dtype: Any = np.float32, folder: Path | None = None) -> np.ndarray:
    """An array of zeros in memory, or with ``folder`` in a mapped file there.

    :raises UserError: if the folder cannot be written to, or the disk has less room.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if folder is None or not size:
        return np.zeros(tuple(shape), dtype)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if free < size:
            raise UserError(f"{folder}: found {free / 1e9:.1f} GB free, expected {size / 1e9:.1f} GB for an array of "
                            f"{' x '.join(map(str, shape))} numbers")
        with tempfile.TemporaryFile(dir=folder) as file:
            for low in range(0, size, len(ZEROS)):
                file.write(ZEROS[: size - low])
            file.flush()
            return np.ndarray(tuple(shape), dtype, mmap.mmap(file.fileno(), size))


def advise(arrays: Sequence[np.ndarray], in_order: bool) -> None:
    """Tell the kernel whether arrays of :func:`host_zeros` are read from the first row to the last from now on, or at
    random: the pages after one that is read come with it, or stay away. Arrays in memory are left alone."""
    for array in arrays:
        if isinstance(array.base, mmap.mmap):
            array.base.madvise(mmap.MADV_SEQUENTIAL if in_order else mmap.MADV_RANDOM)


class ReadAhead:
    """Threads that read rows of mapped arrays into memory, before they are needed."""

    def __init__(self) -> None:
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="read ahead")
        self._under_way: list[Future[None]] = []

    def __call__(self, arrays: Sequence[np.ndarray], rows: np.ndarray) -> None:
        """Begin to read ``rows``, ascending int64, of each of ``arrays`` (R, D), contiguous. What is left of an earlier
        call is dropped: whoever needs those rows reads them by himself by now. The kernel reads no page beside theirs.
        """
        advise(arrays, in_order=False)
        for task in self._under_way:
            task.cancel()
        parts = [rows[low : low + ROWS_A_TASK] for low in range(0, len(rows), ROWS_A_TASK)]
        self._under_way = [self._readers.submit(_touch, array, part) for part in parts for array in arrays]

    def wait(self) -> None:
        """Return once all rows of the last call are read."""
        for task in self._under_way:
            task.result()


def _touch(array: np.ndarray, rows: np.ndarray) -> None:
    """Read a byte of every page that the rows lie on. ``take`` lets other threads run while it waits for a page."""
    a_row = array.itemsize * math.prod(array.shape[1:])
    offsets = [*range(0, a_row, mmap.PAGESIZE), a_row - 1]  # in a row: it may begin and end amid pages
    places = rows[:, None] * a_row + np.array(offsets)
    array.reshape(-1).view(np.uint8).take(places.reshape(-1))
