# SPDX-License-Identifier: Apache-2.0
"""Images on their way to a GPU while it computes the step before."""
from __future__ import annotations

import numpy as np

from recognition.engines.torch.imports import torch


class Uploads:
    """Copies of batches from the host to one GPU, on a stream of their own.

    Events keep the order: a copy waits until the images before it are read, and a step waits for the copy of its own.
    The host's images are held until their copy is done, so that memory from :func:`pinned`, which goes to another batch
    once nobody holds it, is not overwritten before.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)
        self._copied, self._read = torch.cuda.Event(), torch.cuda.Event()
        self._coming: np.ndarray | None = None  # images whose copy has begun and is not yet read
        self._here = self._there = torch.empty(0, dtype=torch.uint8)

    def begin(self, images: np.ndarray) -> None:
        """Queue the copy of images, uint8, which stay as they are until it is done."""
        self._copied.synchronize()  # that of the copy before, for which a step has waited: its memory may go
        here = torch.from_numpy(np.require(images, requirements=["C", "W"]))
        self._coming, self._here = images, here if here.is_pinned() else here.pin_memory()
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(self._read)
            if self._there.shape != here.shape:
                self._there = torch.empty_like(here, device=self._device)
            self._there.copy_(self._here, non_blocking=True)
            self._copied.record(self._stream)

    def into(self, place: torch.Tensor, images: np.ndarray) -> None:
        """Put images, whose copy may have begun, into a tensor on the device, before what its current stream does next.
        """
        begun = self._coming
        if begun is None or (begun.shape, begun.ctypes.data) != (images.shape, images.ctypes.data):
            self.begin(images)
        self._coming = None
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(self._copied)
        place.copy_(self._there)
        self._read.record(stream)


def pinned(shape: tuple[int, ...]) -> np.ndarray:
    """Memory of the host from which a GPU copies beside its work, uint8. PyTorch keeps it, and gives it again."""
    return torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()
