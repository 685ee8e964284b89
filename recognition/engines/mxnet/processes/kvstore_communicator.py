# SPDX-License-Identifier: Apache-2.0
"""Collectives through MXNet's parameter servers, which can only add up float32 arrays of all workers."""
from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np

from recognition.config.devices import WORKER
from recognition.engines.mxnet.imports import mx
from recognition.errors import UserError
from recognition.processes.reach import await_answer

PATIENCE_SECONDS = 60.0  # for the scheduler to begin


def await_scheduler(environ: Mapping[str, str]) -> None:
    """Wait until the scheduler can be reached. MXNet itself would wait for ever and ignore signals.

    :raises UserError: if the variables that name it are not there, or it does not answer.
    """
    missing = [name for name in ("DMLC_PS_ROOT_URI", "DMLC_PS_ROOT_PORT", "DMLC_NUM_SERVER", "DMLC_NUM_WORKER")
               if not environ.get(name)]
    if missing:
        raise UserError(f"{missing[0]}: not set, expected what recognition.launch --servers 1 sets for workers")
    host, port = environ["DMLC_PS_ROOT_URI"], int(environ["DMLC_PS_ROOT_PORT"])
    if why := await_answer(host, port, PATIENCE_SECONDS):
        raise UserError(f"DMLC_PS_ROOT_URI: no scheduler answers at {host}:{port}: {why}; waited up to "
                        f"{PATIENCE_SECONDS:g} s")


class KVStoreCommunicator:
    """Implements :class:`recognition.processes.communicator.Communicator` by push and pull.

    A gather is the sum of arrays that are zero but for a process's own part; a scatter is a sum of which a part is
    taken. Other types than float32 travel as the sum of two float32, which keeps 48 bits: whole numbers are exact to
    2^48. ``bytes_sent`` counts pushes; as many bytes are pulled. Servers add in the order of arrival, so that a run of
    more than two workers is not repeated to the last bit.
    """

    def __init__(self, kind: str) -> None:
        """:param kind: 'dist_sync' or 'dist_device_sync'."""
        await_scheduler(os.environ)
        self._store = mx.kv.create(kind)
        # Servers give out ranks in the order of arrival. Under launch the first worker is the first of the command.
        self.rank = int(os.environ.get(WORKER, self._store.rank))
        self.size = self._store.num_workers
        self.bytes_sent = self.exchanges = 0
        self.waited = 0.0
        self._known: set[str] = set()

    def all_reduce(self, array: np.ndarray) -> np.ndarray:
        if array.dtype == np.float32:
            return self._sum(array)
        high = array.astype(np.float32)
        rest = np.subtract(array, high, where=np.isfinite(high), out=np.zeros(array.shape))
        total = self._sum(np.stack([high, rest.astype(np.float32)])).astype(np.float64).sum(axis=0)
        return (np.rint(total) if array.dtype.kind == "i" else total).astype(array.dtype)

    def all_gather(self, array: np.ndarray) -> np.ndarray:
        padded = np.zeros((self.size, *array.shape), array.dtype)
        padded[self.rank] = array
        return self.all_reduce(padded.reshape(-1, *array.shape[1:]))

    def reduce_scatter(self, array: np.ndarray) -> np.ndarray:
        rows = len(array) // self.size
        return self.all_reduce(array)[self.rank * rows : (self.rank + 1) * rows]

    def _sum(self, array: np.ndarray) -> np.ndarray:
        given = mx.nd.array(array, dtype=np.float32)
        began = time.perf_counter()
        self.sum_in_place("host", [given])
        found = given.asnumpy()
        self.waited += time.perf_counter() - began
        return found

    def sum_in_place(self, name: str, arrays: Sequence[Any]) -> None:
        self.exchanges += 1
        keys = [f"{name} {i} {array.shape}" for i, array in enumerate(arrays)]
        unknown = [(key, array) for key, array in zip(keys, arrays) if key not in self._known]
        for key, array in unknown:  # the same ones in every process
            self._store.init(key, mx.nd.zeros(array.shape))
            self._known.add(key)
        for i, (key, array) in enumerate(zip(keys, arrays)):
            self.bytes_sent += 4 * array.size
            self._store.push(key, array, priority=-i)
            self._store.pull(key, out=array, priority=-i)

    def __enter__(self) -> KVStoreCommunicator:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if error is not None:  # else this process would wait at its end for workers that wait for it
            mx.base.check_call(mx.base._LIB.MXKVStoreSetBarrierBeforeExit(self._store.handle, 0))
        del self._store  # says goodbye to the servers; at the end of Python its threads would abort the process
