# SPDX-License-Identifier: Apache-2.0
"""A shard on any MXNet context: the same steps as :mod:`recognition.engines.cpu.shard`, in MXNet's operators."""
from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import numpy as np

from recognition.engines.mxnet.imports import mx
from recognition.engines.mxnet.optimisers import readable
from recognition.engines.sizes import MXNET_ROWS_A_CHUNK
from recognition.errors import UserError
from recognition.head.sampling import ClassSampler
from recognition.head.shard import (
    EPSILON,
    ROWS_AT_ONCE,
    SGD,
    ShardState,
    initial_centres,
    initial_pieces,
    norm_range,
    rows_of,
    target_columns,
)
from recognition.io.mapped import ReadAhead, advise, host_zeros
from recognition.optim.adamw import AdamWStep
from recognition.processes.communicator import Communicator


class MxnetShard:
    """Implements :class:`recognition.head.shard.Shard` on the device ``context``.

    With ``on_host`` W and its momentum stay in the host's memory. A step on a sample of the classes moves its rows to
    the device and back, so a shard may be many times as large as the device's memory. With ``folder``, too, they are in
    mapped files there.
    """

    startup_line = ""
    queues_draws = False

    def __init__(self, context: mx.Context, start: int, stop: int, dim: int, *, normalised: bool, scale: float,
                 sub_centres: int = 1, with_bias: bool = False, seed: int = 0, ceiling: float = np.inf,
                 on_host: bool = False, folder: Path | None = None) -> None:
        if start == stop:  # MXNet has no empty arrays
            raise UserError(f"devices: found more shards than the {start} identities, expected at least one for each "
                            f"GPU; {context} would have none")
        self.context, self.on_host = context, on_host
        self.start, self.stop = start, stop
        self.normalised, self.scale, self.sub_centres, self.with_bias = normalised, scale, sub_centres, with_bias
        self.ceiling = ceiling
        self._folder, self._read_ahead = folder, ReadAhead()
        rows = (stop - start) * sub_centres
        if on_host:
            centres = self._zeros(rows, dim)
            for part, values in initial_pieces(seed, start, stop, sub_centres, dim):
                centres[part] = values
        else:
            centres = self._array(initial_centres(seed, start, stop, sub_centres, dim))
        self._stored: tuple[Any, ...] = centres, self._zeros(rows, dim), self._zeros(rows), self._zeros(rows)
        self._squares: list[mx.nd.NDArray] = []  # sums of squares of the centres of the last update
        self._second: tuple[Any, ...] = ()  # moments of AdamW, of the centres and of their bias
        self.select(None)

    def _array(self, values: np.ndarray, dtype: str = "float32") -> mx.nd.NDArray:
        return mx.nd.array(values, ctx=self.context, dtype=dtype)

    def _zeros(self, rows: int, *dim: int) -> Any:
        """An array of the shard where its arrays are; of those on a disk only W and its moments."""
        if self.on_host:
            return host_zeros((rows, *dim), np.float32, self._folder if dim else None)
        return mx.nd.zeros((rows, *dim), ctx=self.context)

    def _on_disk(self) -> list[np.ndarray]:
        """W and its moments, if they are in mapped files."""
        return [*self._stored[:2], *self._second[:1]] if self._folder else []

    def state(self) -> ShardState:
        advise(self._on_disk(), in_order=True)
        arrays = *self._stored, *self._second
        return ShardState(*(arrays if self.on_host else (array.asnumpy() for array in arrays)))

    def load(self, state: ShardState, first: int | None = None) -> None:
        low = 0 if first is None else (first - self.start) * self.sub_centres
        if len(state.second_moment):
            self._need_second_moments()
        for own, values in zip((*self._stored, *self._second), state):
            if len(values):
                own[low : low + len(values)] = values if self.on_host else self._array(values)
        self._squares = []

    @property
    def finite(self) -> bool:
        return all(bool(np.isfinite(part.asscalar())) for part in self._squares)

    def norms(self) -> tuple[float, float]:
        centres, step = self._stored[0], ROWS_AT_ONCE
        parts = (centres[low : min(low + step, len(centres))] for low in range(0, len(centres), step))
        return norm_range(part if self.on_host else part.asnumpy() for part in parts)

    def _need_second_moments(self) -> None:
        self._second = self._second or tuple(self._zeros(*self._stored[i].shape) for i in (0, 2))

    def expect(self, classes: np.ndarray | None) -> None:
        if self._folder and classes is not None:
            self._read_ahead(self._on_disk(), rows_of(classes, self.start, self.sub_centres))

    def draw(self, sampler: ClassSampler, labels: np.ndarray, step: int) -> np.ndarray | None:
        return sampler(labels, step, self.start, self.stop)

    def select(self, classes: np.ndarray | None) -> None:
        self._classes, self._whole = classes, classes is None and not self.on_host
        if self._whole:
            self._w, self._m, self._bias, self._bias_m = self._stored
        else:
            chosen = np.arange(self.start, self.stop) if classes is None else classes
            self._host_rows = rows_of(chosen, self.start, self.sub_centres)
            self._rows = self._array(self._host_rows, "int64")
            self._w, self._m, self._bias, self._bias_m = (self._taken(array) for array in self._stored)
        self._inverse = mx.nd.ones(self._w.shape[0], ctx=self.context)
        if self.normalised:
            squares = self._scratch(self._w.shape[1])
            for rows in self._chunks():
                w = self._w[rows]
                norms = mx.nd.square(w, out=squares(*w.shape)).sum(axis=1)
                self._inverse[rows] = mx.nd.rsqrt(norms + float(EPSILON))

    def _taken(self, array: Any) -> mx.nd.NDArray:
        """The selected rows of a stored array, on the device."""
        return self._array(array[self._host_rows]) if self.on_host else array.take(self._rows)

    def _put_back(self, *second: mx.nd.NDArray) -> None:
        parts = self._w, self._m, self._bias, self._bias_m, *second
        for array, part in zip((*self._stored, *self._second), parts):
            if self.on_host:
                array[self._host_rows] = part.asnumpy()
            else:
                mx.nd.contrib.index_copy(array, self._rows, part, out=array)

    def _chunks(self) -> list[slice]:
        """The selected rows in pieces whose temporaries are small beside W."""
        rows = self._w.shape[0]
        return [slice(low, min(low + MXNET_ROWS_A_CHUNK, rows)) for low in range(0, rows, MXNET_ROWS_A_CHUNK)]

    def _scratch(self, columns: int) -> Callable[[int, int], mx.nd.NDArray]:
        """One buffer for the same temporary of all chunks. MXNet runs whatever is ready: if each chunk had its own
        buffer, those of all chunks would be computed first and together be as large as W."""
        buffer = mx.nd.empty(min(MXNET_ROWS_A_CHUNK, self._w.shape[0]) * columns, ctx=self.context)
        return lambda *shape: buffer[: int(np.prod(shape))].reshape(shape)

    def similarities(self, x: np.ndarray, labels: np.ndarray) -> np.ndarray:
        rows, k = self._w.shape[0], self.sub_centres
        self._x = self._array(x)
        self._z = mx.nd.FullyConnected(self._x, self._w, num_hidden=rows, no_bias=True, flatten=False)
        first = target_columns(labels, self.start, self.stop, k, self._classes)
        inside = first >= 0
        columns = np.maximum(first, 0)[:, None] + np.arange(k)
        batch = np.repeat(np.arange(len(x)), k)
        index = self._array(np.stack([batch, columns.ravel()]), "int32")
        flat = self._array(columns.ravel(), "int32")
        values = mx.nd.gather_nd(self._z, index) * self._inverse.take(flat) + self._bias.take(flat)
        values = values.asnumpy().reshape(-1, k)
        nearest = values.argmax(axis=1)
        here = np.flatnonzero(inside)
        self._here = here
        self._class = self._array(np.stack([np.repeat(here, k), columns[here].ravel()]), "int32")
        self._target = self._array(np.stack([here, columns[here, nearest[here]]]), "int32")
        return np.where(inside, values[np.arange(len(x)), nearest], np.float32(0)).astype(np.float32)

    def _put(self, index: mx.nd.NDArray, values: np.ndarray) -> None:
        if index.shape[1]:
            mx.nd._internal._scatter_set_nd(lhs=self._z, rhs=self._array(values), indices=index, shape=self._z.shape,
                                            out=self._z)

    def statistics(self, target_logits: np.ndarray) -> np.ndarray:
        z, k = self._z, self.sub_centres
        mx.nd.broadcast_mul(z, (self._inverse * self.scale).expand_dims(0), out=z)
        mx.nd.broadcast_add(z, self._bias.expand_dims(0), out=z)
        if len(self._here):
            self._put(self._class, np.full(self._class.shape[1], -np.inf))
        if k > 1:
            grouped = z.reshape((z.shape[0], -1, k))
            nearest = mx.nd.one_hot(grouped.argmax(axis=2), k)
            self._z = z = mx.nd.where(nearest, grouped, mx.nd.full(grouped.shape, -np.inf, ctx=self.context)).reshape(
                z.shape)
        if self.ceiling < np.inf:  # a comparison writes ones and zeros of z's type: no second buffer stays
            self._z = z = mx.nd.where(z > self.ceiling, mx.nd.full(z.shape, -np.inf, ctx=self.context), z)
        if len(self._here):
            self._put(self._target, target_logits[self._here])
        highest = z.max(axis=1, keepdims=True)
        mx.nd.broadcast_sub(z, highest, out=z)
        mx.nd.exp(z, out=z)
        total = z.sum(axis=1)
        self._highest = highest.asnumpy()[:, 0].astype(np.float64)
        return np.stack([self._highest, total.asnumpy()], axis=1)

    def gradient(self, log_sums: np.ndarray, count: int, target_gradients: np.ndarray) -> np.ndarray:
        z = self._z
        factors = self._array(np.exp(self._highest - log_sums) / count * self.scale)
        mx.nd.broadcast_mul(z, factors.expand_dims(1), out=z)
        if len(self._here):
            self._put(self._target, target_gradients[self._here])
        mx.nd.broadcast_mul(z, self._inverse.expand_dims(0), out=z)
        return mx.nd.dot(z, self._w).asnumpy()

    def target_norms(self) -> tuple[np.ndarray, np.ndarray]:
        norms, biases = np.zeros((2, len(self._x)))
        if len(self._here):
            columns = self._target[1]
            norms[self._here] = mx.nd.norm(self._w.take(columns), axis=1).asnumpy()
            biases[self._here] = self._bias.take(columns).asnumpy()
        return norms, biases

    def sum_of_centres(self) -> np.ndarray:
        total, products = np.zeros(self._w.shape[1]), self._scratch(self._w.shape[1])
        for rows in self._chunks():
            w = self._w[rows]
            units = mx.nd.broadcast_mul(w, self._inverse[rows].expand_dims(1), out=products(*w.shape))
            total += units.sum(axis=0).asnumpy()
        bias = self._bias.asnumpy().sum(dtype=np.float64)
        return np.append(total, [bias, self._w.shape[0] // self.sub_centres])

    def update(self, optimiser: SGD | AdamWStep, replicas: Communicator, measure: bool = False,
               also: np.ndarray | None = None) -> float:
        second: tuple[Any, ...] = ()
        squares = 0.0
        if isinstance(optimiser, AdamWStep):
            self._need_second_moments()
            second = self._second if self._whole else tuple(map(self._taken, self._second))
        logits, gradients, products = map(self._scratch, (len(self._z), self._w.shape[1], self._w.shape[1]))
        for rows in self._chunks():
            w = self._w[rows]
            z = mx.nd.slice_axis(self._z, 1, rows.start, rows.stop, out=logits(len(self._z), len(w)))
            gradient = mx.nd.dot(z, self._x, transpose_a=True, out=gradients(*w.shape))
            if also is not None:
                gradient += mx.nd.dot(self._inverse[rows].expand_dims(1), self._array(also[None, :-1]))
            replicas.sum_in_place(f"centres {self.start} {rows.start}", [gradient])
            if self.normalised:
                product = mx.nd.elemwise_mul(gradient, w, out=products(*w.shape))
                along = product.sum(axis=1) * mx.nd.square(self._inverse[rows])
                gradient -= mx.nd.broadcast_mul(w, along.expand_dims(1), out=product)
            if measure:  # by rows first: one long sum of float32 numbers would lose digits
                squares += float(mx.nd.square(gradient, out=products(*w.shape)).sum(axis=1).asnumpy().sum(dtype=float))
            _step(optimiser, w, gradient, self._m[rows], *(array[rows] for array in second[:1]))
        if self.with_bias:
            gradient = self._z.sum(axis=0) + (0.0 if also is None else float(also[-1]))
            replicas.sum_in_place(f"bias {self.start}", [gradient])
            _step(optimiser, self._bias, gradient, self._bias_m, *second[1:])
        self._squares = [mx.nd.multi_sum_sq(array, num_arrays=1)
                         for array in (self._w, self._bias)[: 1 + self.with_bias]]
        if not self._whole:
            self._put_back(*second)
        return squares


def _step(optimiser: SGD | AdamWStep, w: mx.nd.NDArray, gradient: mx.nd.NDArray, *moments: mx.nd.NDArray) -> None:
    """Update an array and its moments, two with AdamW, in place."""
    if isinstance(optimiser, AdamWStep):
        _, wd, beta1, beta2, factor, eps, _ = optimiser
        mx.nd.contrib.adamw_update(w, gradient, *moments, 1.0, lr=factor, eta=readable(optimiser.lr), wd=readable(wd),
                                   beta1=readable(beta1), beta2=readable(beta2), epsilon=eps, out=w)
    else:
        lr, mu, wd = map(readable, optimiser[:3])
        mx.nd.sgd_mom_update(w, gradient, *moments, out=w, lr=lr, wd=wd, momentum=mu)
