# SPDX-License-Identifier: Apache-2.0
"""Collectives through torch.distributed: Gloo for arrays in host memory, NCCL for tensors on GPUs."""
from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from importlib import import_module
from types import TracebackType
from typing import Any

import numpy as np

from recognition.engines.torch.imports import torch
from recognition.engines.torch.processes.summing import Summing
from recognition.errors import LostProcess

distributed = torch.distributed
# Its functions keep the group that there is when they are defined. Imported later, as by torch._dynamo, they would keep
# the run's beyond its end, and Gloo's threads with it, which abort a Python that ends.
import_module("torch.distributed.nn.functional")
# Another process may verify, save or wait for its disk while this one waits for it; then the exchange gives up.
STALL_SECONDS = 300.0
LEFT = "left"  # the store's count of processes that have ended; one that met an error counts for all
# Words of Gloo, of the store and of NCCL about a process that is gone or does not answer.
_LOST = ("onnection closed by peer", "onnection reset by peer", "Broken pipe", "imed out", "Socket closed",
         "gloo/transport", "remote process exited", "onnection refused", "onnection was likely closed")


class DistributedCommunicator:
    """Implements :class:`recognition.processes.communicator.Communicator` over a store at which all processes have met.

    Features and their gradients may be tensors on a device: they stay there.

    ``bytes_sent`` counts what a ring sends, which is what Gloo and NCCL do: with P processes an all-gather of n bytes
    each sends (P - 1) n, a reduce-scatter of n bytes (P - 1) / P n, an all-reduce twice that. A sum is the same to the
    last bit in all processes, and in a run that is repeated.
    """

    def __init__(self, store: Any, rank: int, size: int, scheduler: bool = False) -> None:
        """:param store: a ``torch.distributed.Store``; ``scheduler``: it is held by one, which waits for all to leave.
        :raises LostProcess: if the processes cannot connect.
        """
        self._with_gpus = torch.cuda.is_available() and distributed.is_nccl_available()
        try:
            distributed.init_process_group("cpu:gloo,cuda:nccl" if self._with_gpus else "gloo", store=store, rank=rank,
                                           world_size=size, timeout=timedelta(seconds=STALL_SECONDS))
        except RuntimeError as error:
            raise LostProcess(f"process {rank} of {size} cannot connect to the others: "
                              f"{' '.join(str(error).split())}") from None
        self.rank, self.size, self._farewell = rank, size, store if scheduler else None
        self.bytes_sent = self.exchanges = 0
        self.waited = 0.0

    def all_gather(self, array: Any) -> Any:
        given = self._begin(array, self.size - 1)
        found = given.new_empty((self.size, *given.shape))
        with self._waiting():
            distributed.all_gather(list(found), given)
        return _like(array, found.flatten(0, 1))

    def all_reduce(self, array: np.ndarray) -> np.ndarray:
        total = self._begin(array, 2 * (self.size - 1) / self.size).clone()
        with self._waiting():
            distributed.all_reduce(total)
        return total.numpy()

    def reduce_scatter(self, array: Any) -> Any:
        given = self._begin(array, (self.size - 1) / self.size)
        parts = torch.empty_like(given)
        with self._waiting():  # Gloo's own reduce-scatter of tensors is an all-reduce, which sends twice as much
            distributed.all_to_all_single(parts, given)
        return _like(array, parts).reshape(self.size, -1, *array.shape[1:]).sum(axis=0, dtype=array.dtype)

    def _begin(self, array: Any, share: float) -> Any:
        """The array as a tensor; counts the exchange."""
        self.exchanges += 1
        self.bytes_sent += round(share * array.nbytes)
        if isinstance(array, torch.Tensor):
            return array.contiguous()
        return torch.from_numpy(np.require(array, requirements=["C", "W"]))

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.waited += time.perf_counter() - began

    def sum_in_place(self, name: str, arrays: Sequence[Any]) -> None:
        """Sum tensors on any device; the first exchanges run while later tensors are put together."""
        summing = Summing(self)
        for tensor in arrays:
            summing.add(tensor)
        summing.finish()

    def __enter__(self) -> DistributedCommunicator:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._farewell:
            with contextlib.suppress(RuntimeError):  # the scheduler may be gone
                self._farewell.add(LEFT, self.size if error else 1)
        if error is None:
            with contextlib.suppress(RuntimeError):  # the work is done, whatever becomes of the others
                distributed.all_reduce(torch.zeros(1))  # a process that holds the store stays until all have left
        if error is None or not self._with_gpus:  # NCCL would wait here for exchanges that nobody ends
            distributed.destroy_process_group()  # Gloo's threads end: one that frees a tensor as Python ends aborts it
        if isinstance(error, RuntimeError) and any(words in str(error) for words in _LOST):
            raise LostProcess(f"process {self.rank} of {self.size}: the exchange broke off: another process ended or "
                              "hangs, and its own output says why") from None


def _like(array: Any, tensor: torch.Tensor) -> Any:
    """A tensor as what the caller gave: NumPy's array or a tensor."""
    return tensor if isinstance(array, torch.Tensor) else tensor.numpy()
