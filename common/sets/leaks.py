# SPDX-License-Identifier: Apache-2.0
"""Which images and identities of training sets are those of a verification set, or of one another, by their embeddings.

Of each training image the largest cosine with any image of the verification sets is kept, of each identity its mean
direction: the images' embeddings themselves are never all in memory.
"""
from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from recognition.data.dataset import FaceDataset
from recognition.data.loader import BatchLoader
from recognition.data.order import EpochOrder
from recognition.errors import UserError
from recognition.evaluation.embed_images import Embed, normalised

_ROWS = 4096  # of one side of a product of embeddings at a time
_PREFETCH = 2


class Likeness(NamedTuple):
    """Of N images and C identities of a training set how like they are to the V images that are to stay apart."""

    cosines: np.ndarray  # float32 (N,), the largest with any of the V; -1 where V is 0
    nearest: np.ndarray  # int32 (N,), which of the V
    means: np.ndarray  # float32 (C, D), mean directions of unit length; zero for identities without images
    mean_cosines: np.ndarray  # float32 (C,), the largest of the mean with any of the V
    mean_nearest: np.ndarray  # int32 (C,)


def nearest_rows(rows: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each of N unit rows the largest cosine with M others, float32 ``(N,)``, and whose, int32; -1 where M is 0."""
    best, whose = np.full(len(rows), -1, np.float32), np.full(len(rows), -1, np.int32)
    for low in range(0, len(rows), _ROWS):
        part = slice(low, low + _ROWS)
        for start in range(0, len(others), _ROWS):
            cosines = rows[part] @ others[start : start + _ROWS].T
            of = cosines.argmax(axis=1)
            value = cosines[np.arange(len(of)), of]
            better = value > best[part]
            best[part][better] = value[better]
            whose[part][better] = start + of[better]
    return np.minimum(best, 1), whose  # float32 goes a little beyond


def compare(dataset: FaceDataset, labels: np.ndarray, embed: Embed, apart: np.ndarray, batch_size: int,
            threads: int = 2) -> Likeness:
    """Embed a training set, each image plus its mirror, and compare it with ``apart``, unit rows float32 ``(V, D)``.

    :raises UserError: if an embedding has no direction
    """
    n = len(dataset)
    cosines, nearest = np.full(n, -1, np.float32), np.full(n, -1, np.int32)
    sums: np.ndarray | None = None
    count = -(-n // batch_size)
    padded = dataset.take(np.resize(np.arange(n), count * batch_size))
    order = EpochOrder(len(padded), 0, shuffle=False)
    with BatchLoader(padded, order, None, batch_size, threads=threads, prefetch=_PREFETCH) as batches, \
            tqdm(None, f"embedding {dataset.path.name}", n, unit=" images", disable=None) as bar:
        for low, batch in zip(range(0, n, batch_size), itertools.islice(batches, count)):
            rows = embed(batch.images) + embed(np.ascontiguousarray(batch.images[..., ::-1]))
            where = slice(low, min(low + batch_size, n))
            rows = normalised(rows[: where.stop - low], partial(_name, dataset, batch.records))
            if sums is None:
                sums = np.zeros((dataset.num_classes, rows.shape[1]), np.float32)
            np.add.at(sums, labels[where], rows)
            cosines[where], nearest[where] = nearest_rows(rows, apart)
            bar.update(len(rows))
    assert sums is not None  # a set has images
    lengths = np.linalg.norm(sums, axis=1)
    sums /= np.maximum(lengths, 1e-12)[:, None]
    mean_cosines, mean_nearest = nearest_rows(sums, apart)
    mean_cosines[lengths == 0] = -1
    return Likeness(cosines, nearest, sums, mean_cosines, mean_nearest)


def _name(dataset: FaceDataset, keys: np.ndarray, row: int) -> str:
    return f"{dataset.path}: record {keys[row]}: its embedding"


def joined(means: Sequence[np.ndarray], present: Sequence[np.ndarray], threshold: float) -> list[np.ndarray]:
    """Which identity of the joined set each one of each set becomes: int64 ``(C,)`` a set, -1 for those not present.

    An identity of a later set joins that of the sets before whose mean direction is nearest, if their cosine is at
    least ``threshold``; two of one set never become one, of several that would join one identity the nearest does.
    """
    numbers: list[np.ndarray] = []
    known, total = np.empty((0, means[0].shape[1]), np.float32), 0
    for rows, has in zip(means, present):
        mine = np.full(len(rows), -1, np.int64)
        of = np.flatnonzero(has)
        best, whose = nearest_rows(rows[of], known)
        taken: set[int] = set()
        for i in np.argsort(-best, kind="stable").tolist():
            if best[i] >= threshold and int(whose[i]) not in taken:
                taken.add(int(whose[i]))
                mine[of[i]] = whose[i]
        new = np.flatnonzero(has & (mine < 0))
        mine[new] = np.arange(total, total + len(new))
        known = np.concatenate([known, rows[new]])
        total += len(new)
        numbers.append(mine)
    return numbers


def check_sizes(datasets: Sequence[FaceDataset]) -> None:
    """:raises UserError: if the sets' images are not all of one size"""
    for dataset in datasets[1:]:
        if dataset.image_shape != datasets[0].image_shape:
            sizes = [" x ".join(map(str, one.image_shape[:2])) for one in (dataset, datasets[0])]
            raise UserError(f"{dataset.path}: its images are {sizes[0]}, those of {datasets[0].path} {sizes[1]}")
