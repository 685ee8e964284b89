# SPDX-License-Identifier: Apache-2.0
"""The records of a training set that training can use, whatever is wrong with the others."""
from __future__ import annotations

from pathlib import Path

import numpy as np

from common.sets.image_files import in_order
from recognition.data.records.bad_records import SKIP
from recognition.data.sets.dataset import NO_LABEL, FaceDataset, open_dataset
from recognition.errors import UserError, one_line
from recognition.progress import progress

MOST_LINES = 10  # about records that are left out


def open_usable(source: Path) -> tuple[FaceDataset, np.ndarray]:
    """The set in ``source``, and the numbers of its images that training can use, int64 (n,), rising. Prints lines
    about the others.

    Where the header does not fit, it is not believed, and each record with an image counts.

    :raises UserError: if no image can be used
    """
    try:
        dataset = open_dataset(source, on_bad_record=SKIP, bad_record_share=1.0)
    except UserError as error:
        dataset = open_dataset(source, on_bad_record=SKIP, bad_record_share=1.0, header=False)
        print(one_line(f"{error}: the header is not believed, each record with an image counts"))
    chosen, lines = usable(dataset, np.flatnonzero(dataset.labels() != NO_LABEL))
    for line in lines[:MOST_LINES]:
        print(f"left out: {one_line(line)}")
    left = len(dataset) - len(chosen)
    if left:
        print(f"left out: {left} records of {len(dataset)}")
    if not len(chosen):
        raise UserError(f"{source}: none of its {len(dataset)} images can be used")
    return dataset, chosen


def usable(dataset: FaceDataset, images: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The ones of ``images``, int64 (n,), that training can use, and a line for each other one."""

    def wrong(i: int) -> str:
        try:
            dataset.load(i)
        except UserError as error:
            return str(error)
        return ""

    found = list(progress(in_order(wrong, images.tolist()), "looking at images", len(images), unit=" images"))
    return images[[not line for line in found]], [line for line in found if line]
