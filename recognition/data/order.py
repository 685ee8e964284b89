# SPDX-License-Identifier: Apache-2.0
"""The order of an epoch and the random numbers of an image. They depend on the seed, not on what ran before.

They use integer arithmetic and the bit streams of ``SeedSequence`` and ``PCG64`` alone, which NumPy promises to keep:
a run goes on in the same order under another version of NumPy.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_DRAWN = 5  # a random stream: the order uses 0, an image 1, triplets 2 to 4
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX = ((np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB)))


class Position(NamedTuple):
    """A place in the data: ``offset`` images of ``epoch`` are used up, over all devices and processes."""

    epoch: int
    offset: int


BEGINNING = Position(0, 0)


class EpochOrder:
    """The order in which each epoch visits ``num_images`` images; without ``shuffle``, file order."""

    def __init__(self, num_images: int, seed: int, shuffle: bool = True):
        if seed < 0:
            raise ValueError(f"seed {seed}, expected 0 or more")
        self.num_images, self.seed, self.shuffle = num_images, seed, shuffle

    @property
    def of(self) -> int:
        """The number of images of the set, of which an epoch visits ``num_images``."""
        return self.num_images

    def permutation(self, epoch: int) -> np.ndarray:
        """Image numbers in the order of ``epoch`` (from 0), int64 ``(num_images,)``."""
        if not self.shuffle:
            return np.arange(self.num_images, dtype=np.int64)
        keys = np.random.PCG64(np.random.SeedSequence([self.seed, epoch])).random_raw(self.num_images)
        return np.argsort(keys, kind="stable").astype(np.int64, copy=False)


class PartialOrder(EpochOrder):
    """The order of epochs that leave out a part of some images: of each range (start, stop, count) in ``drawn`` an
    epoch visits ``count`` images, drawn anew, and every other image once. Always shuffled."""

    def __init__(self, images: int, drawn: Sequence[tuple[int, int, int]], seed: int):
        super().__init__(images - sum(stop - start - count for start, stop, count in drawn), seed)
        self._images, self._drawn = images, tuple(drawn)

    @property
    def of(self) -> int:
        return self._images

    def permutation(self, epoch: int) -> np.ndarray:
        kept = np.ones(self._images, bool)
        for number, (start, stop, count) in enumerate(self._drawn):
            keys = np.random.PCG64(np.random.SeedSequence([self.seed, epoch, _DRAWN, number])).random_raw(stop - start)
            kept[start + np.argsort(keys, kind="stable")[count:]] = False
        return np.flatnonzero(kept)[super().permutation(epoch)]


def uniforms(seed: int, epoch: int, indices: np.ndarray, count: int) -> np.ndarray:
    """Random numbers in [0, 1), ``count`` for each image: float64 ``(len(indices), count)``.

    The number in column j of an image depends on (seed, epoch, image, j) alone: not on batch, device, thread or
    ``count``. The generator is SplitMix64 (Steele, Lea, Flood 2014), started at a hash of the image.
    """
    key = np.random.SeedSequence([seed, epoch, 1]).generate_state(1, np.uint64)  # 1: not the stream of the order
    with np.errstate(over="ignore"):
        start = _mix(key + _GOLDEN * (indices.astype(np.uint64) + np.uint64(1)))
        steps = _GOLDEN * np.arange(1, count + 1, dtype=np.uint64)
        bits = _mix(start[:, None] + steps)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0 ** -53


def _mix(state: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser, a bijection of 64 bits."""
    for shift, factor in _MIX:
        state = (state ^ (state >> shift)) * factor
    return state ^ (state >> np.uint64(31))
