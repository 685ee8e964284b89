# SPDX-License-Identifier: Apache-2.0
"""The embeddings of all images of a training set, batch by batch in the order of the set."""
from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from recognition.data.loader import each_once
from recognition.data.sets.image_set import ImageSet
from recognition.evaluation.embed_images import Embed


class Embedded(NamedTuple):
    """A batch of n images: their places in the set, int64 (n,), embeddings (n, D), labels and keys, int64 (n,). In
    place of an image that cannot be used there is its replacement, with that one's label and key."""

    where: np.ndarray
    features: np.ndarray
    labels: np.ndarray
    keys: np.ndarray


def embedded(dataset: ImageSet, embed: Embed, batch_size: int, threads: int) -> Iterator[Embedded]:
    """Yield all images of the set, ``batch_size`` at a time; ``threads`` decode them."""
    for where, batch in each_once(dataset, np.arange(len(dataset)), batch_size, threads=threads):
        n = min(batch_size, len(dataset) - int(where[0]))
        yield Embedded(where[:n], embed(batch.images[:n]), batch.labels[:n], batch.records[:n])
