# SPDX-License-Identifier: Apache-2.0
"""Writers of training sets in the indexed form, with a header and identity records, and in the sequential form.

In the indexed form record 0 is the header with the label (first identity record, end). Images are records 1, 2, ...
with their class as the label, identity after identity. Each identity record has the label (first image, end image) and
no image. In the sequential form all records 0, 1, ... are images.
"""
from __future__ import annotations

import filecmp
import os
import re
import shutil
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import numpy as np

from recognition.data.records.recordio import RecordWriter, pack_record
from recognition.data.sets.dataset import FaceDataset
from recognition.errors import UserError, one_line
from recognition.io.files import write_whole
from recognition.io.text import read_text

NAMES = "identities.txt"  # a line for each identity
MAX_RECORDS = 1 << 24  # the ranges are float32, which holds every whole number up to here


def write_training_set(folder: Path, images_per_identity: Sequence[int], encoded: Iterable[bytes],
                       size: int | tuple[int, int] = 112) -> None:
    """Write ``train.rec``, ``train.idx`` and ``property`` to ``folder``.

    :param encoded: the encoded images, those of class 0 first; their number is the sum of ``images_per_identity``.
    :param size: their side in pixels, or height and width.
    :raises UserError: if there are more records than the form can number.
    """
    ends = np.cumsum([1, *images_per_identity]).tolist()
    first_identity, end = ends[-1], ends[-1] + len(images_per_identity)
    if end > MAX_RECORDS:
        raise UserError(f"{folder.name}: {end} records, the indexed form of records can number {MAX_RECORDS}")
    with RecordWriter(folder / "train.rec", folder / "train.idx") as writer:
        writer.write(0, pack_record((first_identity, end)))
        _write_images(writer, 1, images_per_identity, encoded)
        for key, image_range in enumerate(zip(ends[:-1], ends[1:]), first_identity):
            writer.write(key, pack_record(image_range, id=key))
    write_property(folder, len(images_per_identity), size)


def write_sequential_set(folder: Path, images_per_identity: Sequence[int], encoded: Iterable[bytes],
                         size: int | tuple[int, int] = 112) -> None:
    """Like :func:`write_training_set`, in the sequential form, which has no limit of records."""
    with RecordWriter(folder / "train.rec", folder / "train.idx") as writer:
        _write_images(writer, 0, images_per_identity, encoded)
    write_property(folder, len(images_per_identity), size)


def _write_images(writer: RecordWriter, first: int, images_per_identity: Sequence[int],
                  encoded: Iterable[bytes]) -> None:
    labels = np.repeat(np.arange(len(images_per_identity)), images_per_identity)
    key = first - 1
    for key, (label, image) in enumerate(zip(labels, encoded), first):
        writer.write(key, pack_record(float(label), image, id=key))
    if key - first + 1 != len(labels):
        raise ValueError(f"{key - first + 1} images for {len(labels)} records")


def write_property(folder: Path, classes: int, size: int | tuple[int, int]) -> None:
    height, width = (size, size) if isinstance(size, int) else size
    write_whole(folder / "property", f"{classes},{height},{width}\n")


def write_set(folder: Path, images_per_identity: Sequence[int], encoded: Iterable[bytes],
              size: int | tuple[int, int] = 112) -> None:
    """Like :func:`write_training_set`, but in the sequential form if the indexed form cannot number the records."""
    records = 1 + sum(images_per_identity) + len(images_per_identity)
    write = write_training_set if records <= MAX_RECORDS else write_sequential_set
    write(folder, images_per_identity, encoded, size)


def identity_names(dataset: FaceDataset) -> list[str]:
    """The names in the file NAMES, which pack_folder writes; none if it is missing or belongs to another set."""
    try:
        names = read_text(dataset.path / NAMES).split("\n")[:-1]
    except UserError:
        return []
    return names if len(names) == dataset.num_classes else []


def write_names(path: Path, names: Iterable[str]) -> None:
    """Write a name a line; names of folders come with bytes that are no UTF-8 as they are."""
    path.write_text("".join(f"{name}\n" for name in names), "utf-8", "surrogateescape")


def link_bins(sources: Sequence[Path], folder: Path, taken: Collection[str] = ()) -> None:
    """Link or copy the verification sets of ``sources`` to the new ``folder``.

    Files with the same name and content become one. If the contents differ, the first one keeps its name, and the name
    of its source is added to that of each further one; a line is printed about it.

    :param taken: names of files that ``folder`` will have
    """
    bins = [path for source in sources for path in sorted(source.glob("*.bin"))]
    names = {*taken, *(path.name for path in bins)}
    kept: dict[str, list[Path]] = {}
    for path in bins:
        others = kept.setdefault(path.name, [])
        if any(filecmp.cmp(path, other, shallow=False) for other in others):
            continue
        target, number = folder / path.name, 1
        if others or path.name in taken:
            stem = f"{path.stem}-" + re.sub(r"[^\w.-]+", "_", path.parent.resolve().name)  # no comma: a target's name
            target = folder / f"{stem}.bin"
            while target.name in names or os.path.lexists(target):
                number += 1
                target = folder / f"{stem}-{number}.bin"
            print(one_line(f"{path}: the new set has another {path.name}, so this one is kept as {target.name}"))
        link_or_copy(path, target)
        others.append(target)


def link_or_copy(path: Path, target: Path) -> None:
    """Link a file, which must never change, to the new name ``target``; copy it if the file system has no links."""
    try:
        os.link(path.resolve(), target)
    except OSError:
        shutil.copyfile(path, target)
