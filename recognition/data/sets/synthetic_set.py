# SPDX-License-Identifier: Apache-2.0
"""Images and identities that are made up, ``synthetic:N``: for measures of speed and memory, which need no disk."""
from __future__ import annotations

from pathlib import Path

import numpy as np

from recognition.data.records.bad_records import BadRecords
from recognition.data.sets.image_set import ImageSet

IMAGES_PER_IDENTITY = 10
FEWEST_IMAGES = 1 << 17  # so that few identities fill epochs of many batches, too
_POOL_BYTES = 1 << 24
_STRIDE = 7919  # bytes between the places of images that follow each other, a prime


class SyntheticSet(ImageSet):
    """Ten images of each identity, or FEWEST_IMAGES in all: pixels of noise, functions of the seed and the image.

    An image is a piece of one pool of noise, which costs a copy: there is nothing to read, decode or learn.
    """

    def __init__(self, name: str, num_classes: int, image_shape: tuple[int, int, int], seed: int,
                 keys: np.ndarray | None = None) -> None:
        images = max(IMAGES_PER_IDENTITY * num_classes, FEWEST_IMAGES)
        super().__init__(Path(name), "synthetic", num_classes, image_shape,
                         np.arange(images) if keys is None else keys, BadRecords(images=images))
        self._seed, self._bytes = seed, int(np.prod(image_shape))
        self._pool = np.frombuffer(np.random.PCG64(seed).random_raw((_POOL_BYTES + self._bytes) // 8 + 1), np.uint8)

    def load(self, i: int) -> tuple[int, np.ndarray, int]:
        key = int(self.keys[i])
        start = key * _STRIDE % _POOL_BYTES
        image = self._pool[start : start + self._bytes].reshape(self.image_shape)
        return key % self.num_classes, image.copy(), key  # augmentation writes into it

    def labels(self) -> np.ndarray:
        return self.keys % self.num_classes

    def digest(self) -> str:
        return f"{self.path} {self.image_shape[0]} {len(self)}"

    def take(self, images: np.ndarray) -> SyntheticSet:
        return SyntheticSet(str(self.path), self.num_classes, self.image_shape, self._seed, self.keys[images])
