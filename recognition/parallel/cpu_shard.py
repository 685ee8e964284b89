# SPDX-License-Identifier: Apache-2.0
"""A shard in host memory: NumPy's BLAS for the three products, Numba loops for what lies between them."""
from __future__ import annotations

import numpy as np

from recognition.parallel import kernels
from recognition.parallel.communicator import Communicator
from recognition.parallel.shard import SGD, ShardState, initial_centres, rows_of, target_columns

CHUNK = 4096  # rows whose gradient is held at once: 8 MB at D = 512, so that it stays near the processor


class CpuShard:
    """Implements :class:`recognition.parallel.shard.Shard`; holds W, its momentum and one (B, rows) buffer.

    In a step on a sample of the classes their centres are gathered for the products; the update works in place.
    """

    def __init__(self, start: int, stop: int, dim: int, *, normalised: bool, scale: float, sub_centres: int = 1,
                 with_bias: bool = False, seed: int = 0) -> None:
        self.start, self.stop = start, stop
        self.normalised, self.scale, self.sub_centres = normalised, np.float32(scale), sub_centres
        self.with_bias = with_bias
        centres = initial_centres(seed, start, stop, sub_centres, dim)
        rows = len(centres)
        self.load(ShardState(centres, np.zeros_like(centres), np.zeros(rows, np.float32), np.zeros(rows, np.float32)))
        self._buffer = self._gathered = np.empty((0, 0), np.float32)

    def state(self) -> ShardState:
        return ShardState(self.centres, self.momentum, self.bias, self.bias_momentum)

    def load(self, state: ShardState) -> None:
        arrays = (np.ascontiguousarray(array, np.float32) for array in state)
        self.centres, self.momentum, self.bias, self.bias_momentum = arrays
        self._inverse = np.ones(len(self.centres), np.float32)
        self._all_rows = np.arange(len(self.centres))
        self._renew_norms(self._all_rows)
        self.select(None)

    def _renew_norms(self, rows: np.ndarray) -> None:
        if self.normalised:
            kernels.inverse_norms(self.centres, rows, self._inverse)

    def select(self, classes: np.ndarray | None) -> None:
        self._classes = classes
        if classes is None:
            self._rows, self._w, self._scales, self._b = self._all_rows, self.centres, self._inverse, self.bias
            return
        self._rows = rows_of(classes, self.start, self.sub_centres)
        if len(self._gathered) < len(self._rows):
            self._gathered = np.empty((len(self._rows), self.centres.shape[1]), np.float32)
        self._w = self._gathered[: len(self._rows)]
        kernels.gather_rows(self.centres, self._rows, self._w)
        self._scales, self._b = self._inverse[self._rows], self.bias[self._rows]

    def similarities(self, x: np.ndarray, labels: np.ndarray) -> np.ndarray:
        if self._buffer.shape != (len(x), len(self._rows)):
            self._buffer = np.empty((len(x), len(self._rows)), np.float32)
        np.dot(x, self._w.T, out=self._buffer)
        self._x = x
        self._columns = target_columns(labels, self.start, self.stop, self.sub_centres, self._classes)
        batch = np.flatnonzero(self._columns >= 0)
        candidates = self._columns[batch, None] + np.arange(self.sub_centres)
        values = self._buffer[batch[:, None], candidates] * self._scales[candidates] + self._b[candidates]
        nearest, target = values.argmax(axis=1), np.zeros(len(x), np.float32)
        self._columns[batch] += nearest
        target[batch] = values[np.arange(len(batch)), nearest]
        return target

    def statistics(self, target_logits: np.ndarray) -> np.ndarray:
        statistics = np.empty((len(self._buffer), 2))
        kernels.row_statistics(self._buffer, self._scales, self._b, self.scale, self.sub_centres, self._columns,
                               target_logits.astype(np.float32), statistics)
        return statistics

    def gradient(self, row_factors: np.ndarray, target_gradients: np.ndarray) -> np.ndarray:
        kernels.similarity_gradient(self._buffer, self._scales, self.scale, row_factors.astype(np.float32),
                                    self._columns, target_gradients.astype(np.float32))
        return np.dot(self._buffer, self._w)

    def update(self, sgd: SGD, replicas: Communicator) -> None:
        lr, mu, wd = (np.float32(value) for value in sgd)
        for low in range(0, len(self._rows), CHUNK):
            part = slice(low, low + CHUNK)
            gradient, rows = replicas.all_reduce(np.dot(self._buffer[:, part].T, self._x)), self._rows[part]
            kernels.update_centres(self.centres, self.momentum, rows, gradient, self._inverse, self.normalised,
                                   lr, mu, wd)
            self._renew_norms(rows)
        if self.with_bias:
            gradient = replicas.all_reduce(self._buffer.sum(axis=0))
            step = mu * self.bias_momentum[self._rows] - lr * (gradient + wd * self.bias[self._rows])
            self.bias_momentum[self._rows] = step
            self.bias[self._rows] += step
