# SPDX-License-Identifier: Apache-2.0
"""The images of a training set, wherever they come from: what loaders, class centres and states ask of a set."""
from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from recognition.data.order import EpochOrder
from recognition.data.records.bad_records import BadRecords
from recognition.errors import UserError

NO_LABEL = -1  # the label of an image that is skipped
_logger = logging.getLogger("recognition.data.dataset")  # log lines begin with it


class ImageSet(ABC):
    """The images of a training set, numbered 0 .. len - 1. Methods may be called from any thread.

    path: where it lies, for messages. form: the kind of set. num_classes: its identities. image_shape: (height, width,
    3). keys: a number for each image that stays the same in parts of the set, int64 (len,). bad: the policy for images
    that cannot be used.
    """

    def __init__(self, path: Path, form: str, num_classes: int, image_shape: tuple[int, int, int], keys: np.ndarray,
                 bad: BadRecords) -> None:
        self.path, self.form, self.num_classes, self.image_shape = path, form, num_classes, image_shape
        self.keys, self.bad = keys, bad

    def __len__(self) -> int:
        return len(self.keys)

    @abstractmethod
    def load(self, i: int) -> tuple[int, np.ndarray, int]:
        """Label, pixels uint8 ``(H, W, 3)`` RGB of the set's size, and key of image ``i``.

        :raises UserError: on anything that is wrong with it.
        """

    @abstractmethod
    def labels(self) -> np.ndarray:
        """The label of every image, int64 ``(len,)``; NO_LABEL for a skipped one."""

    @abstractmethod
    def digest(self) -> str:
        """A digest that changes with the images and with their order."""

    @abstractmethod
    def take(self, images: np.ndarray) -> ImageSet:
        """The set of ``images``, int64 (n,), in this order; an image may come more than once. Labels do not change."""

    @property
    def parts(self) -> Sequence[ImageSet]:
        """The sets of which this one is made."""
        return (self,)

    @property
    def source(self) -> Path:
        """The file or folder that messages about images name."""
        return self.path

    @property
    def landmarks_place(self) -> tuple[Path, str] | None:
        """The file of its images' landmarks, which need not be there, and a text that changes with the images of the
        whole set; None for a set that has no people. See ``landmarks.py``."""
        return None

    def order(self, seed: int) -> EpochOrder:
        """The order of its epochs."""
        return EpochOrder(len(self), seed)

    def require_unchanged(self) -> None:  # noqa: B027 (most kinds have nothing to do)
        """Compare the set with what it was when it was opened.

        :raises UserError: if it has changed.
        """

    def require_unchanged_at(self, i: int) -> None:
        """Like :meth:`require_unchanged`, as far as image ``i`` is concerned, which could not be used. While a set
        changes, chance would decide which images are skipped."""
        self.require_unchanged()

    def check_labels(self) -> None:  # noqa: B027 (most kinds have nothing to do)
        """Check labels before training, as far as that is quick.

        :raises UserError: if one is out of range, or too many images are bad.
        """

    def close(self) -> None:  # noqa: B027 (most kinds have nothing to do)
        """Close the files."""

    def usable(self, i: int) -> tuple[int, np.ndarray, int]:
        """Like :meth:`load`, but skip bad images: the next usable one after ``i`` takes its place. After the last image
        the search goes on with image 0.

        :raises UserError: on a bad image unless they are skipped; if there are too many, or if the set has changed
            since it was opened.
        """
        try:
            return self.load(i)
        except UserError as error:
            self._leave_out(i, error)
        for j in range(i + 1, i + len(self)):
            if int(self.keys[j % len(self)]) in self.bad:
                continue
            try:
                return self.load(j % len(self))
            except UserError as error:
                self._leave_out(j % len(self), error)
        raise UserError(f"{self.source}: none of its {len(self)} images can be used; {self.bad}")

    def is_image(self, images: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """True for each of ``images``, int64 (n,), whose own key is in ``keys``; False where a batch holds another
        image in its place; bool (n,)."""
        return self.keys[images] == keys

    def large_identities(self, min_images: int) -> np.ndarray:
        """The images of identities that have at least ``min_images`` of them, int64 (n,). A line is logged."""
        labels = self.labels()
        counts = np.bincount(labels[labels != NO_LABEL], minlength=self.num_classes)
        kept = (counts[labels] >= min_images) & (labels != NO_LABEL)
        few = (counts > 0) & (counts < min_images)
        _logger.info("%s: data_images_filter %d leaves out %d of %d identities and %d of %d images", self.path,
                     min_images, few.sum(), (counts > 0).sum(), (~kept).sum(), len(kept))
        return np.flatnonzero(kept)

    def _leave_out(self, i: int, error: UserError) -> None:
        if self.bad.skips:
            self.require_unchanged_at(i)
        self.bad.note(int(self.keys[i]), error)
