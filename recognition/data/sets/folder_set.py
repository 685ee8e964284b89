# SPDX-License-Identifier: Apache-2.0
"""A training set that is a folder of folders of images, one a person, read in place."""
from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np

from recognition.data.images.image import fit_square
from recognition.data.images.image_files import read_file, read_image
from recognition.data.images.image_header import image_size
from recognition.data.records.bad_records import BadRecords
from recognition.data.sets.folder_index import Listing, list_images, read_index, write_index
from recognition.data.sets.image_set import ImageSet
from recognition.errors import UserError, one_line

INDEX = ".images.npz"  # behind the folder's name: the index, beside the folder
LANDMARKS = ".landmarks.npz"  # likewise
LOOKED_AT = 100  # images whose size is looked at before training
_logger = logging.getLogger(__name__)


class FolderSet(ImageSet):
    """The images of a folder. An image of another size than the set's is scaled whole onto black, as
    ``common.pack_folder`` does; its key is its number in the listing."""

    def __init__(self, listing: Listing, side: int, bad: BadRecords, keys: np.ndarray | None = None) -> None:
        super().__init__(listing.root, "folder", len(listing.people.ends), (side, side, 3),
                         np.arange(len(listing.labels)) if keys is None else keys, bad)
        self.listing = listing

    def load(self, i: int) -> tuple[int, np.ndarray, int]:
        key = int(self.keys[i])
        _, image = read_image(self.listing.path(key))
        side = self.image_shape[0]
        if image.shape != self.image_shape:
            image = fit_square(image, side, "pad")
        return int(self.listing.labels[key]), image, key

    def labels(self) -> np.ndarray:
        return self.listing.labels[self.keys].astype(np.int64)

    def digest(self) -> str:
        found = sha256(self.listing.digest().encode())
        found.update(np.ascontiguousarray(self.keys, np.int64).data)
        return found.hexdigest()[:16]

    @property
    def landmarks_place(self) -> tuple[Path, str]:
        root = Path(os.path.abspath(self.path))
        return root.with_name(root.name + LANDMARKS), self.listing.digest()

    def take(self, images: np.ndarray) -> FolderSet:
        return FolderSet(self.listing, self.image_shape[0], self.bad, self.keys[images])

    def require_unchanged_at(self, i: int) -> None:
        """An image that was there when the folder was listed has to stay."""
        path = self.listing.path(int(self.keys[i]))
        if not path.exists():
            raise UserError(f"{path}: gone since {self.path} was listed, expected a folder that stays as it is")

    def other_sizes(self) -> str:
        """A line about images of other sizes among LOOKED_AT of them; empty if there are none."""
        looked = np.unique(np.linspace(0, len(self) - 1, min(len(self), LOOKED_AT)).astype(np.int64))
        sizes = []
        for i in looked.tolist():
            with contextlib.suppress(UserError, ValueError):  # one that cannot be used is said when its turn comes
                sizes.append(image_size(read_file(self.listing.path(int(self.keys[i])))))
        side, other = self.image_shape[0], [size for size in sizes if size not in (None, self.image_shape[:2])]
        if not other:
            return ""
        height, width = other[0] or (0, 0)
        return (f"{len(other)} of {len(looked)} images looked at are not {side} x {side} (the first: {height} x "
                f"{width}): such are scaled whole onto black each time; common.face_align aligns faces, "
                "common.pack_folder scales once")


def open_folder(root: Path, side: int, bad: BadRecords, beside: Sequence[Path], writes: bool) -> FolderSet:
    """Open a folder of folders of images of ``side`` x ``side``, from its index if that still holds.

    :param beside: where the index may be, in order; the first that can be written gets a new one. A file there that is
        no index of ours stays as it is.
    :param writes: False in all processes but the first.
    :raises UserError: if the folder cannot be read, or holds no images.
    """
    began, listing, free = time.perf_counter(), None, []
    for path in beside:
        try:
            listing = read_index(path, root)
            free.append(path)
            if not listing.changed():
                break
            listing = None
        except FileNotFoundError:
            free.append(path)
        except (OSError, ValueError) as error:
            _logger.info("%s: %s; the folder is listed anew", path, one_line(error))
    how = f"as listed in {path}"
    if listing is None:
        listing = list_images(root)
        how = f"listed in {time.perf_counter() - began:.1f} s" + (_keep(listing, free) if writes else "")
    if writes:
        listing.left_out.tell(root)
    dataset = FolderSet(listing, side, bad)
    bad.images = len(dataset)
    _logger.info("%s: %d images of %d people, read in place; %s", one_line(root), len(dataset), dataset.num_classes,
                 how)
    if line := dataset.other_sizes():
        _logger.info("%s: %s", one_line(root), line)
    return dataset


def _keep(listing: Listing, places: Sequence[Path]) -> str:
    """Write the index to the first of ``places`` that can be written; returns words about it."""
    for path in places:
        if os.path.islink(path):
            continue
        with contextlib.suppress(UserError):
            write_index(path, listing)
            return f", kept in {path}"
    return ", kept nowhere: no place for its index can be written"
