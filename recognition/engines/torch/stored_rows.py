# SPDX-License-Identifier: Apache-2.0
"""Storage of a shard's arrays, on its device or in host memory, as float32 or bfloat16. The rows of a chunk travel to
the device; those of bfloat16 are widened there, and rounded when they go back."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from recognition.engines.torch.imports import torch
from recognition.engines.torch.rounding import rounded
from recognition.head.shard import ROWS_AT_ONCE
from recognition.io.mapped import ReadAhead, advise, host_zeros

# What NumPy has in place of a dtype, of as many bytes.
AS_NUMPY = {torch.float32: np.float32, torch.bfloat16: np.int16}
FROM_NUMPY = {np.dtype(np.float32): torch.float32, np.dtype(np.int32): torch.int32, np.dtype(np.int64): torch.int64}
ALIGNED = 64  # bytes: where arrays that travel together begin, as kernels and libraries like it


class Fetched:
    """A few numbers on their way to the host: a call waits for them alone, not for what is queued behind them."""

    def __init__(self, numbers: torch.Tensor) -> None:
        on_gpu = numbers.device.type == "cuda"
        self._host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=on_gpu)
        self._host.copy_(numbers, non_blocking=True)
        self._there = torch.cuda.current_stream(numbers.device).record_event() if on_gpu else None

    def __call__(self) -> np.ndarray:
        if self._there:
            self._there.synchronize()
        return self._host.numpy()


class StoredRows:
    """Takes rows of arrays to the device, and puts them back: all rows in turn, or the selected ones alone.

    On the device a chunk of all rows of float32 is a view. Rows in host memory go through one buffer of a chunk, which
    is pinned where the device is a GPU. W itself is not pinned: PyTorch rounds what it pins up to a power of two.

    With ``folder`` and ``on_host`` they are in mapped files there, W and its momentum row by row side by side: one page
    has both rows of a class, at 512 numbers of float32.
    """

    def __init__(self, device: torch.device, on_host: bool, rows: int, folder: Path | None = None) -> None:
        self.device, self._on_host, self._all = device, on_host, rows
        self._folder, self._read_ahead = folder, ReadAhead()
        self._files: list[np.ndarray] = []  # (rows, arrays, ...) each
        self._home = torch.device("cpu") if on_host else device
        self._selected: torch.Tensor | None = None
        self._staging = torch.empty(0, dtype=torch.uint8)

    def __len__(self) -> int:
        """The number of selected rows."""
        return self._all if self._selected is None else len(self._selected)

    def zeros(self, count: int, *dim: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
        """``count`` arrays of the shard, a row for each of its rows, where its arrays lie."""
        if self._folder and dim:
            block = host_zeros((self._all, count, *dim), AS_NUMPY[dtype], self._folder)
            self._files.append(block)
            return list(torch.from_numpy(block).view(dtype).unbind(1))
        return [torch.zeros(self._all, *dim, dtype=dtype, device=self._home) for _ in range(count)]

    def as_float32(self, array: torch.Tensor) -> np.ndarray:
        """An array on the host as float32: its own memory if it is that, or a copy, on the disk if the array is."""
        advise(self._files, in_order=True)
        if array.dtype == torch.float32:
            return array.cpu().numpy()
        wide = host_zeros(array.shape, np.float32, self._folder if array.ndim > 1 else None)
        for low in range(0, len(array), ROWS_AT_ONCE):
            wide[low : low + ROWS_AT_ONCE] = array[low : low + ROWS_AT_ONCE].cpu().float().numpy()
        return wide

    def expect(self, rows: np.ndarray | None) -> None:
        """Begin to read these rows of all files, ascending int64; with None there is no telling them."""
        if self._files and rows is not None:
            self._read_ahead(self._files, rows)

    @property
    def selected(self) -> torch.Tensor | None:
        """The selected rows, ascending int64; None: all."""
        return self._selected

    def select(self, rows: np.ndarray | torch.Tensor | None) -> None:
        """Take these rows alone from now on, ascending int64; None: all."""
        self._selected = torch.from_numpy(rows).to(self._home) if isinstance(rows, np.ndarray) else rows

    def numbers(self, low: int, high: int) -> torch.Tensor:
        """The numbers of the selected rows ``low .. high - 1``, int64, where the arrays lie."""
        return torch.arange(low, high, device=self._home) if self._selected is None else self._selected[low:high]

    def take(self, array: torch.Tensor, low: int, high: int) -> torch.Tensor:
        """The selected rows ``low .. high - 1`` of an array, on the device as float32: a view, or a copy to put back.
        """
        part = array[low:high] if self._selected is None else self._selected[low:high]
        if not self._on_host:
            return (part if self._selected is None else array.index_select(0, part)).float()
        staged = self._staged(array, high - low)
        if self._selected is None:
            staged.copy_(part)
        else:
            torch.index_select(array, 0, part, out=staged)
        return staged.to(self.device, copy=True).float()

    def on_device(self, *arrays: np.ndarray) -> list[torch.Tensor]:
        """Copies of arrays on the shard's device, which come in one transfer; the host does not wait for it."""
        return copied(arrays, self.device)

    def take_at(self, array: torch.Tensor, places: np.ndarray | torch.Tensor) -> torch.Tensor:
        """A copy of a few of the selected rows, by their places among them, on the device as float32."""
        rows = (torch.from_numpy(places) if isinstance(places, np.ndarray) else places).to(self._home)
        return array.index_select(0, rows if self._selected is None else self._selected[rows]).to(self.device).float()

    def put(self, array: torch.Tensor, low: int, high: int, part: torch.Tensor,
            bits: torch.Tensor | None = None) -> None:
        """Store what :meth:`take` gave and the caller has changed in place.

        :param bits: by which the numbers of an array of 16 bits are rounded.
        """
        if array.dtype != part.dtype:
            assert bits is not None
            part = rounded(part, bits)
        elif self._selected is None and not self._on_host:
            return  # a view
        if self._on_host:
            part = self._staged(array, high - low).copy_(part)
        if self._selected is None:
            array[low:high] = part
        else:
            array.index_copy_(0, self._selected[low:high], part)

    def _staged(self, array: torch.Tensor, rows: int) -> torch.Tensor:
        """The buffer, as ``rows`` rows of ``array``. It is free again when a call returns: copies from it wait."""
        numbers = rows * array[:1].numel()
        if self._staging.numel() < 4 * numbers:
            self._staging = torch.empty(4 * numbers, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        return self._staging[: array.element_size() * numbers].view(array.dtype).view(rows, *array.shape[1:])


def copied(arrays: Sequence[np.ndarray], device: torch.device) -> list[torch.Tensor]:
    """Copies of arrays on a device, parts of one tensor there: each transfer costs the host some 15 us. From pinned
    memory it is queued, and the host goes on."""
    sizes = [size for array in arrays for size in (array.nbytes, -array.nbytes % ALIGNED)]
    packed = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=device.type == "cuda")
    bytes_here, low = packed.numpy(), 0
    for array, gap in zip(arrays, sizes[1::2]):
        bytes_here[low : low + array.nbytes].view(array.dtype).reshape(array.shape)[...] = array
        low += array.nbytes + gap
    there = packed.to(device, non_blocking=True).split(sizes)[::2]
    return [part.view(FROM_NUMPY[array.dtype]).view(array.shape) for part, array in zip(there, arrays)]
