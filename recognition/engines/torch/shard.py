# SPDX-License-Identifier: Apache-2.0
"""A shard on any device of PyTorch's: chunks of classes, whose logits are computed twice and never kept.

The gradient by the features is attention: queries x, keys and values W. The first pass over W (``statistics``) sums for
each row the exponentials and the centres weighted by them, against the largest logit so far (Milakov and Gimelshein,
arXiv 1805.02867); ``gradient`` is then work on (B, D) alone. The second pass (``update``) computes a chunk's logits
again, its part of the gradient of W, and updates it. So no array has B x C or, W and its moments apart, C x D numbers.

Targets are kept out of the sums, and enter them as float64 numbers of the host, so where p is nearly 1 ``1 - p`` keeps
the digits of the other logits. These are off by up to 4e-6 a rounding near 64, and there are three (a unit vector's,
its product's, the logit's): where all classes share them 1.2e-5 of ``1 - p`` was found, 7e-6 where they do not, and
norms in float64 changed neither. Less would need products in float64, of which GPUs do few.

PyTorch computes a shape's products with the same bits each time, so a run that goes on gets the same W.
"""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from recognition.engines.sizes import TORCH_ROWS_A_CHUNK
from recognition.engines.torch.chunks import Chunk, Given, Targets, Weights, product
from recognition.engines.torch.imports import torch
from recognition.engines.torch.rounding import random_words
from recognition.engines.torch.sampling import DeviceSample, drawn
from recognition.engines.torch.shard_steps import lengths, step
from recognition.engines.torch.stored_rows import Fetched, StoredRows
from recognition.head.rounding import key_of
from recognition.head.sampling import ClassSampler
from recognition.head.shard import (
    EPSILON,
    ROWS_AT_ONCE,
    SGD,
    ShardState,
    initial_pieces,
    merged_statistics,
    rows_of,
    target_columns,
)
from recognition.optim.adamw import AdamWStep
from recognition.processes.communicator import Communicator

MINUS_INFINITY = float("-inf")


class TorchShard:
    """Implements :class:`recognition.head.shard.Shard` on ``device``.

    With ``on_host`` W and its moments stay in the host's memory, with ``folder``, too, in mapped files there, and their
    rows travel chunk by chunk: those of a sample alone if there is one. With ``in_16_bits`` they are bfloat16, and
    rounded at random (:mod:`recognition.head.rounding`); states hold the same numbers as float32.
    """

    _drawn = staticmethod(drawn)

    def __init__(self, device: torch.device, start: int, stop: int, dim: int, *, normalised: bool, scale: float,
                 sub_centres: int = 1, with_bias: bool = False, seed: int = 0, ceiling: float = np.inf,
                 on_host: bool = False, in_16_bits: bool = False, folder: Path | None = None) -> None:
        self.device, self.on_host = device, on_host
        self.start, self.stop = start, stop
        self.normalised, self.scale, self.sub_centres = normalised, float(scale), sub_centres
        self.with_bias, self.ceiling, self.seed = with_bias, float(ceiling), seed
        self._rows = StoredRows(device, on_host, (stop - start) * sub_centres, folder if on_host else None)
        # each with its moments, the second one from the first step of AdamW on
        self._centres = self._rows.zeros(2, dim, dtype=torch.bfloat16 if in_16_bits else torch.float32)
        for rows, values in initial_pieces(seed, start, stop, sub_centres, dim):
            self._centres[0][rows] = torch.from_numpy(values)
        self._bias = self._rows.zeros(2)
        self.startup_line = "class centres: bfloat16, rounded at random" if in_16_bits else ""
        self._sound = torch.ones((), dtype=torch.bool, device=device)
        self._finite = Fetched(self._sound)
        # Small kernels of a high priority get their turn beside the large ones of a step.
        self._side_stream = torch.cuda.Stream(device, priority=-1) if device.type == "cuda" else None
        self.queues_draws = self._side_stream is not None and not on_host
        self.select(None)

    @property
    def finite(self) -> bool:
        return bool(self._finite())

    def _arrays(self) -> list[torch.Tensor]:
        """All arrays, in the order of a state."""
        return [*self._centres[:2], *self._bias[:2], *self._centres[2:], *self._bias[2:]]

    def state(self) -> ShardState:
        return ShardState(*map(self._rows.as_float32, self._arrays()))

    def load(self, state: ShardState, first: int | None = None) -> None:
        low = 0 if first is None else (first - self.start) * self.sub_centres
        if len(state.second_moment):
            self._need_second_moments()
        for own, values in zip(self._arrays(), state):
            own[low : low + len(values)] = torch.from_numpy(np.array(values, np.float32))
        self._sound.fill_(True)  # states are
        self._finite = Fetched(self._sound)

    def _need_second_moments(self) -> None:
        for arrays in (self._centres, self._bias):
            if len(arrays) == 2:
                arrays += self._rows.zeros(1, *arrays[0].shape[1:], dtype=arrays[0].dtype)

    def norms(self) -> tuple[float, float]:
        parts = (part.to(self.device).float() for part in self._centres[0].split(ROWS_AT_ONCE))
        found = [lengths(part, torch.float64) for part in parts]
        if not len(self._centres[0]):
            return np.inf, 0.0
        least, most = (torch.stack([reduce(part) for part in found]) for reduce in (torch.amin, torch.amax))
        return float(least.amin()), float(most.amax())

    def expect(self, classes: Any) -> None:
        if not isinstance(classes, DeviceSample):  # whose rows are on the device
            self._rows.expect(self._rows_of(classes))

    def draw(self, sampler: ClassSampler, labels: np.ndarray, step: int) -> Any:
        """A sample on the GPU, if W is there; of NumPy otherwise."""
        if sampler.ratio >= 1 or not self.queues_draws:
            return sampler(labels, step, self.start, self.stop)
        return DeviceSample(sampler, labels, step, self.start, self.stop, self.device, self._side_stream, self._drawn)

    def select(self, classes: Any) -> None:
        self._classes = classes
        self._rows.select(self._rows_of(classes))

    def _rows_of(self, classes: Any) -> Any:
        if not isinstance(classes, DeviceSample):
            return None if classes is None else rows_of(classes, self.start, self.sub_centres)
        if self.device.type == "cuda":  # the other stream may not use their memory again too early
            classes.places.record_stream(torch.cuda.current_stream(self.device))
        if self.sub_centres == 1:
            return classes.places
        sub_centres = torch.arange(self.sub_centres, device=self.device)
        return (classes.places[:, None] * self.sub_centres + sub_centres).flatten()

    def similarities(self, x: Any, labels: np.ndarray) -> np.ndarray:
        batch, k = len(x), self.sub_centres
        self._host_side = isinstance(x, np.ndarray)
        self._x = self._rows.on_device(x.astype(np.float32, copy=False))[0] if self._host_side else x.contiguous()
        columns = target_columns(labels, self.start, self.stop, k, self._classes)
        here = np.flatnonzero(columns >= 0)
        here = here[np.argsort(columns[here], kind="stable")]
        first = columns[here]
        candidates = (first[:, None] + np.arange(k)).ravel()
        rows, batch_rows, classes = self._rows.on_device(candidates, here, (columns // k).astype(np.int32))  # -1 stays
        rows = candidates if self.on_host else rows
        units, _ = self._units(self._rows.take_at(self._centres[0], rows))
        units = units.view(len(here), k, x.shape[1])
        values = torch.linalg.vecdot(units, self._x[batch_rows].unsqueeze(1))
        if self.with_bias:
            values += self._rows.take_at(self._bias[0], rows).view(len(here), k)
        fetched = Fetched(values)
        self._begin(classes)
        found = fetched()
        nearest, order = found.argmax(axis=1), np.arange(len(here))
        places, there = self._rows.on_device(np.stack([here, first, first + nearest]), nearest)
        chosen = units[torch.arange(len(here), device=self.device), there] if k > 1 else units[:, 0]
        self._targets = Targets(here, first, first + nearest, chosen, places)
        # Without statistics, where centres have overflowed, the gradient is NaN.
        self._highest, self._weighted = np.full(batch, np.nan), self._x
        similarities = np.zeros(batch, np.float32)
        similarities[here] = found[order, nearest]
        return similarities

    def _begin(self, classes: torch.Tensor) -> None:
        """Queue what can be computed before margins are known.

        :param classes: (B,) int32, the number of the target's class among the selected ones, or -1.
        """

    def _units(self, centres: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Unit vectors and inverse norms (rows, 1) of centres (rows, D); what they are if the head does not
        normalise."""
        if not self.normalised:
            return centres, None
        units = centres.square()
        inverse = units.sum(dim=1, keepdim=True).add_(float(EPSILON)).rsqrt_()
        return torch.mul(centres, inverse, out=units), inverse

    def _chunks(self) -> Iterator[Chunk]:
        """The selected rows, in pieces of whole classes."""
        size = max(1, TORCH_ROWS_A_CHUNK[self.device.type] // self.sub_centres) * self.sub_centres
        for low in range(0, len(self._rows), size):
            high = min(low + size, len(self._rows))
            centres = self._rows.take(self._centres[0], low, high)
            units, inverse = self._units(centres)
            yield Chunk(low, high, centres, inverse, units)

    def _targets_in(self, chunk: Chunk) -> slice:
        return slice(*np.searchsorted(self._targets.first, [chunk.low, chunk.high]))

    def _logits(self, chunk: Chunk) -> torch.Tensor:
        """The logits that count, (B, rows): -inf for farther sub-centres, conflicts, and the targets' classes."""
        bias = self._rows.take(self._bias[0], chunk.low, chunk.high)
        z = product(self._x, chunk.units.T, bias, self.scale)
        classes = z.view(len(z), -1, self.sub_centres)
        if self.sub_centres > 1:
            nearest = classes.argmax(dim=2, keepdim=True)
            values = classes.gather(2, nearest)
            classes.fill_(MINUS_INFINITY).scatter_(2, nearest, values)
        if self.ceiling < np.inf:
            z.masked_fill_(z > self.ceiling, MINUS_INFINITY)
        rows, first, _ = self._targets.places[:, self._targets_in(chunk)]
        classes[rows, (first - chunk.low) // self.sub_centres] = MINUS_INFINITY
        return z

    def statistics(self, target_logits: np.ndarray) -> np.ndarray:
        highest = self._x.new_full((len(self._x),), MINUS_INFINITY)
        total = torch.zeros(len(self._x), dtype=torch.float64, device=self.device)
        weighted = torch.zeros_like(self._x)
        for chunk in self._chunks():
            z = self._logits(chunk)
            before, highest = highest, torch.maximum(highest, z.amax(dim=1))
            reference = highest.masked_fill(highest == MINUS_INFINITY, 0)  # exp(-inf - 0) is 0, -inf - -inf is NaN
            shrink = torch.exp(before - reference)
            z.sub_(reference.unsqueeze(1)).exp_()
            total.mul_(shrink).add_(z.sum(dim=1))
            weighted = product(z, chunk.units, weighted.mul_(shrink.unsqueeze(1)))
        self._weighted, (self._highest, sums) = weighted, torch.stack([highest.double(), total]).cpu().numpy()
        targets = np.full(len(target_logits), -np.inf)
        targets[self._targets.batch] = target_logits[self._targets.batch]
        with np.errstate(invalid="ignore"):
            return merged_statistics(np.stack([self._highest, targets]), np.stack([sums, np.isfinite(targets)]))

    def gradient(self, log_sums: np.ndarray, count: int, target_gradients: np.ndarray) -> Any:
        self._given = Given(log_sums, count, target_gradients)  # an update makes its weights, behind this gradient
        with np.errstate(invalid="ignore", over="ignore"):
            factor = np.exp(self._highest - log_sums) * (self.scale / count)
        factors, slopes = self._rows.on_device(*(a.astype(np.float32)[:, None] for a in (
            factor, target_gradients[self._targets.batch])))
        d_x = self._weighted * factors
        d_x.index_add_(0, self._targets.places[0], slopes * self._targets.units)
        return d_x.cpu().numpy() if self._host_side else d_x

    def target_norms(self) -> tuple[np.ndarray, np.ndarray]:
        norms, biases = np.zeros((2, len(self._x)))
        centres, bias = (self._rows.take_at(arrays[0], self._targets.nearest) for arrays in (self._centres, self._bias))
        norms[self._targets.batch] = lengths(centres, torch.float64).cpu().numpy()
        biases[self._targets.batch] = bias.cpu().numpy()
        return norms, biases

    def sum_of_centres(self) -> np.ndarray:
        total = torch.zeros(self._centres[0].shape[1], dtype=torch.float64, device=self.device)
        bias = torch.zeros((), dtype=torch.float64, device=self.device)
        for chunk in self._chunks():
            total += chunk.units.sum(dim=0, dtype=torch.float64)
            bias += self._rows.take(self._bias[0], chunk.low, chunk.high).sum(dtype=torch.float64)
        return np.append(total.cpu().numpy(), [float(bias), len(self._rows) // self.sub_centres])

    def update(self, optimiser: SGD | AdamWStep, replicas: Communicator, measure: bool = False,
               also: np.ndarray | None = None) -> float:
        if isinstance(optimiser, AdamWStep):
            self._need_second_moments()
        weights = Weights(*self._rows.on_device(*self._given.weights(self._targets.batch, self.scale)))
        weighted = self._x * weights.factor
        more = self._rows.on_device(also[:-1].astype(np.float32), also[-1:].astype(np.float32)
                                    ) if also is not None else ()
        squares = torch.zeros((), dtype=torch.float64, device=self.device)
        for chunk in self._chunks():
            p = self._logits(chunk).sub_(weights.reference).exp_()
            these = self._targets_in(chunk)
            rows, _, columns = self._targets.places[:, these]
            p[rows, columns - chunk.low] = weights.targets[these]
            gradients = [product(p.T, weighted)]
            if self.with_bias:
                gradients.append(product(p.T, weights.factor)[:, 0])
            del p
            if also is not None:
                gradients = [gradient.add_(part) for gradient, part in zip(gradients, more)]
            replicas.sum_in_place(f"centres {self.start} {chunk.low}", gradients)
            gradient = chunk.through_norm(gradients[0])
            if measure:
                squares += torch.linalg.vector_norm(gradient, dtype=torch.float64).square()
            self._step(optimiser, chunk, self._centres, chunk.centres, gradient)
            if self.with_bias:
                bias = self._rows.take(self._bias[0], chunk.low, chunk.high)
                self._step(optimiser, chunk, self._bias, bias, gradients[1])
        self._finite = Fetched(self._sound)
        return float(squares) if measure else 0.0

    def _step(self, optimiser: SGD | AdamWStep, chunk: Chunk, arrays: list[torch.Tensor], values: torch.Tensor,
              gradient: torch.Tensor) -> None:
        """Update a chunk's ``values``, of the first of ``arrays``, and their moments, the others."""
        arrays = arrays[: 3 if isinstance(optimiser, AdamWStep) else 2]
        parts = [values, *(self._rows.take(array, chunk.low, chunk.high) for array in arrays[1:])]
        step(optimiser, values, gradient, *parts[1:])
        bits = self._random_bits(optimiser, chunk, arrays)
        for array, part, random in zip(arrays, parts, bits):
            self._rows.put(array, chunk.low, chunk.high, part, random)
        self._sound &= (lengths(values.view(len(values), -1)).square() < np.inf).all()

    def _random_bits(self, optimiser: SGD | AdamWStep, chunk: Chunk,
                     arrays: list[torch.Tensor]) -> list[torch.Tensor | None]:
        """What a chunk's numbers are rounded by, for each of ``arrays``; None for float32."""
        if arrays[0].dtype == torch.float32:
            return [None] * len(arrays)
        rows = self._rows.numbers(chunk.low, chunk.high).to(self.device) + self.start * self.sub_centres
        words, dim = random_words(key_of(self.seed, optimiser.updates), rows, arrays[0].shape[1]), arrays[0].shape[1]
        if len(arrays) == 2:
            return [words, words >> 16]
        return [words, words >> 16, random_words(key_of(self.seed, optimiser.updates, 1), rows, dim)]
