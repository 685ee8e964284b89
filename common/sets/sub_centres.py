# SPDX-License-Identifier: Apache-2.0
"""The choice of images near the dominant sub-centre of their identity (sub-center ArcFace, Deng et al., 2020)."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recognition.data.sets.dataset import FaceDataset
from recognition.evaluation.embed_images import Embed
from recognition.evaluation.embed_set import embedded
from recognition.io.centres import SavedCentres, rows_at
from recognition.progress import progress


@dataclass(frozen=True)
class Choice:
    """The choice among N images of C identities with K sub-centres each; images are in the order of their records."""

    records: np.ndarray  # int64 (N,), record keys
    labels: np.ndarray  # int32 (N,)
    nearest: np.ndarray  # int16 (N,), the nearest sub-centre of each image
    counts: np.ndarray  # int64 (C, K), the number of images nearest to each sub-centre
    angles: np.ndarray  # float32 (N,), degrees from the dominant sub-centre
    threshold: float  # degrees

    @property
    def dominant(self) -> np.ndarray:
        """The dominant sub-centre of each identity, int64 (C,): the one with the most images, the first if several."""
        return self.counts.argmax(axis=1)

    @property
    def kept(self) -> np.ndarray:
        """A mask of the kept images, bool (N,)."""
        return self.angles < self.threshold

    @property
    def kept_counts(self) -> np.ndarray:
        """The number of kept images of each identity, int64 (C,)."""
        return np.bincount(self.labels[self.kept], minlength=len(self.counts))


def choose(dataset: FaceDataset, embed: Embed, centres: SavedCentres, k: int, threshold: float, batch_size: int,
           threads: int = 2) -> Choice:
    """Compare each image with the sub-centres of its own identity, ``batch_size`` images at a time.

    It takes less than 100 bytes of memory an image at K = 3. Only the rows of W of a batch's own identities are read.
    """
    cosines = np.empty((len(dataset), k), np.float32)
    records, labels = np.empty(len(dataset), np.int64), np.empty(len(dataset), np.int32)
    with progress(None, "embedding", len(dataset), unit=" images") as bar:
        for where, features, of_class, keys in embedded(dataset, embed, batch_size, threads):
            own = rows_at(centres.centres, (of_class[:, None] * k + np.arange(k)).ravel())
            cosines[where] = _cosines(features, own.reshape(-1, k, centres.dim))
            labels[where], records[where] = of_class, keys
            for i in np.flatnonzero(~np.isfinite(cosines[where]).all(axis=1))[:1]:
                whose = f"a centre of class {of_class[i]}" if np.isfinite(features[i]).all() else "its embedding"
                raise dataset.error(keys[i], f"{whose} is not finite, expected a model that has learnt something")
            bar.update(len(keys))
    nearest = cosines.argmax(axis=1)
    counts = np.bincount(labels.astype(np.int64) * k + nearest, minlength=dataset.num_classes * k).reshape(-1, k)
    to_dominant = np.take_along_axis(cosines, counts.argmax(axis=1)[labels, None], axis=1)[:, 0]
    angles = np.degrees(np.arccos(np.clip(to_dominant, -1, 1)))
    return Choice(records, labels, nearest.astype(np.int16), counts, angles, threshold)


@np.errstate(invalid="ignore", over="ignore")  # the caller reports numbers that are not finite
def _cosines(features: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The cosines, float64 (n, K), of features (n, D) with centres (n, K, D). A zero feature has the cosine 0."""
    return np.einsum("nd,nkd->nk", _unit(features), _unit(centres))


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = vectors.astype(np.float64)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-30)
