# SPDX-License-Identifier: Apache-2.0
"""Writes training sets in the indexed form: a header record, the images, and a record for each identity.

The header is record 0 with label (first identity record, end); images are records 1, 2, ... with their class as the
label, identity after identity; each identity record has label (first image, end image) and no image.
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from recognition.data.recordio import RecordWriter, pack_record
from recognition.errors import UserError

MAX_RECORDS = 1 << 24  # the ranges are float32, which holds every whole number up to here


def write_training_set(folder: Path, images_per_identity: Sequence[int], encoded: Iterable[bytes],
                       size: int = 112) -> None:
    """Write ``train.rec``, ``train.idx`` and ``property`` to ``folder``.

    ``encoded`` gives the encoded square images of ``size`` pixels, those of class 0 first: as many in all as
    ``images_per_identity`` says.
    """
    ends = np.cumsum([1, *images_per_identity]).tolist()
    first_identity, end = ends[-1], ends[-1] + len(images_per_identity)
    if end > MAX_RECORDS:
        raise UserError(f"{folder.name}: {end} records, the indexed form of records can number {MAX_RECORDS}")
    labels = np.repeat(np.arange(len(images_per_identity)), images_per_identity).tolist()
    with RecordWriter(folder / "train.rec", folder / "train.idx") as writer:
        writer.write(0, pack_record((first_identity, end)))
        key = 0
        for key, (label, image) in enumerate(zip(labels, encoded), 1):
            writer.write(key, pack_record(float(label), image, id=key))
        if key != first_identity - 1:
            raise ValueError(f"{key} images for {first_identity - 1} records")
        for key, image_range in enumerate(zip(ends[:-1], ends[1:]), first_identity):
            writer.write(key, pack_record(image_range, id=key))
    (folder / "property").write_text(f"{len(images_per_identity)},{size},{size}\n")
