# SPDX-License-Identifier: Apache-2.0
"""Collectives through Horovod: Gloo between processors, NCCL where Horovod is built with it and arrays lie on GPUs."""
from __future__ import annotations

import atexit
import contextlib
import os
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Callable

import numpy as np

from recognition.engines.mxnet.imports import mx
from recognition.errors import LostProcess, UserError

# Another process may verify, save or wait for its disk while this one waits for it; then Horovod gives up.
STALL_SECONDS = 300
_LOST = ("Horovod has been shut down", "Connection closed by peer", "Connection reset by peer", "Timed out waiting",
         "[gloo", "Gloo", "gloo/")


class HorovodCommunicator:
    """Implements :class:`recognition.processes.communicator.Communicator` for a process that was started for Horovod.

    ``bytes_sent`` counts what a ring sends, which is what Gloo and NCCL do: with P processes an all-gather of n bytes
    each sends (P - 1) n, a reduce-scatter of n bytes (P - 1) / P n, an all-reduce twice that.
    """

    def __init__(self) -> None:
        """:raises UserError: if Horovod is not there or cannot start."""
        os.environ.setdefault("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", str(STALL_SECONDS))
        try:
            import horovod.mxnet as hvd
        except ImportError as error:
            raise UserError(f"several processes need Horovod with MXNet: {error}; `make test` builds it") from None
        try:
            hvd.init()
        except Exception as error:  # of many kinds: what the rendezvous or the network says
            raise LostProcess(f"Horovod cannot start: {' '.join(str(error).split())}") from None
        self._hvd = hvd
        self.rank, self.size = hvd.rank(), hvd.size()
        self.bytes_sent = self.exchanges = 0
        self.waited = 0.0

    def all_gather(self, array: np.ndarray) -> np.ndarray:
        given, name = self._begin("gather", array, self.size - 1)
        return self._awaited(lambda: self._hvd.allgather(given, name=name))

    def all_reduce(self, array: np.ndarray) -> np.ndarray:
        given, name = self._begin("reduce", array, 2 * (self.size - 1) / self.size)
        return self._awaited(lambda: self._hvd.allreduce_(given, op=self._hvd.Sum, name=name))

    def reduce_scatter(self, array: np.ndarray) -> np.ndarray:
        given, name = self._begin("scatter", array, (self.size - 1) / self.size)
        return self._awaited(lambda: self._hvd.reducescatter(given, op=self._hvd.Sum, name=name))

    def _begin(self, kind: str, array: np.ndarray, share: float) -> tuple[Any, str]:
        """The array for Horovod, and a name, the same for the same shape: Horovod remembers agreements by name."""
        self.exchanges += 1
        self.bytes_sent += round(share * array.nbytes)
        return mx.nd.array(array, dtype=array.dtype), f"{kind} {array.dtype} {array.shape}"

    def _awaited(self, collective: Callable[[], Any]) -> np.ndarray:
        began = time.perf_counter()
        found = collective().asnumpy()  # a gather waits before it returns, a sum when it is read
        self.waited += time.perf_counter() - began
        return found

    def sum_in_place(self, name: str, arrays: Sequence[Any]) -> None:
        self.exchanges += 1
        for i, array in enumerate(arrays):  # those given first are needed first
            self.bytes_sent += round(2 * (self.size - 1) / self.size * array.size * np.dtype(array.dtype).itemsize)
            self._hvd.allreduce_(array, op=self._hvd.Sum, name=f"{name} {i}", priority=-i)

    def __enter__(self) -> HorovodCommunicator:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if error is not None:  # what broke off since then fails once more as MXNet ends, with a traceback of its own
            atexit.unregister(mx.base._notify_shutdown)
            atexit.register(_shut_down_quietly)
        if isinstance(error, mx.MXNetError) and any(words in str(error) for words in _LOST):
            raise LostProcess(f"process {self.rank} of {self.size}: the exchange broke off: another process ended or "
                              "hangs, and its own output says why") from None


def _shut_down_quietly() -> None:
    with contextlib.suppress(mx.MXNetError):
        mx.base._notify_shutdown()
