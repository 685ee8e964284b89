# SPDX-License-Identifier: Apache-2.0
"""Several training sets as one: their identities follow each other, and each set has a weight."""
from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np

from recognition.data.order import EpochOrder, PartialOrder
from recognition.data.records.bad_records import BadRecords
from recognition.data.sets.image_set import NO_LABEL, ImageSet


class SeveralSets(ImageSet):
    """The images of all ``sets``, one set after another; the labels of a set begin where those of the one before end.

    A key is an image's number among the images of all sets. With weight 2 each image of a set comes twice in an epoch,
    with 0.5 half of them do, drawn anew for each epoch.
    """

    def __init__(self, sets: Sequence[ImageSet], bad: BadRecords, weights: Sequence[float] = (),
                 keys: np.ndarray | None = None) -> None:
        """:param weights: one for each set; none: 1 each.
        :param keys: some of the images, each once in an epoch; None: all.
        """
        self.sets, self._weights = tuple(sets), tuple(weights) or (1.0,) * len(sets)
        self._starts = np.cumsum([0, *map(len, sets)]).tolist()
        self._classes = np.cumsum([0, *(part.num_classes for part in sets)]).tolist()
        bad.images = self._starts[-1]
        made, self._drawn = (keys, []) if keys is not None else _copies(self._starts, self._weights)
        super().__init__(Path(" + ".join(str(part.path) for part in sets)), "several", self._classes[-1],
                         sets[0].image_shape, made, bad)

    @property
    def parts(self) -> Sequence[ImageSet]:
        return self.sets

    def order(self, seed: int) -> EpochOrder:
        return PartialOrder(len(self), self._drawn, seed) if self._drawn else super().order(seed)

    def load(self, i: int) -> tuple[int, np.ndarray, int]:
        key = int(self.keys[i])
        number = self._owner(key)
        label, image, _ = self.sets[number].load(key - self._starts[number])
        return label + self._classes[number], image, key

    def labels(self) -> np.ndarray:
        found = []
        for part, first in zip(self.sets, self._classes):
            labels = part.labels()
            found.append(np.where(labels == NO_LABEL, NO_LABEL, labels + first))
        return np.concatenate(found)[self.keys]

    def digest(self) -> str:
        found = sha256(" ".join([*(part.digest() for part in self.sets), *map(str, self._weights)]).encode())
        found.update(np.ascontiguousarray(self.keys, np.int64).data)
        return found.hexdigest()[:16]

    def take(self, images: np.ndarray) -> SeveralSets:
        return SeveralSets(self.sets, self.bad, self._weights, self.keys[images])

    def require_unchanged(self) -> None:
        for part in self.sets:
            part.require_unchanged()

    def require_unchanged_at(self, i: int) -> None:
        number = self._owner(int(self.keys[i]))
        self.sets[number].require_unchanged_at(int(self.keys[i]) - self._starts[number])

    def check_labels(self) -> None:
        for part in self.sets:
            part.check_labels()

    def close(self) -> None:
        for part in self.sets:
            part.close()

    def _owner(self, key: int) -> int:
        """The number of the set that has an image."""
        return bisect_right(self._starts, key) - 1


def _copies(starts: Sequence[int], weights: Sequence[float]) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
    """The keys of the images, as often as an epoch visits them at most; and the ranges (start, stop, count) of these of
    which an epoch visits a part."""
    keys, drawn, length = [], [], 0
    for start, stop, weight in zip(starts, starts[1:], weights):
        images = np.arange(start, stop)
        whole, rest = int(weight), round((weight - int(weight)) * len(images))
        rest = rest if whole else max(rest, 1)  # no set goes without a word
        keys += [images] * (whole + (rest > 0))
        length += whole * len(images)
        if rest:
            drawn.append((length, length + len(images), rest))
            length += len(images)
    return np.concatenate(keys), drawn
