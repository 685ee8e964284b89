# SPDX-License-Identifier: Apache-2.0
"""A shard in host memory: the passes of :mod:`recognition.engines.cpu.kernels` over W, its momentum and one buffer."""
from __future__ import annotations

import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable

import numba
import numpy as np

from recognition.engines.cpu import kernels
from recognition.engines.cpu.adamw_kernel import update_centres_adamw
from recognition.engines.sizes import ROWS_A_PIECE
from recognition.head.sampling import ClassSampler
from recognition.head.shard import (
    NO_MOMENTS,
    ROWS_AT_ONCE,
    SGD,
    ShardState,
    initial_pieces,
    merged_statistics,
    norm_range,
    rows_of,
    target_columns,
)
from recognition.io.mapped import ReadAhead, advise, host_zeros
from recognition.optim.adamw import AdamWStep
from recognition.processes.communicator import Communicator

PIECES_AN_EXCHANGE = 16  # pieces of a gradient that are summed over processes at once
Step = Callable[[int, int, np.ndarray], None]  # of the selected rows low .. high - 1 by their gradient


class CpuShard:
    """Implements :class:`recognition.head.shard.Shard`; holds W, its momentum and one (rows, B) buffer.

    Its rows are cut into groups (:func:`kernels.bounds_of`), which NUMBA_NUM_THREADS threads take one after the other.
    A step on a sample of the classes reads and updates their centres in place. With ``folder`` W and its moments are in
    mapped files there.
    """

    startup_line = ""
    queues_draws = False

    def __init__(self, start: int, stop: int, dim: int, *, normalised: bool, scale: float, sub_centres: int = 1,
                 with_bias: bool = False, seed: int = 0, ceiling: float = np.inf, folder: Path | None = None) -> None:
        self.start, self.stop = start, stop
        self.normalised, self.scale, self.sub_centres = normalised, np.float32(scale), sub_centres
        self.with_bias, self.ceiling = with_bias, np.float32(ceiling)
        self._threads = ThreadPoolExecutor(numba.config.NUMBA_NUM_THREADS)
        self._folder, self._read_ahead = folder, ReadAhead()
        self.centres, self.momentum = (host_zeros(((stop - start) * sub_centres, dim), np.float32, folder)
                                       for _ in range(2))
        for rows, values in initial_pieces(seed, start, stop, sub_centres, dim):
            self.centres[rows] = values
        self.bias, self.bias_momentum = np.zeros((2, len(self.centres)), np.float32)
        self.second_moment = self.bias_second_moment = NO_MOMENTS
        self._inverse = np.ones(len(self.centres), np.float32)
        self.finite = True
        self._all_rows = np.arange(len(self.centres))
        self._renew_norms(0, len(self.centres))
        self._logits = np.empty((0, 0), np.float32)
        self.select(None)

    def _on_disk(self) -> list[np.ndarray]:
        """W and its moments, if they are in mapped files."""
        return [self.centres, self.momentum, *[self.second_moment] * bool(self.second_moment.size)
                ] if self._folder else []

    def state(self) -> ShardState:
        advise(self._on_disk(), in_order=True)
        return ShardState(self.centres, self.momentum, self.bias, self.bias_momentum, self.second_moment,
                          self.bias_second_moment)

    def load(self, state: ShardState, first: int | None = None) -> None:
        low = 0 if first is None else (first - self.start) * self.sub_centres
        if len(state.second_moment):
            self._need_second_moments()
        for own, values in zip(self.state(), state):
            if len(values):
                own[low : low + len(values)] = values
        self.finite = True  # states are
        self._renew_norms(low, low + len(state.centres))

    def norms(self) -> tuple[float, float]:
        return norm_range(self.centres[low : low + ROWS_AT_ONCE] for low in range(0, len(self.centres), ROWS_AT_ONCE))

    def _renew_norms(self, low: int, high: int) -> None:
        if self.normalised:
            kernels.inverse_norms(self.centres[low:high], self._inverse[low:high])

    def _each(self, work: Callable[[int, int, int], Any]) -> None:
        """Run ``work(group, low, high)`` for every group of the selected rows, on several threads."""
        groups = range(len(self._bounds) - 1)
        run: Callable[..., Iterable[Any]] = map if len(groups) == 1 else self._threads.map
        for _ in run(work, groups, self._bounds[:-1], self._bounds[1:]):
            pass

    def expect(self, classes: np.ndarray | None) -> None:
        if self._folder and classes is not None:
            self._read_ahead(self._on_disk(), rows_of(classes, self.start, self.sub_centres))

    def draw(self, sampler: ClassSampler, labels: np.ndarray, step: int) -> np.ndarray | None:
        return sampler(labels, step, self.start, self.stop)

    def select(self, classes: np.ndarray | None) -> None:
        self._classes = classes
        self._rows, self._scales, self._b = self._all_rows, self._inverse, self.bias
        if classes is not None:
            self._rows = rows_of(classes, self.start, self.sub_centres)
            self._scales, self._b = self._inverse[self._rows], self.bias[self._rows]
        self._bounds = kernels.bounds_of(len(self._rows), self.sub_centres)

    def similarities(self, x: np.ndarray, labels: np.ndarray) -> np.ndarray:
        batch, dim = x.shape
        self._x = np.zeros((kernels.padded(batch), dim), np.float32)
        self._x[:batch] = x
        self._identity = np.arange(max(*self._x.shape, ROWS_A_PIECE))
        self._columns = target_columns(labels, self.start, self.stop, self.sub_centres, self._classes)
        here = np.flatnonzero(self._columns >= 0)
        candidates = self._columns[here, None] + np.arange(self.sub_centres)
        values = np.empty(candidates.shape, np.float32)
        kernels.similarities_at(self._x[here], self.centres, self._rows[candidates], values)
        values = values * self._scales[candidates] + self._b[candidates]
        nearest, target = values.argmax(axis=1), np.zeros(batch, np.float32)
        self._columns[here] += nearest
        target[here] = values[np.arange(len(here)), nearest]
        return target

    def statistics(self, target_logits: np.ndarray) -> np.ndarray:
        if self._logits.shape != (len(self._rows), len(self._x)):
            self._logits = np.empty((len(self._rows), len(self._x)), np.float32)
        blocks, targets = kernels.column_blocks(self._x.T), target_logits.astype(np.float32)
        groups = np.empty((len(self._bounds) - 1, 2, len(self._x)))
        scratch = np.empty((len(groups), 3, len(self._x)), np.float32)
        self._each(lambda group, low, high: kernels.logit_statistics(
            self.centres, self._rows, blocks, self._scales, self._b, self.scale, self.sub_centres, self.ceiling,
            self._columns, targets, low, high, self._identity, self._logits, scratch[group], groups[group]))
        return merged_statistics(*groups[:, :, : len(targets)].transpose(1, 0, 2))

    def gradient(self, log_sums: np.ndarray, count: int, target_gradients: np.ndarray) -> np.ndarray:
        ends = np.full(len(self._x), np.inf, np.float32)
        ends[: len(log_sums)] = log_sums
        targets, factor = target_gradients.astype(np.float32), np.float32(self.scale / count)
        parts = np.empty((len(self._bounds) - 1, *self._x.shape), np.float32)
        self._each(lambda group, low, high: kernels.feature_gradient(
            self.centres, self._rows, self._scales, factor, ends, self._columns, targets, low, high, self._identity,
            self._logits, parts[group]))
        return parts.sum(axis=0)[: len(log_sums)]

    def target_norms(self) -> tuple[np.ndarray, np.ndarray]:
        norms, biases = np.zeros((2, len(self._columns)))
        here = np.flatnonzero(self._columns >= 0)
        centres = self.centres[self._rows[self._columns[here]]].astype(np.float64)
        norms[here] = np.sqrt(np.einsum("nd,nd->n", centres, centres))
        biases[here] = self._b[self._columns[here]]
        return norms, biases

    def sum_of_centres(self) -> np.ndarray:
        parts = np.zeros((len(self._bounds) - 1, self.centres.shape[1]))

        def add(group: int, low: int, high: int) -> None:
            for first in range(low, high, ROWS_A_PIECE):
                place = slice(first, min(first + ROWS_A_PIECE, high))
                units = self.centres[self._rows[place]] * self._scales[place, None]
                parts[group] += units.sum(axis=0, dtype=np.float64)

        self._each(add)
        bias = self._b.sum(dtype=np.float64)
        return np.append(parts.sum(axis=0), [bias, len(self._rows) // self.sub_centres])

    def update(self, optimiser: SGD | AdamWStep, replicas: Communicator, measure: bool = False,
               also: np.ndarray | None = None) -> float:
        step, step_bias = self._adamw(optimiser) if isinstance(optimiser, AdamWStep) else self._sgd(optimiser)
        squares: list[float] = []  # of the pieces, if they are asked for
        if measure:
            step = self._measured(step, squares)
        blocks = kernels.column_blocks(self._x)

        def gradient(low: int, high: int) -> np.ndarray:
            part = np.empty((high - low, self._x.shape[1]), np.float32)
            kernels.centre_gradients(self._logits[low:high], blocks, self._identity, part)
            if also is not None:
                part += self._scales[low:high, None] * also[:-1].astype(np.float32)
            return part

        def whole_group(_: int, low: int, high: int) -> None:
            for first in range(low, high, ROWS_A_PIECE):
                last = min(first + ROWS_A_PIECE, high)
                step(first, last, gradient(first, last))

        if replicas.size == 1:
            self._each(whole_group)
        else:
            self._step_together(gradient, step, replicas)
        if self.with_bias:
            of_bias = self._logits.sum(axis=1)
            step_bias(replicas.all_reduce(of_bias if also is None else of_bias + np.float32(also[-1])))
        return math.fsum(squares)

    def _measured(self, step: Step, squares: list[float]) -> Step:
        """A ``step`` that first appends the sum of the squares of the gradient through the norm to ``squares``."""

        @np.errstate(over="ignore", invalid="ignore")  # of an update that may overflow
        def measured(low: int, high: int, part: np.ndarray) -> None:
            rows, gradient = self._rows[low:high], part
            if self.normalised:
                centres = self.centres[rows]
                along = np.einsum("nd,nd->n", part, centres) * np.square(self._inverse[rows])
                gradient = part - along[:, None] * centres
            squares.append(float(np.vdot(gradient, gradient)))
            step(low, high, part)

        return measured

    def _sgd(self, sgd: SGD) -> tuple[Step, Callable[[np.ndarray], None]]:
        """SGD's steps of centres and of their bias."""
        lr, mu, wd = (np.float32(value) for value in sgd[:3])

        def step(low: int, high: int, part: np.ndarray) -> None:
            if kernels.update_centres(self.centres, self.momentum, self._rows[low:high], part, self._inverse,
                                      self.normalised, lr, mu, wd):
                self.finite = False

        @np.errstate(over="ignore", invalid="ignore")
        def step_bias(gradient: np.ndarray) -> None:
            move = mu * self.bias_momentum[self._rows] - lr * (gradient + wd * self.bias[self._rows])
            self.bias_momentum[self._rows] = move
            self.bias[self._rows] += move
            self.finite &= bool(np.isfinite(self.bias[self._rows]).all())

        return step, step_bias

    def _adamw(self, adamw: AdamWStep) -> tuple[Step, Callable[[np.ndarray], None]]:
        """AdamW's steps of centres and of their bias."""
        self._need_second_moments()
        lr, wd, beta1, beta2, factor, eps, _ = adamw
        numbers = tuple(np.float32(value) for value in (beta1, beta2, lr * factor, eps, lr * wd))

        def step(low: int, high: int, part: np.ndarray) -> None:
            if update_centres_adamw(self.centres, self.momentum, self.second_moment, self._rows[low:high], part,
                                    self._inverse, self.normalised, *numbers):
                self.finite = False

        def step_bias(gradient: np.ndarray) -> None:  # as centres of one number that are not normalised
            if update_centres_adamw(self.bias[:, None], self.bias_momentum[:, None], self.bias_second_moment[:, None],
                                    self._rows, gradient[:, None], self._inverse, False, *numbers):
                self.finite = False

        return step, step_bias

    def _need_second_moments(self) -> None:
        if len(self.second_moment) != len(self.centres):
            self.second_moment = host_zeros(self.centres.shape, np.float32, self._folder)
            self.bias_second_moment = np.zeros_like(self.bias)

    def _step_together(self, gradient: Callable[[int, int], np.ndarray], step: Step,
                       replicas: Communicator) -> None:
        """Take ``step`` on the sum of all replicas' gradients; an exchange is of PIECES_AN_EXCHANGE pieces."""
        for first in range(0, len(self._rows), ROWS_A_PIECE * PIECES_AN_EXCHANGE):
            lows = np.arange(first, min(first + ROWS_A_PIECE * PIECES_AN_EXCHANGE, len(self._rows)), ROWS_A_PIECE)
            highs = np.minimum(lows + ROWS_A_PIECE, len(self._rows))
            parts = replicas.all_reduce(np.concatenate(list(self._threads.map(gradient, lows, highs))))
            list(self._threads.map(step, lows, highs, np.split(parts, lows[1:] - first)))
