# SPDX-License-Identifier: Apache-2.0
"""The search, by embeddings, for training images and identities that are also in a verification set or in another
training set.

For each training image only its largest cosine with an image of the verification sets is kept, and for each identity
its mean direction: the embeddings of all images are never in memory together.
"""
from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from recognition.data.loader import each_once
from recognition.data.sets.dataset import FaceDataset
from recognition.errors import UserError
from recognition.evaluation.embed_images import Embed, normalised, with_mirrors
from recognition.progress import progress

_ROWS_AT_ONCE = 4096  # of either side of a product of embeddings


class Likeness(NamedTuple):
    """The likeness of N images and C identities of a training set to V other images, which should not be in it."""

    cosines: np.ndarray  # float32 (N,), the largest with any of the V; -1 if V is 0
    nearest: np.ndarray  # int32 (N,), the nearest of the V
    means: np.ndarray  # float32 (C, D), mean directions of unit length; zero for identities without images
    mean_cosines: np.ndarray  # float32 (C,), the largest of the mean with any of the V
    mean_nearest: np.ndarray  # int32 (C,), the nearest of the V to the mean


def nearest_rows(rows: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each of N unit rows the largest cosine with M other rows, float32 ``(N,)``, and its number, int32; both
    are -1 if M is 0."""
    best, whose = np.full(len(rows), -1, np.float32), np.full(len(rows), -1, np.int32)
    for low in range(0, len(rows), _ROWS_AT_ONCE):
        part = slice(low, low + _ROWS_AT_ONCE)
        for start in range(0, len(others), _ROWS_AT_ONCE):
            cosines = rows[part] @ others[start : start + _ROWS_AT_ONCE].T
            of = cosines.argmax(axis=1)
            value = cosines[np.arange(len(of)), of]
            better = value > best[part]
            best[part][better] = value[better]
            whose[part][better] = start + of[better]
    return np.minimum(best, 1), whose  # float32 may round a little above 1


def compare(dataset: FaceDataset, labels: np.ndarray, embed: Embed, apart: np.ndarray, batch_size: int) -> Likeness:
    """Embed a training set, each image plus its mirror, and compare it with ``apart``, unit rows float32 ``(V, D)``.

    :raises UserError: if an embedding is zero or not finite
    """
    n = len(dataset)
    cosines, nearest = np.full(n, -1, np.float32), np.full(n, -1, np.int32)
    sums: np.ndarray | None = None
    with progress(None, f"embedding {dataset.path.name}", n, unit=" images") as bar:
        for images, batch in each_once(dataset, np.arange(n), batch_size):
            where = images[: n - int(images[0])]
            rows = normalised(with_mirrors(embed)(batch.images)[: len(where)], partial(_name, dataset, batch.records))
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
    """The number of each identity in the joined set: int64 ``(C,)`` for each set, -1 for identities without images.

    An identity of a later set joins the one of the sets before with the nearest mean direction, if their cosine is at
    least ``threshold``. Two of one set never become one: if several would join the same identity, the nearest does.
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
    """Check that the images of all sets have the same size.

    :raises UserError: if they have not.
    """
    for dataset in datasets[1:]:
        if dataset.image_shape != datasets[0].image_shape:
            sizes = [" x ".join(map(str, one.image_shape[:2])) for one in (dataset, datasets[0])]
            raise UserError(f"{dataset.path}: its images are {sizes[0]}, those of {datasets[0].path} {sizes[1]}")
