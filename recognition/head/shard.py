# SPDX-License-Identifier: Apache-2.0
"""A shard of the class centres: the interface that the head works with, and what every kind of shard shares.

A shard holds the rows ``class * K + k`` (K sub-centres a class) of classes ``start .. stop - 1``. In a step the head
calls its methods in the order in which they stand here, from ``select`` to ``update``; between them one buffer of
B x rows holds the logits or their exponentials, then the gradient.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

import numpy as np

from recognition.optim.adamw import AdamWStep
from recognition.processes.communicator import Communicator

EPSILON = np.float32(1e-10)  # under the square root of every norm, as in the legacy L2Normalization
INITIAL_STD = 0.01  # of W, as in the legacy code
LOADED_ROWS = 32768  # at once: 64 MB at D = 512
BLOCK = 4096  # classes that share a random stream, so that W does not depend on how it is cut
NONE = np.empty(0, np.float32)  # the second moments of SGD


class SGD(NamedTuple):
    """``m = mu * m - lr * (gradient + wd * w);  w += m``, the update of MXNet's SGD with momentum."""

    lr: float
    mu: float
    wd: float


class ShardState(NamedTuple):
    """What goes into a training state: views or copies on the host, float32.

    A shard has second moments, and memory for them, from its first step with AdamW on.
    """

    centres: np.ndarray  # (rows, D)
    momentum: np.ndarray  # (rows, D), with AdamW the first moment
    bias: np.ndarray  # (rows,), zeros where the head has none
    bias_momentum: np.ndarray  # (rows,)
    second_moment: np.ndarray = NONE  # (rows, D) with AdamW
    bias_second_moment: np.ndarray = NONE  # (rows,) with AdamW


class Shard(Protocol):
    """Classes ``start .. stop - 1`` of W on one device."""

    start: int
    stop: int
    with_bias: bool

    @property
    def finite(self) -> bool:
        """Whether the centres that were updated have squared norms below float32's largest number."""

    def select(self, classes: np.ndarray | None) -> None:
        """Work on these classes alone (ascending int64, the batch's own among them) until the next call; None: all."""

    def similarities(self, x: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Inner products of x (B, D) float32 with the centres; returns those with the targets, (B,) float32.

        Rows whose label lies in another shard get 0. Centres are normalised if the head's margin is.
        """

    def statistics(self, target_logits: np.ndarray) -> np.ndarray:
        """(B, 2) float64: the maximum of the logits and the sum of exp(logit - maximum), with the target's replaced."""

    def gradient(self, log_sums: np.ndarray, count: int, target_gradients: np.ndarray) -> np.ndarray:
        """This shard's part of the gradient of the mean loss by x, (B, D) float32.

        :param log_sums: (B,) log of the sum of exp(logit) over all shards.
        :param count: the number of rows that the loss is the mean of.
        :param target_gradients: (B,) the gradient by the target's similarity.
        """

    def target_norms(self) -> tuple[np.ndarray, np.ndarray]:
        """Norms and biases of the centres that the last :meth:`similarities` were with: two arrays (B,) float64.

        To be asked for before :meth:`update`. Rows whose label lies in another shard get 0.
        """

    def update(self, optimiser: SGD | AdamWStep, replicas: Communicator, measure: bool = False) -> float:
        """Step the selected centres by the gradient of the batch that the last three calls were about.

        Those that are not selected keep their values and moments.

        :param replicas: the processes that hold the same classes, over which the gradient is summed.
        :param measure: whether to return the sum of the squares of that gradient, by the centres and without decay;
            0 is returned otherwise.
        """

    def norms(self) -> tuple[float, float]:
        """The least and the largest norm of the centres; both NaN where one is no number."""

    def state(self) -> ShardState:
        """The shard's arrays for a training state."""

    def load(self, state: ShardState, first: int | None = None) -> None:
        """Copy the arrays of classes from ``first`` on, or all of them, over the shard's own."""


def split_classes(num_classes: int, parts: int) -> list[tuple[int, int]]:
    """Cut classes into ranges ``(start, stop)`` that differ by at most one class, the larger ones first."""
    base, extra = divmod(num_classes, parts)
    bounds = [i * base + min(i, extra) for i in range(parts + 1)]
    return list(zip(bounds[:-1], bounds[1:]))


def pieces(start: int, stop: int, sub_centres: int) -> Iterator[tuple[int, int]]:
    """Cut a shard's classes into ranges of so few rows that W is loaded without a second copy of it in memory."""
    size = max(1, LOADED_ROWS // sub_centres)
    return ((low, min(low + size, stop)) for low in range(start, stop, size))


def norm_range(parts: Iterable[np.ndarray]) -> tuple[float, float]:
    """The least and the largest norm of the rows of all parts, (n, D) float32 each; infinite and 0 if there is none."""
    ranges = []
    with np.errstate(over="ignore", invalid="ignore"):
        for part in parts:
            norms = np.sqrt(np.einsum("rd,rd->r", part, part, dtype=np.float64))
            ranges += [(norms.min(), norms.max())] if len(norms) else []
        low, high = np.transpose(ranges) if ranges else (np.array([np.inf]), np.zeros(1))
        return float(low.min()), float(high.max())


def initial_centres(seed: int, start: int, stop: int, sub_centres: int, dim: int) -> np.ndarray:
    """Normal(0, 0.01) rows of classes ``start .. stop - 1``: a function of the seed and the class, not of the cut."""
    rows = np.empty(((stop - start) * sub_centres, dim), np.float32)
    for block in range(start // BLOCK, -(-stop // BLOCK)):
        stream = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, 0x5743, block])))
        values = stream.standard_normal((BLOCK, sub_centres, dim), dtype=np.float32) * np.float32(INITIAL_STD)
        low, high = max(start, block * BLOCK), min(stop, (block + 1) * BLOCK)
        part = values[low - block * BLOCK : high - block * BLOCK].reshape(-1, dim)
        rows[(low - start) * sub_centres : (high - start) * sub_centres] = part
    return rows


def rows_of(classes: np.ndarray, start: int, sub_centres: int) -> np.ndarray:
    """The rows of a shard's arrays that hold the centres of ``classes``, int64 (len(classes) * K,)."""
    return ((classes - start)[:, None] * sub_centres + np.arange(sub_centres)).ravel()


def merged_statistics(maxima: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """(B, 2) float64: maximum and sum of exp(z - maximum) of a row, from those of its parts, (parts, B) each."""
    highest = maxima.max(axis=0)
    against = np.where(highest == -np.inf, 0, highest)  # parts without a class have no maximum
    return np.stack([highest, (sums * np.exp(maxima - against)).sum(axis=0)], axis=1)


def target_columns(labels: np.ndarray, start: int, stop: int, sub_centres: int,
                   classes: np.ndarray | None = None) -> np.ndarray:
    """(B,) int64: the first column of each label's class in the shard ``start .. stop - 1``, -1 where it has none.

    ``classes``: the ascending selected ones, that of each label in the shard among them, or None if all have columns.
    """
    inside = (labels >= start) & (labels < stop)
    place = labels - start if classes is None else np.searchsorted(classes, labels)
    return np.where(inside, place * sub_centres, -1)
