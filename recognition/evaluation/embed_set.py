# SPDX-License-Identifier: Apache-2.0
"""The embeddings of all images of a training set, batch by batch in the order of the set."""
from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Callable, NamedTuple

import numpy as np

from recognition.data.loader import BatchLoader
from recognition.data.order import EpochOrder
from recognition.data.sets.image_set import ImageSet

PREFETCH = 2  # batches
Embed = Callable[[np.ndarray], np.ndarray]  # uint8 (n, 3, H, W) RGB to float (n, D)


class Embedded(NamedTuple):
    """A batch of n images: their places in the set, embeddings (n, D), labels and keys, int64 (n,). In place of an
    image that cannot be used there is its replacement, with that one's label and key."""

    where: slice
    features: np.ndarray
    labels: np.ndarray
    keys: np.ndarray


def embedded(dataset: ImageSet, embed: Embed, batch_size: int, threads: int) -> Iterator[Embedded]:
    """Yield all images of the set, ``batch_size`` at a time; ``threads`` decode them."""
    count = -(-len(dataset) // batch_size)
    padded = dataset.take(np.resize(np.arange(len(dataset)), count * batch_size))
    order = EpochOrder(len(padded), 0, shuffle=False)
    with BatchLoader(padded, order, None, batch_size, threads=threads, prefetch=PREFETCH) as batches:
        for low, batch in zip(range(0, len(dataset), batch_size), itertools.islice(batches, count)):
            n = min(batch_size, len(dataset) - low)
            yield Embedded(slice(low, low + n), embed(batch.images[:n]), batch.labels[:n], batch.records[:n])
