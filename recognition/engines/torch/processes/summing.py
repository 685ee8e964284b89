# SPDX-License-Identifier: Apache-2.0
"""Sums of tensors over all processes, which run while later tensors are still being computed."""
from __future__ import annotations

import time
from typing import Any

from recognition.engines.torch.finite import as_it_lies
from recognition.engines.torch.imports import torch
from recognition.processes.communicator import Communicator

BUCKET_BYTES = 8 << 20  # of several tensors that are summed together; a larger one travels alone


class Summing:
    """Replaces tensors on any device by their sums over all processes: :meth:`add` each, then :meth:`finish`.

    Neighbours of one device and type travel together in a bucket, which leaves once it is full. All processes add
    tensors of the same shapes, and laid out alike, in the same order.
    """

    def __init__(self, communicator: Communicator, low: torch.dtype | None = None, raised: float = 1.0) -> None:
        """:param communicator: the one of ``torch.distributed``, which counts what is sent.
        :param low: the numbers of 16 bits that tensors are sent and summed in, ``raised`` by a factor; None: their own.
        """
        self._communicator, self._low, self._raised = communicator, low, raised
        self._bucket: list[torch.Tensor] = []
        self._running: list[tuple[list[torch.Tensor], torch.Tensor, Any]] = []

    def add(self, tensor: torch.Tensor) -> None:
        """Take part in the sum with ``tensor``, which nobody may use before :meth:`finish`. It is read by a later call,
        or there, on the stream that is then current."""
        if self._bucket and not self._fits(tensor):
            self._leave()
        self._bucket.append(tensor)

    def _fits(self, tensor: torch.Tensor) -> bool:
        first = self._bucket[0]
        held = (sum(other.numel() for other in self._bucket) + tensor.numel()) * first.element_size()
        return (tensor.device, tensor.dtype) == (first.device, first.dtype) and held <= BUCKET_BYTES

    @torch.no_grad()
    def _leave(self) -> None:
        flat = torch.cat([as_it_lies(tensor).reshape(-1) for tensor in self._bucket])
        if self._low:
            flat = flat.mul_(self._raised).to(self._low)
        self._running.append((self._bucket, flat, torch.distributed.all_reduce(flat, async_op=True)))
        self._bucket = []

    @torch.no_grad()
    def finish(self) -> None:
        """Put the sums into the tensors. On the host they are there on return; on a GPU the device's stream waits for
        them."""
        if self._bucket:
            self._leave()
        running, self._running = self._running, []
        counts = self._communicator
        counts.exchanges += 1
        for bucket, flat, work in running:
            began = time.perf_counter()
            work.wait()
            counts.waited += time.perf_counter() - began
            counts.bytes_sent += round(2 * (counts.size - 1) / counts.size * flat.numel() * flat.element_size())
            if self._low:
                flat = flat.float().div_(self._raised)
            places = [as_it_lies(tensor) for tensor in bucket]
            totals = flat.split([place.numel() for place in places])
            torch._foreach_copy_(places, [total.view(place.shape) for place, total in zip(places, totals)])
