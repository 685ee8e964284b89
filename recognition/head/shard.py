# SPDX-License-Identifier: Apache-2.0
"""A shard of the class centres: its interface, and the code that all implementations share.

A shard holds the rows ``class * K + k`` (K sub-centres a class) of classes ``start .. stop - 1``. In a step the head
calls ``select``, ``similarities``, ``statistics``, ``gradient`` and ``update`` in this order. What lies between
the calls is the shard's own: on CPUs and with MXNet one buffer, logits_CB with a row for each selected centre, that
holds logits or their exponentials, then the gradient; PyTorch's shards keep none, and compute chunks again.

Suffixes of arrays: B the features of the global batch, D numbers of a feature, C the selected rows of a shard.
"""
from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import numpy as np

from recognition.head.sampling import ClassSampler
from recognition.optim.adamw import AdamWStep
from recognition.processes.communicator import Communicator

EPSILON = np.float32(1e-10)  # under the square root of every norm, as in the legacy L2Normalization
INITIAL_STD = 0.01  # of W, as in the legacy code
ROWS_AT_ONCE = 32768  # loaded or measured in one go: 64 MB at D = 512
STREAM_CLASSES = 4096  # classes of one random stream, so that W does not depend on the cut into shards
MOST_MAKERS = 8  # threads that make W's first values, each ROWS_AT_ONCE of them
NO_MOMENTS = np.empty(0, np.float32)  # in place of the second moments, with SGD


class SGD(NamedTuple):
    """``m = mu * m - lr * (gradient + wd * w);  w += m``, the update of MXNet's SGD with momentum."""

    lr: float
    mu: float
    wd: float
    updates: int = 0  # of the run, this one included: centres of 16 bits are rounded by it


class ShardState(NamedTuple):
    """The arrays of a shard for a training state: views or copies on the host, float32.

    A shard has second moments, and memory for them, from its first step with AdamW on.
    """

    centres: np.ndarray  # (rows, D)
    momentum: np.ndarray  # (rows, D), with AdamW the first moment
    bias: np.ndarray  # (rows,), zeros if the head has none
    bias_momentum: np.ndarray  # (rows,)
    second_moment: np.ndarray = NO_MOMENTS  # (rows, D) with AdamW
    bias_second_moment: np.ndarray = NO_MOMENTS  # (rows,) with AdamW


class Shard(Protocol):
    """Classes ``start .. stop - 1`` of W on one device."""

    start: int
    stop: int
    with_bias: bool
    startup_line: str  # a line for the start of a run: what computes the shard, where there is a choice; else empty
    queues_draws: bool  # whether a device draws, and :meth:`draw` does not wait for it

    @property
    def finite(self) -> bool:
        """True if the updated centres have squared norms below float32's largest number."""

    def expect(self, classes: np.ndarray | None) -> None:
        """Begin to read the centres of these classes ahead, if they lie on a disk. It is called from another thread,
        while the shard works on others, and changes nothing."""

    def draw(self, sampler: ClassSampler, labels: np.ndarray, step: int) -> Any:
        """The classes of this shard that ``sampler`` draws for a step of a batch with ``labels`` (B,), for
        :meth:`select`: NumPy's ascending int64, or the shard's own form; None: all."""

    def select(self, classes: Any) -> None:
        """Choose the classes of this shard that the next step works on.

        :param classes: the result of :meth:`draw`, or ascending int64 with the batch's among them; None: all.
        """

    def similarities(self, x: Any, labels: np.ndarray) -> np.ndarray:
        """Compute logits_CB, the inner products of the selected centres with features x, (B, D) float32.

        Centres are normalised if the head's margin is.

        :returns: the similarity of each row with its target, (B,) float32; 0 if the label lies in another shard.
        """

    def statistics(self, target_logits: np.ndarray) -> np.ndarray:
        """Replace the targets' logits by ``target_logits`` (B,) and reduce the logits of each row.

        :returns: statistics_B2, (B, 2) float64: the maximum of the logits and the sum of exp(logit - maximum). With the
            target's logit the head has statistics_B3, which the shards exchange.
        """

    def gradient(self, log_sums: np.ndarray, count: int, target_gradients: np.ndarray) -> Any:
        """This shard's part of the gradient of the mean loss by x, (B, D) float32.

        :param log_sums: (B,) the log of the sum of exp(logit) over all shards.
        :param count: the number of rows in the mean.
        :param target_gradients: (B,) the gradient by the target's similarity.
        """

    def target_norms(self) -> tuple[np.ndarray, np.ndarray]:
        """The norms and the biases of the targets' centres in the last :meth:`similarities`: two arrays (B,) float64.

        Call it before :meth:`update`. Rows whose label lies in another shard get 0.
        """

    def sum_of_centres(self) -> np.ndarray:
        """The sum of the selected centres' unit vectors, or of the centres if they are not normalised; then that of
        their biases, and the number of selected classes: (D + 2,) float64."""

    def update(self, optimiser: SGD | AdamWStep, replicas: Communicator, measure: bool = False,
               also: np.ndarray | None = None) -> float:
        """Update the selected centres by the gradient of the batch of the last three calls.

        Centres that are not selected keep their values and moments.

        :param replicas: the processes that hold the same classes; the gradient is summed over them.
        :param also: (D + 1,), added to the gradient by each selected centre's unit vector, or by the centre if it is
            not normalised, and, the last number, to that by its bias.
        :returns: with ``measure`` the sum of the squares of the gradient by the centres, without decay; else 0.
        """

    def norms(self) -> tuple[float, float]:
        """The least and the largest norm of the centres; both NaN if one is NaN."""

    def state(self) -> ShardState:
        """The shard's arrays for a training state."""

    def load(self, state: ShardState, first: int | None = None) -> None:
        """Overwrite the shard's arrays by ``state``: from class ``first`` on, or all of them."""


def split_classes(num_classes: int, parts: int) -> list[tuple[int, int]]:
    """Cut classes into ``parts`` ranges ``(start, stop)`` whose sizes differ by at most one, larger ranges first."""
    base, extra = divmod(num_classes, parts)
    bounds = [i * base + min(i, extra) for i in range(parts + 1)]
    return list(zip(bounds[:-1], bounds[1:]))


def pieces(start: int, stop: int, sub_centres: int) -> Iterator[tuple[int, int]]:
    """Cut a shard's classes into ranges of at most ROWS_AT_ONCE rows, so that W is loaded without a second copy of it
    in memory."""
    size = max(1, ROWS_AT_ONCE // sub_centres)
    return ((low, min(low + size, stop)) for low in range(start, stop, size))


def norm_range(parts: Iterable[np.ndarray]) -> tuple[float, float]:
    """The least and the largest norm of the rows of all parts, (n, D) float32 each; inf and 0 if there are none."""
    ranges = []
    with np.errstate(over="ignore", invalid="ignore"):
        for part in parts:
            norms = np.sqrt(np.einsum("rd,rd->r", part, part, dtype=np.float64))
            ranges += [(norms.min(), norms.max())] if len(norms) else []
        low, high = np.transpose(ranges) if ranges else (np.array([np.inf]), np.zeros(1))
        return float(low.min()), float(high.max())


def initial_centres(seed: int, start: int, stop: int, sub_centres: int, dim: int) -> np.ndarray:
    """The first values of W for classes ``start .. stop - 1``: float32 (rows, D), normal with the standard deviation
    INITIAL_STD. They are a function of the seed and the class, not of the cut into shards."""
    rows = np.empty(((stop - start) * sub_centres, dim), np.float32)
    for block in range(start // STREAM_CLASSES, -(-stop // STREAM_CLASSES)):
        stream = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, 0x5743, block])))
        low, high = max(start, block * STREAM_CLASSES), min(stop, (block + 1) * STREAM_CLASSES)
        part = rows[(low - start) * sub_centres : (high - start) * sub_centres]
        if high - low == STREAM_CLASSES:  # in place: what threads free of smaller arrays stays theirs
            stream.standard_normal(dtype=np.float32, out=part)
        else:
            values = stream.standard_normal((STREAM_CLASSES, sub_centres, dim), dtype=np.float32)
            part[:] = values[low - block * STREAM_CLASSES : high - block * STREAM_CLASSES].reshape(-1, dim)
    rows *= np.float32(INITIAL_STD)
    return rows


def initial_pieces(seed: int, start: int, stop: int, sub_centres: int, dim: int) -> Iterator[tuple[slice, np.ndarray]]:
    """The first values of a shard's W, rows and their values in turn, made by several threads: a core makes 90 million
    numbers a second. No second copy of W is in memory."""
    under_way: deque[tuple[slice, Future[np.ndarray]]] = deque()
    threads = min(MOST_MAKERS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as makers:
        for low, high in pieces(start, stop, sub_centres):
            rows = slice((low - start) * sub_centres, (high - start) * sub_centres)
            under_way.append((rows, makers.submit(initial_centres, seed, low, high, sub_centres, dim)))
            if len(under_way) > threads:
                rows, made = under_way.popleft()
                yield rows, made.result()
        yield from ((rows, made.result()) for rows, made in under_way)


def rows_of(classes: np.ndarray, start: int, sub_centres: int) -> np.ndarray:
    """The numbers of the rows that hold the centres of ``classes`` in a shard, int64 (len(classes) * K,)."""
    return ((classes - start)[:, None] * sub_centres + np.arange(sub_centres)).ravel()


def merged_statistics(maxima: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """Merge the statistics of the parts of each row, maxima and sums of exp(z - maximum), (parts, B) each.

    :returns: statistics_B2, (B, 2) float64: the same two numbers for the whole row.
    """
    highest = maxima.max(axis=0)
    against = np.where(highest == -np.inf, 0, highest)  # the maximum of parts without a class is -inf
    return np.stack([highest, (sums * np.exp(maxima - against)).sum(axis=0)], axis=1)


def target_columns(labels: np.ndarray, start: int, stop: int, sub_centres: int, classes: Any = None) -> np.ndarray:
    """The first column of each label's class in the shard ``start .. stop - 1``: (B,) int64, -1 if it has none.

    ``classes``: the selected ones, ascending, with each label of the shard among them, or a sample that knows their
    columns; None: all have columns.
    """
    inside = (labels >= start) & (labels < stop)
    if classes is None:
        place = labels - start
    else:
        place = np.searchsorted(classes, labels) if isinstance(classes, np.ndarray) else classes.columns(labels)
    return np.where(inside, place * sub_centres, -1)
