# SPDX-License-Identifier: Apache-2.0
"""A shard in host memory: NumPy's BLAS for the three products, Numba loops for what lies between them."""
from __future__ import annotations

import numpy as np

from recognition.parallel import kernels
from recognition.parallel.shard import SGD, ShardState, initial_centres, target_columns

CHUNK = 4096  # rows whose gradient is held at once: 8 MB at D = 512, so that it stays near the processor


class CpuShard:
    """Implements :class:`recognition.parallel.shard.Shard`; holds W, its momentum and one (B, rows) buffer."""

    def __init__(self, start: int, stop: int, dim: int, *, normalised: bool, scale: float, sub_centres: int = 1,
                 with_bias: bool = False, seed: int = 0) -> None:
        self.start, self.stop = start, stop
        self.normalised, self.scale, self.sub_centres = normalised, np.float32(scale), sub_centres
        self.with_bias = with_bias
        centres = initial_centres(seed, start, stop, sub_centres, dim)
        rows = len(centres)
        self.load(ShardState(centres, np.zeros_like(centres), np.zeros(rows, np.float32), np.zeros(rows, np.float32)))
        self._buffer = np.empty((0, rows), np.float32)

    def state(self) -> ShardState:
        return ShardState(self.centres, self.momentum, self.bias, self.bias_momentum)

    def load(self, state: ShardState) -> None:
        arrays = (np.ascontiguousarray(array, np.float32) for array in state)
        self.centres, self.momentum, self.bias, self.bias_momentum = arrays
        self._inverse = np.ones(len(self.centres), np.float32)
        self._renew_norms(slice(None))

    def _renew_norms(self, part: slice) -> None:
        if self.normalised:
            kernels.inverse_norms(self.centres[part], self._inverse[part])

    def similarities(self, x: np.ndarray, labels: np.ndarray) -> np.ndarray:
        if len(self._buffer) != len(x):
            self._buffer = np.empty((len(x), len(self.centres)), np.float32)
        np.dot(x, self.centres.T, out=self._buffer)
        self._x = x
        first = target_columns(labels, self.start, self.stop, self.sub_centres)
        rows = np.flatnonzero(first >= 0)
        candidates = first[rows, None] + np.arange(self.sub_centres)
        values = self._buffer[rows[:, None], candidates] * self._inverse[candidates] + self.bias[candidates]
        nearest = values.argmax(axis=1)
        self._columns, target = first, np.zeros(len(x), np.float32)
        self._columns[rows] = candidates[np.arange(len(rows)), nearest]
        target[rows] = values[np.arange(len(rows)), nearest]
        return target

    def statistics(self, target_logits: np.ndarray) -> np.ndarray:
        statistics = np.empty((len(self._buffer), 2))
        kernels.row_statistics(self._buffer, self._inverse, self.bias, self.scale, self.sub_centres, self._columns,
                               target_logits.astype(np.float32), statistics)
        return statistics

    def gradient(self, row_factors: np.ndarray, target_gradients: np.ndarray) -> np.ndarray:
        kernels.similarity_gradient(self._buffer, self._inverse, self.scale, row_factors.astype(np.float32),
                                    self._columns, target_gradients.astype(np.float32))
        return np.dot(self._buffer, self.centres)

    def update(self, sgd: SGD) -> None:
        lr, mu, wd = (np.float32(value) for value in sgd)
        for low in range(0, len(self.centres), CHUNK):
            part = slice(low, low + CHUNK)
            gradient = np.dot(self._buffer[:, part].T, self._x)
            kernels.update_centres(self.centres[part], self.momentum[part], gradient, self._inverse[part],
                                   self.normalised, lr, mu, wd)
            self._renew_norms(part)
        if self.with_bias:
            self.bias_momentum *= mu
            self.bias_momentum -= lr * (self._buffer.sum(axis=0) + wd * self.bias)
            self.bias += self.bias_momentum
