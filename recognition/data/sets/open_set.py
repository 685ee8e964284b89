# SPDX-License-Identifier: Apache-2.0
"""Opens a training set by where it is: a folder of records, a folder of folders of images, ``synthetic:N``, several."""
from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from recognition.data.records.bad_records import SKIP, BadRecords
from recognition.data.records.set_layout import Property
from recognition.data.sets.dataset import open_dataset
from recognition.data.sets.folder_set import INDEX, open_folder
from recognition.data.sets.image_set import ImageSet
from recognition.data.sets.several_sets import SeveralSets
from recognition.data.sets.synthetic_set import SyntheticSet
from recognition.errors import UserError

_SYNTHETIC = re.compile(r"synthetic:([0-9]{1,9})")


@dataclass(frozen=True)
class Opening:
    """The options with which a set is opened."""

    side: int = 112  # of images, in pixels, where no property file says it
    num_classes: int = 0  # where none does; 0: as the labels say
    shuffled: bool = False  # records are read in their own order
    images_filter: int = 0  # identities of fewer images are left out
    on_bad_record: str = SKIP
    bad_record_share: float = 0.01
    seed: int = 0  # of what is made up
    index_folder: Path | None = None  # where the index of a folder is kept that has no place beside it
    writes: bool = True  # whether this process writes the index

    def bad(self) -> BadRecords:
        """A new count of what cannot be used."""
        return BadRecords(self.on_bad_record, self.bad_record_share)


def open_set(path: str, how: Opening) -> ImageSet:
    """Open one set.

    :raises UserError: if there is none, or if it cannot be read.
    """
    found = _SYNTHETIC.fullmatch(path)
    folder = Path(path)
    if not found and ((folder / "train.rec").is_file() or not _has_folders(folder)):
        prop = Property(how.num_classes, how.side, how.side, False)
        return open_dataset(folder, how.shuffled, how.images_filter, how.on_bad_record, how.bad_record_share,
                            otherwise=prop)
    if how.shuffled:
        raise UserError(f"is_shuffled_rec: found True, but {path} is no file of records, which alone has an order")
    if found:
        dataset: ImageSet = SyntheticSet(path, int(found[1]), (how.side, how.side, 3), how.seed)
    else:
        root = Path(os.path.abspath(folder))
        beside = [root.with_name(root.name + INDEX)] if root.name else []
        beside += [how.index_folder / (root.name + INDEX)] if how.index_folder else []
        dataset = open_folder(folder, how.side, how.bad(), beside, how.writes)
    if how.images_filter > 1:
        dataset = dataset.take(dataset.large_identities(how.images_filter))
        if not len(dataset):
            raise UserError(f"{path}: data_images_filter {how.images_filter} leaves none of its images")
    return dataset


def open_sets(paths: str | Sequence[str], weights: Sequence[float], how: Opening) -> ImageSet:
    """Open one set, or several as one; ``weights``: of several, none for 1 each.

    :raises UserError: if one cannot be read, or if their images have different sizes.
    """
    if isinstance(paths, str):
        return open_set(paths, how)
    sets = [open_set(path, replace(how, num_classes=0)) for path in paths]
    for part in sets:
        if part.image_shape != sets[0].image_shape:
            shapes = ["x".join(map(str, each.image_shape)) for each in (sets[0], part)]
            raise UserError(f"{part.path}: images of {shapes[1]}, but {sets[0].path} has {shapes[0]}, expected one "
                            "size")
    return SeveralSets(sets, how.bad(), weights)


def _has_folders(folder: Path) -> bool:
    try:
        return any(entry.is_dir() and not entry.name.startswith(".") for entry in os.scandir(folder))
    except OSError:
        return False
