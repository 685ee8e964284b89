# SPDX-License-Identifier: Apache-2.0
"""A training set on disk: ``train.rec``, ``train.idx`` and ``property`` in one folder, in the three forms in use.

``identities``  record 0 is a header without an image: flag 2, label (first identity record, end). Records 1 up to the
                first identity record are images; the records after them describe an identity each and have no image.
``sequential``  every record is an image.
``shuffled``    every record is an image, the order is random already and there may be no ``.idx``; ``property`` has the
                further lines ``number of images`` and ``shuffled``. To be read in file order: pass
                ``shuffle=dataset.form != "shuffled"`` to ``EpochOrder``.
"""
from __future__ import annotations

import logging
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np

from recognition.data.recordio import PathLike, RecordReader, first_label_and_body, read_index, unpack_record
from recognition.errors import UserError

LABELS_CHECKED = 1000  # before training; the others when their images are read
MAX_CLASSES = 1 << 24  # labels are float32, which holds every whole number up to here
_MAX_SIDE = 4096
_LABELS = struct.Struct("<IfQQf")  # header of a record and the first of its further labels
_logger = logging.getLogger(__name__)


class Property(NamedTuple):
    """The file ``property``: number of classes, image size in pixels, and whether it says that the set is shuffled."""

    num_classes: int
    height: int
    width: int
    shuffled: bool


class FaceDataset:
    """The images of a training set, numbered 0 .. len - 1 by rising record key. Methods may be called from any thread.

    path: the folder. num_classes: from ``property``. image_shape: (height, width, 3).
    form: "identities", "sequential" or "shuffled", see the module.
    """

    def __init__(self, path: Path, form: str, prop: Property, reader: RecordReader, keys: np.ndarray,
                 offsets: np.ndarray):
        self.path, self.form = path, form
        self.num_classes = prop.num_classes
        self.image_shape = (prop.height, prop.width, 3)
        self._reader, self._keys, self._offsets = reader, keys, offsets

    def __len__(self) -> int:
        return len(self._keys)

    def read(self, i: int) -> tuple[int, bytes, int]:
        """Label, encoded image and record key of image ``i``."""
        key = int(self._keys[i])
        try:
            payload = self._reader.read(int(self._offsets[i]))
            label, body = first_label_and_body(payload)
        except (ValueError, OSError, UserError) as error:
            raise self.error(key, error) from error
        if not body:
            record = unpack_record(payload)
            raise self.error(key, f"it has no image (flag {record.flag}, label {record.label[:2].tolist()})")
        return self._class(key, label), body, key

    def labels(self) -> np.ndarray:
        """The label of every image, int64 ``(len,)``. Reads 36 bytes a record: 2 s a million once they are cached."""
        found = np.empty(len(self), np.float32)
        for i, offset in enumerate(self._offsets.tolist()):
            head = self._reader.peek(offset, _LABELS.size)
            if len(head) < _LABELS.size:
                raise self.error(self._keys[i], f"its {len(head)} bytes hold no image")
            flag, label, _, _, first = _LABELS.unpack(head)
            found[i] = first if flag else label
        with np.errstate(invalid="ignore"):
            labels = found.astype(np.int64)
        for i in np.flatnonzero((labels != found) | (labels < 0) | (labels >= self.num_classes))[:1]:
            self._class(int(self._keys[i]), float(found[i]))
        return labels

    def check_labels(self) -> None:
        """Look at up to 1000 labels, so that a property file that is not of this set shows before training does.

        Labels mostly rise with the record, and the last one is among these: if they do, classes beyond it have no
        image, which is said in a line.
        """
        labels = self.take(np.linspace(0, len(self) - 1, min(len(self), LABELS_CHECKED)).astype(np.int64)).labels()
        if (np.diff(labels) >= 0).all() and labels[-1] + 1 < self.num_classes:
            _logger.info("%s: %d identities, but the labels end at %d: those beyond it have no image",
                         self.path / "property", self.num_classes, labels[-1])

    def without_small_identities(self, min_images: int) -> FaceDataset:
        """The same set without the identities of fewer than ``min_images`` images. Labels stay as they are."""
        labels = self.labels()
        counts = np.bincount(labels, minlength=self.num_classes)
        kept = counts[labels] >= min_images
        few = (counts > 0) & (counts < min_images)
        _logger.info("%s: data_images_filter %d leaves out %d of %d identities and %d of %d images", self.path,
                     min_images, few.sum(), (counts > 0).sum(), (~kept).sum(), len(kept))
        return self.take(np.flatnonzero(kept))

    def take(self, images: np.ndarray) -> FaceDataset:
        """The set of these images, in this order; an image may come more than once. Labels stay as they are."""
        prop = Property(self.num_classes, *self.image_shape[:2], shuffled=False)
        return FaceDataset(self.path, self.form, prop, self._reader, self._keys[images], self._offsets[images])

    def error(self, key: int, what: object) -> UserError:
        """The error that names the file and the record."""
        return UserError(f"{self._reader.path}: record {key}: {what}")

    def close(self) -> None:
        self._reader.close()

    def _class(self, key: int, label: float) -> int:
        if not 0 <= label < self.num_classes or label != int(label):
            raise self.error(key, f"label {label:g}, expected a whole number from 0 to {self.num_classes - 1}, as "
                             f"{self.path / 'property'} says")
        return int(label)


def open_dataset(folder: PathLike, shuffled: bool = False, images_filter: int = 0) -> FaceDataset:
    """Open the training set in ``folder``, whichever form it has.

    shuffled: read it in file order even if ``property`` does not say so (``is_shuffled_rec``).
    images_filter: leave out identities of fewer images (``data_images_filter``).
    """
    folder = Path(folder)
    if not (folder / "train.rec").is_file():
        raise UserError(f"{folder}: no train.rec there, expected a folder of train.rec, train.idx and property")
    prop = read_property(folder / "property")
    reader = RecordReader(folder / "train.rec")
    shuffled = shuffled or prop.shuffled
    keys, offsets = _index(folder / "train.idx", reader, by_offset=shuffled)
    images = _images(reader, keys, offsets)
    form = "shuffled" if shuffled else "identities" if images.start else "sequential"
    if form != "identities":  # those have a header that says how many there are
        _check_last(folder / "train.idx", reader, offsets)
    dataset = FaceDataset(folder, form, prop, reader, keys[images], offsets[images])
    if images.start:
        _check_identities(dataset, len(keys) - images.stop)
    if images_filter > 1:
        dataset = dataset.without_small_identities(images_filter)
    if not len(dataset):
        raise UserError(f"{reader.path}: no images there, or data_images_filter {images_filter} leaves none")
    return dataset


def read_property(path: PathLike) -> Property:
    """The file ``property``: ``num_classes,height,width`` in its first line."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = [line.strip() for line in file.read(4096).splitlines()]
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    first = lines[0] if lines else ""
    numbers = [int(part) for part in first.split(",") if part.strip().isdecimal()]
    if len(numbers) != 3 or first.count(",") != 2:
        raise UserError(f"{path}: found {first[:60]!r}, expected 'num_classes,height,width' such as '85742,112,112'")
    num_classes, height, width = numbers
    if not (1 <= num_classes <= MAX_CLASSES and 1 <= height <= _MAX_SIDE and 1 <= width <= _MAX_SIDE):
        raise UserError(f"{path}: found {first!r}, expected 1 to {MAX_CLASSES} classes and sides of 1 to {_MAX_SIDE}")
    return Property(num_classes, height, width, "shuffled" in lines[1:])


def _index(path: Path, reader: RecordReader, by_offset: bool) -> tuple[np.ndarray, np.ndarray]:
    """Keys and offsets by rising key or offset; without an index file, keys count the records as packers do."""
    if not path.exists():
        offsets = reader.offsets()
        _logger.warning("%s: not found, %d records of %s indexed by a scan", path, len(offsets), reader.path)
        return np.arange(len(offsets)), offsets
    keys, offsets = read_index(path)
    beyond = np.flatnonzero(offsets >= reader.size)
    if beyond.size:
        raise UserError(f"{path}: line {beyond[0] + 1}: offset {offsets[beyond[0]]}, but {reader.path} has only "
                        f"{reader.size} bytes")
    order = np.argsort(offsets if by_offset else keys, kind="stable")
    return keys[order], offsets[order]


def _check_last(path: Path, reader: RecordReader, offsets: np.ndarray) -> None:
    """Raise a UserError for an index that stops before its record file does."""
    end = reader.end(int(offsets.max())) if len(offsets) else 0
    if end != reader.size:
        raise UserError(f"{path}: its last record ends at byte {end}, but {reader.path} has {reader.size}, expected an "
                        "index of all records; without an index the records are found by a scan")


def _images(reader: RecordReader, keys: np.ndarray, offsets: np.ndarray) -> slice:
    """Which of the records are images: 1 .. first identity record - 1 behind a header, all of them without one."""
    everything = slice(0, None)
    if not len(keys) or keys[0] != 0:
        return everything
    try:
        header = unpack_record(reader.read(int(offsets[0])))
    except ValueError as error:
        raise UserError(f"{reader.path}: record 0: {error}") from error
    if header.flag != 2 or header.body:
        return everything
    first, end = header.label.tolist()
    if not 1 < first <= min(end, 2 * len(keys)):  # NaN fails too
        raise UserError(f"{reader.path}: record 0: header ({first:g}, {end:g}) for {len(keys)} records, expected "
                        "(first identity record, number of records)")
    stop = _first_identity(reader, keys, offsets, int(first))
    if stop > len(keys) or keys[stop - 1] != stop - 1:
        raise UserError(f"{reader.path}: the index has {np.searchsorted(keys, stop) - 1} of the images 1 .. {stop - 1} "
                        "that the header in record 0 announces")
    return slice(1, stop)


def _check_identities(dataset: FaceDataset, counted: int) -> None:
    """Hold the property file against the records that describe an identity each; ``counted``: 0 if none are indexed.

    There may be fewer where images were dropped and the labels kept: then these go beyond their number.
    """
    if counted in (0, dataset.num_classes):
        return
    labels = dataset.labels()  # a label out of range is the better message
    last, path = int(labels.max(initial=0)), dataset.path / "property"
    if dataset.num_classes < counted or last < counted:
        raise UserError(f"{path}: found {dataset.num_classes} identities, but train.rec describes {counted} and its "
                        f"labels end at {last}, expected {counted}")
    _logger.info("%s: %d identities, of which %d have no image", path, dataset.num_classes,
                 dataset.num_classes - len(np.unique(labels)))


def _first_identity(reader: RecordReader, keys: np.ndarray, offsets: np.ndarray, announced: int) -> int:
    """``announced``, or the first record near it without an image: above 2**24 the label of the header is rounded."""
    margin = int(np.spacing(np.float32(announced))) // 2
    for key in range(announced - margin, announced + margin):
        position = np.searchsorted(keys, key)
        if position < len(keys) and not unpack_record(reader.read(int(offsets[position]))).body:
            return key
    return announced + margin
