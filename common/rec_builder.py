# SPDX-License-Identifier: Apache-2.0
"""Builds training sets image by image, as a library and as a command.

    with RecBuilder("datasets/mine") as builder:         # the form with identity records
        builder.add(0, [jpeg_bytes, bgr_array, ...])     # all images of identity 0, then of the next
    with SeqRecBuilder("datasets/mine") as builder:      # the sequential form: images in any order
        builder.add(7, bgr_array)

    python -m common.rec_builder photographs datasets/mine --form sequential
    python -m common.rec_builder datasets/sequential datasets/indexed --form identities

The command takes a folder of folders, a list file, or a training set, whose form it changes and whose images it copies
byte for byte. It looks at each image once and keeps none in memory; common.pack_folder also finds repeated images and
holds people out. The new set is there when all of it is written, or not at all.
"""
from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import Union

import cv2
import numpy as np

from common.pack_folder import FITS, encode_image
from common.sets.image_files import tell_scaled, tried_in_order
from common.sets.image_sources import each_identity
from common.sets.output_folder import new_folder
from common.sets.training_set import MAX_RECORDS, NAMES, identity_names, link_bins, write_names, write_property
from common.sets.usable_records import open_usable
from recognition.config.command_line import Parser, check_ranges
from recognition.data.records.recordio import PathLike, RecordWriter, pack_record
from recognition.data.records.set_layout import MAX_CLASSES
from recognition.data.sets.dataset import FaceDataset, open_dataset
from recognition.errors import UserError, command, one_line
from recognition.io.files import writing
from recognition.progress import clear_of_bars, progress

Image = Union[bytes, np.ndarray]  # encoded, or uint8 (H, W, 3) BGR as OpenCV reads


class _Builder:
    """The common part of both builders: files that appear whole or not at all."""

    def __init__(self, path: PathLike, image_size: tuple[int, int] = (112, 112), quality: int = 95,
                 num_classes: int = 0) -> None:
        """:param path: a folder, which is made if it does not exist; ``image_size``: (height, width), for ``property``
        :param num_classes: the least number of identities; the highest label may raise it
        """
        self.path, self.image_size, self.quality = Path(path), image_size, quality
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        self._writer = RecordWriter(self.path / "train.rec", self.path / "train.idx").__enter__()
        self._open, self._key, self.num_classes = True, 0, num_classes

    def _write(self, label: int, image: Image) -> None:
        if not 0 <= label < MAX_CLASSES or label != int(label):
            raise ValueError(f"label {label}, expected a whole number from 0 to {MAX_CLASSES - 1}")
        if isinstance(image, np.ndarray):
            if image.shape[:2] != tuple(self.image_size):
                raise ValueError(f"an image of {image.shape[:2]}, expected {tuple(self.image_size)}")
            _, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, self.quality])
            image = encoded.tobytes()
        if not image:
            raise ValueError("an image of no bytes")
        self._writer.write(self._key, pack_record(float(label), bytes(image), id=self._key))
        self._key += 1
        self.num_classes = max(self.num_classes, int(label) + 1)

    def _finish(self) -> None:
        """Write the records after the last image; the sequential form has none."""

    def close(self) -> None:
        """Write the rest and give the files their names. May be called twice."""
        if not self._open:
            return
        self._open = False
        try:
            self._finish()
        except BaseException as error:
            self._writer.__exit__(type(error), error, error.__traceback__)
            raise
        with writing(self.path):
            self._writer.__exit__(None)
            write_property(self.path, self.num_classes, self.image_size)

    def __enter__(self) -> _Builder:
        return self

    def __exit__(self, error_type: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if error_type is None:
            self.close()
        elif self._open:
            self._open = False
            self._writer.__exit__(error_type, error, trace)


class SeqRecBuilder(_Builder):
    """A builder of the sequential form: records 0, 1, ... are images, in any order."""

    def add(self, label: int, img: Image, is_image: bool = True) -> None:
        """Add an image: an array in BGR, or encoded bytes. ``is_image`` is accepted from older callers and ignored."""
        self._write(label, img)

    def __enter__(self) -> SeqRecBuilder:
        return self


class RecBuilder(_Builder):
    """A builder of the form with a header and a record for each identity. Labels rise; skipped ones have no image."""

    def __init__(self, path: PathLike, image_size: tuple[int, int] = (112, 112), quality: int = 95,
                 num_classes: int = 0) -> None:
        super().__init__(path, image_size, quality, num_classes)
        self._ends = [1]
        self._writer.write(0, pack_record((0, 0)))
        self._key = 1

    def add(self, label: int, imgs: Iterable[Image]) -> None:
        """Add all images, at least one, of the identity ``label``, which must be greater than the last one."""
        if label < len(self._ends) - 1:
            raise ValueError(f"label {label} after {len(self._ends) - 2}, labels must rise")
        before = self._key
        for img in imgs:
            self._write(label, img)
            if self._key + int(label) + 1 > MAX_RECORDS:
                raise UserError(f"{self.path}: more than {MAX_RECORDS} records, which the form with identity records "
                                "cannot number; expected the sequential form")
        if self._key == before:
            raise ValueError(f"no images of identity {label}")
        self._ends += [before] * (int(label) + 1 - len(self._ends)) + [self._key]

    def _finish(self) -> None:
        first = self._key
        self._ends += [first] * (self.num_classes + 1 - len(self._ends))
        for key, (start, end) in enumerate(zip(self._ends[:-1], self._ends[1:]), first):
            self._writer.write(key, pack_record((start, end), id=key))
        self._writer.rewrite_first(pack_record((first, first + len(self._ends) - 1)))

    def __enter__(self) -> RecBuilder:
        return self


def build(folder: Path, form: str, images: Iterable[tuple[int, bytes]], size: tuple[int, int],
          num_classes: int = 0) -> int:
    """Write labels and encoded images in the form ``identities`` or ``sequential``; returns the number of identities.

    In the first form the images of a label must follow one another, and labels must rise.
    """
    if form == "identities":
        with RecBuilder(folder, size, num_classes=num_classes) as builder:
            for label, group in groupby(images, itemgetter(0)):
                builder.add(label, (image for _, image in group))
        return builder.num_classes
    with SeqRecBuilder(folder, size, num_classes=num_classes) as sequential:
        for label, image in images:
            sequential.add(label, image)
    return sequential.num_classes


def from_images(source: Path, folder: Path, form: str, size: int, fit: str, quality: int,
                skip_broken: bool = False) -> tuple[int, int]:
    """Build a set from a folder of folders or a list file; returns the numbers of images and identities.

    :param skip_broken: leave broken images out, with a line each
    """
    count, names = 0, folder / NAMES
    scaled: list[Path] = []

    def whole(found: Iterable[tuple[tuple[int, Path], bytes | UserError]]) -> Iterator[tuple[int, bytes]]:
        nonlocal count
        for (label, _), image in found:
            if isinstance(image, UserError):
                if not skip_broken:
                    raise image
                with clear_of_bars():
                    print(f"left out: {one_line(image)}", flush=True)
            else:
                count += 1
                yield label, image

    with open(names, "w", encoding="utf-8", errors="surrogateescape") as named:

        def numbered() -> Iterator[tuple[int, Path]]:
            for label, identity in enumerate(each_identity(source)):
                named.write(f"{identity.name}\n")
                for path in identity.images:
                    yield label, path

        images = tried_in_order(lambda item: encode_image(item[1], size, fit, quality, scaled), numbered())
        encoded = whole(progress(images, "packing", unit=" images"))
        classes = build(folder, form, encoded, (size, size))
    if not count:
        raise UserError(f"{source}: no images there, expected a folder of images for each person, or a list file")
    tell_scaled(scaled, size, size)
    return count, classes


def from_set(source: Path, folder: Path, form: str, renumber: bool, skip_broken: bool = False) -> tuple[int, int]:
    """Build a set in another form; returns the numbers of images and identities.

    :param renumber: leave out identities without images, and number the others anew
    :param skip_broken: leave out what training cannot use, with lines about it
    """
    dataset, chosen = open_usable(source) if skip_broken else _open_all(source)
    labels = dataset.labels()[chosen]
    order = np.argsort(labels, kind="stable")
    present, numbered = np.unique(labels[order], return_inverse=True)
    classes = len(present) if renumber else dataset.num_classes
    new = numbered if renumber else labels[order]
    images = ((int(label), dataset.read(int(i))[1]) for label, i in zip(new, chosen[order]))
    build(folder, form, progress(images, "copying", len(order), unit=" images"), dataset.image_shape[:2],
          classes)
    if names := identity_names(dataset):
        write_names(folder / NAMES, [names[i] for i in present] if renumber else names)
    link_bins([source], folder)
    dataset.close()
    return len(order), classes


def _open_all(source: Path) -> tuple[FaceDataset, np.ndarray]:
    dataset = open_dataset(source)
    return dataset, np.arange(len(dataset))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m common.rec_builder", description=__doc__)
    add = parser.add_argument
    add("source", type=Path, help="a training set; or a folder with a folder of images for each person; or a list file")
    add("output", type=Path, help="a new folder")
    add("--form", choices=("identities", "sequential"), default="identities", help="with a header and identity records "
        "(the default; up to 2**24 records), or images alone")
    add("--skip-broken", action="store_true", help="leave broken images out, with lines about them, instead of "
        "stopping at the first; of a training set also records that no header or index fits")
    add("--renumber", action="store_true", help="of a training set: leave out identities that have no image")
    add("--size", type=int, default=112, help="of images: side in pixels (default 112)")
    add("--fit", choices=FITS, default="pad", help="of images of another shape: scaled whole onto black (pad, the "
        "default), the middle cut out (crop), or scaled out of shape (stretch)")
    add("--quality", type=int, default=95, help="of JPEGs written (default 95); JPEGs of the right size are copied")
    args = parser.parse_args(argv)
    check_ranges(args, size=(1, 4096), quality=(1, 100))
    return args


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    with new_folder(args.output) as folder, writing(args.output):
        if (args.source / "train.rec").exists():
            images, classes = from_set(args.source, folder, args.form, args.renumber, args.skip_broken)
        else:
            images, classes = from_images(args.source, folder, args.form, args.size, args.fit, args.quality,
                                          args.skip_broken)
    print(f"{args.output}: {images} images of {classes} identities, in the form {args.form}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
