# SPDX-License-Identifier: Apache-2.0
"""The head in closed form: logits, margin, softmax over all shards, gradients and update, without an autograd graph.

One step, with B features in the global batch and C_i classes in shard i (docs/architecture.md has the whole): features
and labels are gathered. Every shard computes its (B, C_i) similarities. Three numbers a row (maximum, sum of
exponentials, the target's logit) are exchanged and merged as log-sum-exp. Every shard turns its buffer into the
gradient of the logits and adds its part, (B, D), to the gradient of the features, which is reduce-scattered.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Callable, NamedTuple, Protocol

import numpy as np

from recognition.head.image_margins import ImageMargins
from recognition.head.margin import Margin
from recognition.head.sampling import ClassSampler
from recognition.head.shard import EPSILON, SGD, Shard, merged_statistics
from recognition.head.smoothing import smooth
from recognition.optim.adamw import AdamW
from recognition.processes.communicator import Communicator, SingleProcess


def on_host(array: Any) -> np.ndarray:
    """An array of NumPy, or an engine's array on any device, as NumPy's."""
    return array if isinstance(array, np.ndarray) else array.cpu().numpy()


def roots(array: Any) -> Any:
    """The square root of each number of an array of NumPy or of an engine."""
    return np.sqrt(array) if isinstance(array, np.ndarray) else array.sqrt()


class HeadResult(NamedTuple):
    """Loss and accuracy over the global batch, and the gradient of the mean loss by this process's features."""

    loss: float  # mean cross entropy over all classes, in nats
    accuracy: float  # share of rows whose target, with its margin, has the largest logit
    d_features: Any  # (b, D) float32, where the features are


class Expected(NamedTuple):
    """The labels of a batch that is still to come, and what is made of them."""

    labels: np.ndarray  # (B,) of the global batch
    samples: Callable[[], list[Any]]  # waits for the draws; returns what each shard selects


class Head(Protocol):
    """The interface of a head for the loop."""

    @property
    def shards(self) -> Sequence[Shard]:
        """The shards of this process; none if there are no class centres."""

    def forward_backward(self, features: Any, labels: np.ndarray) -> HeadResult:
        """Loss and gradients for this process's features (b, D) float32 and labels (b,) int64.

        Features are NumPy's; or the engine's, on the device of the only shard of this process.
        """

    def target_angles(self) -> np.ndarray | None:
        """The angles between features and their centres in the last :meth:`forward_backward`, (B,) float64 in radians;
        None without centres."""

    def step(self, lr: float, measure: bool = False) -> float | None:
        """Update the centres by the gradients of the last :meth:`forward_backward`.

        :returns: with ``measure`` the Euclidean norm of that gradient, by all centres, else None.
        """

    @property
    def finite(self) -> bool:
        """True if the last :meth:`step` left centres of this process whose squared norms float32 can hold."""

    def leave_out(self) -> None:
        """Count a step without moving a centre, in place of :meth:`step`."""


@dataclass
class ShardedHead:
    """Margin softmax over class centres that are cut by class across devices and processes.

    With ``replicas`` it is data parallel: the other processes hold the same shards and have other images. Then the
    gradients of W are summed over the processes, chunk by chunk, and this exchange grows with the number of classes.
    """

    shards: Sequence[Shard]
    margin: Margin
    communicator: Communicator
    mu: float = 0.9
    wd: float = 0.0005
    lr_mult: float = 1.0
    wd_mult: float = 1.0
    sampler: ClassSampler = field(default_factory=ClassSampler)
    steps: int = 0  # updates done; the sampler draws by it, and AdamW corrects its moments by it
    replicas: Communicator = field(default_factory=SingleProcess)
    adamw: AdamW | None = None  # in place of SGD
    smoothing: float = 0.0  # of labels: their share that all classes divide
    of_images: ImageMargins | None = None  # what gives each image its own m2 and m3, in place of those of ``margin``
    _also: np.ndarray | None = field(default=None, init=False, repr=False)  # what smoothing adds by each centre
    _seen: tuple[np.ndarray, Any] = field(init=False, repr=False)  # of the last batch: what angles are made of
    _norms: np.ndarray = field(init=False, repr=False)  # of the last batch (B,), if ``of_images`` needs them
    _expected: dict[int, Expected] = field(default_factory=dict, init=False, repr=False)  # by step
    _drawer: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1), init=False, repr=False)

    def expect(self, labels: np.ndarray) -> None:
        """Begin to draw the samples of the step after the coming one on the devices, or in a thread, which reads their
        centres ahead, too.

        All processes call it together, before the coming :meth:`forward_backward`. The samples are those that would be
        drawn without it.

        :param labels: (b,) of this process's part of the batch after the coming one.
        """
        labels = self.communicator.all_gather(np.asarray(labels, np.int64))
        draw = partial(self._draw, self.replicas.all_gather(labels), self.steps + 1, ahead=True)
        queued = all(shard.queues_draws for shard in self.shards)  # then a thread would only take turns with this one
        self._expected[self.steps + 1] = Expected(labels, partial(list, draw()) if queued else
                                                  self._drawer.submit(draw).result)

    def _draw(self, positives: np.ndarray, step: int, ahead: bool = False) -> list[Any]:
        """The classes that each shard selects at a step; with ``ahead`` shards on a disk begin to read them."""
        samples = []
        for shard in self.shards:
            samples.append(shard.draw(self.sampler, positives, step))
            if ahead:
                shard.expect(samples[-1])
        return samples

    def _labels_and_samples(self, labels: np.ndarray) -> tuple[np.ndarray, list[Any]]:
        """The labels of the global batch (B,), and what each shard selects."""
        if expected := self._expected.pop(self.steps, None):
            mine = expected.labels[self.communicator.rank * len(labels) :][: len(labels)]
            if not np.array_equal(mine, labels):
                raise ValueError(f"step {self.steps}: labels are not those that were expected")
            return expected.labels, expected.samples()
        labels = self.communicator.all_gather(np.asarray(labels, np.int64))
        return labels, self._draw(self.replicas.all_gather(labels), self.steps)

    @np.errstate(invalid="ignore", over="ignore")  # the loop says it better when the loss is not finite
    def forward_backward(self, features: Any, labels: np.ndarray) -> HeadResult:
        x = self.communicator.all_gather(features)
        labels, samples = self._labels_and_samples(labels)
        norms = roots((x * x).sum(axis=1, keepdims=True) + float(EPSILON))
        unit = x / norms if self.margin.normalised else x
        count = len(x) * self.replicas.size

        for shard, sample in zip(self.shards, samples):
            shard.select(sample)
        similarities = np.stack([shard.similarities(unit, labels) for shard in self.shards])
        self._seen = similarities, norms[:, 0]
        margin = self._margin_of_batch()

        # Only the shard with a row's class has its similarity: others put -inf, so the maximum is the logit.
        here = [(labels >= shard.start) & (labels < shard.stop) for shard in self.shards]
        logits, slopes = np.stack([margin.target(similarity) for similarity in similarities], axis=1)
        # Centres that the last update carried beyond float32 make the loss NaN in all processes.
        statistics = [shard.statistics(logit) if shard.finite else np.full((len(x), 2), np.nan)
                      for shard, logit in zip(self.shards, logits)]
        target, log_sum, highest = self._merge(np.stack(statistics), np.where(here, logits, -np.inf))

        d_target = np.expm1(target - log_sum) / count
        parts: list[Any] = []
        d_similarity = 0.0  # that no margin changes
        if self.smoothing:
            smoothed = smooth(self.smoothing, self.shards, unit, target, similarities.sum(axis=0, dtype=np.float64),
                              self.margin.scale, count, self.communicator)
            self._also = smoothed.d_centre
            d_target, d_similarity = d_target + smoothed.d_logit / count, smoothed.d_similarity
            parts.append(smoothed.d_unit.astype(np.float32))
        parts += [shard.gradient(log_sum, count, d_target * slope + d_similarity)
                  for shard, slope in zip(self.shards, slopes)]
        d_features = self._through_norm(self.communicator.reduce_scatter(sum(parts[1:], parts[0])), unit, norms)
        # A device computes this gradient while the host counts.
        losses = log_sum - target + (smoothed.loss if self.smoothing else 0)
        if self.of_images and (terms := self.of_images.by_norm(self._norms)):
            by_m2 = np.where(here, [margin.slope_by_m2(similarity) for similarity in similarities], 0).sum(axis=0)
            d_norms = d_target * self.communicator.all_reduce(by_m2) * terms.m2_slope + terms.loss_slope / count
            own_norms, own_unit = (self._mine(array, len(d_features)) for array in (d_norms, unit))
            losses, d_features = losses + terms.loss, d_features + own_norms.astype(np.float32)[:, None] * own_unit
        won = np.float32(target) >= np.float32(highest)  # the shards' maxima hold the targets' logits as float32
        loss, hits = self.replicas.all_reduce(np.array([np.sum(losses), np.sum(won)]))
        return HeadResult(float(loss / count), float(hits / count), d_features)

    def _margin_of_batch(self) -> Margin:
        """The margin of the batch, with each image's own m2 and m3 if they differ; all processes call it together."""
        if self.of_images is None:
            return self.margin
        similarities, norms = self._seen
        self._norms, cosines = np.zeros((2, len(norms)))
        if self.of_images.needs_norms:
            self._norms = on_host(norms).astype(np.float64)
        if self.of_images.needs_cosines:
            cosines = self.communicator.all_reduce(similarities.sum(axis=0, dtype=np.float64))
        of_all_norms, of_all_cosines = self.replicas.all_gather(np.stack([self._norms, cosines], axis=1)).T
        m2, m3 = self.of_images(of_all_norms, of_all_cosines, self.steps)
        own = slice(self.replicas.rank * len(norms), (self.replicas.rank + 1) * len(norms))
        return replace(self.margin, m2=m2[own], m3=m3[own])

    def _merge(self, statistics: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The target's logit, log sum exp and maximum of each row over all shards: (B,) float64 each.

        :param statistics: (shards, B, 2) of this process's shards; ``logits``: (shards, B).
        """
        local = np.concatenate([statistics, logits[..., None]], axis=2).transpose(1, 0, 2)  # (B, shards, 3)
        sums = self._summary(local)[None]
        highest, total, target = self._summary(self.communicator.all_gather(sums).transpose(1, 0, 2)).T
        return target, highest + np.log(total), highest

    @staticmethod
    def _summary(parts: np.ndarray) -> np.ndarray:
        """Merge (B, parts, 3) rows of maximum, sum of exp(z - maximum) and target's logit to (B, 3)."""
        softmax = merged_statistics(parts[:, :, 0].T, parts[:, :, 1].T)
        return np.column_stack([softmax, parts[:, :, 2].max(axis=1)])

    def _through_norm(self, d_unit: Any, unit: Any, norms: Any) -> Any:
        """The gradient by this process's features, from that by their unit vectors: ``(d - (d . x^) x^) / |x|``."""
        if not self.margin.normalised:
            return d_unit
        unit, norms = (self._mine(array, len(d_unit)) for array in (unit, norms))
        along = (d_unit * unit).sum(axis=1, keepdims=True)
        return (d_unit - along * unit) / norms

    def _mine(self, array: Any, rows: int) -> Any:
        """The ``rows`` of this process, of an array with a row for each feature of the global batch."""
        return array[self.communicator.rank * rows : (self.communicator.rank + 1) * rows]

    def target_angles(self) -> np.ndarray:
        """The angles between the features of the last batch and the centres of their classes: radians, (B,) float64.

        Every process gets those of the whole global batch: all call it together, before :meth:`step`. They have no
        margin and no scale; with softmax, whose logits are inner products, norms and bias are taken out. The nearest
        sub-centre counts. Cosines are float32, so an angle near 0 or pi has a precision of 3e-4 only.
        """
        similarities, norms = self._seen
        cosines = similarities.sum(axis=0, dtype=np.float64)  # 0 in all shards but one
        if not self.margin.normalised:
            lengths, biases = np.sum([shard.target_norms() for shard in self.shards], axis=0)
            cosines = (cosines - biases) / np.maximum(lengths * on_host(norms), EPSILON)
        cosines = self.replicas.all_gather(self.communicator.all_reduce(cosines))
        return np.arccos(np.clip(cosines, -1, 1))

    def step(self, lr: float, measure: bool = False) -> float | None:
        self.steps += 1
        lr, wd = lr * self.lr_mult, self.wd * self.wd_mult
        optimiser = self.adamw.step(lr, wd, self.steps) if self.adamw else SGD(lr, self.mu, wd, self.steps)
        if self.of_images:
            self.of_images.keep()
        squares = [shard.update(optimiser, self.replicas, measure, self._also) for shard in self.shards]
        return math.sqrt(self.communicator.all_reduce(np.array([math.fsum(squares)]))[0]) if measure else None

    @property
    def finite(self) -> bool:
        return all(shard.finite for shard in self.shards)

    def leave_out(self) -> None:
        self.steps += 1

    def running(self) -> list[float]:
        """The running statistics of margins that differ between images, for a training state."""
        return self.of_images.state() if self.of_images else []

    def go_on(self, steps: int, running: Sequence[float]) -> None:
        """Go on after ``steps`` steps, with the running statistics of a training state."""
        self.steps = steps
        if self.of_images:
            self.of_images.load(running)
