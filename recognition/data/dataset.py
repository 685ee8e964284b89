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
from hashlib import sha256
from pathlib import Path

import numpy as np

from recognition.data.bad_records import SKIP, STOP, BadRecords
from recognition.data.image import MOST_RECORD_PIXELS, decode_rgb, fit
from recognition.data.jpeg_damage import damage
from recognition.data.recordio import PathLike, RecordReader, first_label_and_body, unpack_record
from recognition.data.set_layout import Property, check_last, find_images, find_records, read_property
from recognition.errors import UserError

LABELS_CHECKED = 1000  # before training; the others when their images are read
NO_LABEL = -1  # of a record that cannot be used, where these are skipped
_LABELS = struct.Struct("<IfQQf")  # header of a record and the first of its further labels
_logger = logging.getLogger(__name__)


class FaceDataset:
    """The images of a training set, numbered 0 .. len - 1 by rising record key. Methods may be called from any thread.

    path: the folder. num_classes: from ``property``. image_shape: (height, width, 3).
    form: "identities", "sequential" or "shuffled", see the module. bad: what is done about records without use.
    """

    def __init__(self, path: Path, form: str, prop: Property, reader: RecordReader, keys: np.ndarray,
                 offsets: np.ndarray, bad: BadRecords):
        self.path, self.form, self.bad = path, form, bad
        self.num_classes = prop.num_classes
        self.image_shape = (prop.height, prop.width, 3)
        self._reader, self._keys, self._offsets = reader, keys, offsets

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def records(self) -> tuple[RecordReader, np.ndarray, np.ndarray]:
        """The record file, and keys and offsets of the images: for tools that look at records whatever is wrong."""
        return self._reader, self._keys, self._offsets

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

    def load(self, i: int) -> tuple[int, np.ndarray, int]:
        """Label, image uint8 ``(H, W, 3)`` RGB of the set's size, and record key of image ``i``.

        All that can be wrong with a record of an image is a UserError that names it.
        """
        label, encoded, key = self.read(i)
        try:
            if lost := damage(encoded):
                raise ValueError(lost)
            return label, fit(decode_rgb(encoded, MOST_RECORD_PIXELS), *self.image_shape[:2]), key
        except ValueError as error:
            raise self.error(key, error) from error

    def usable(self, i: int) -> tuple[int, np.ndarray, int]:
        """As :meth:`load`. Where bad records are skipped, of the first image from ``i`` on that is not bad: the
        sequence goes round.

        :raises UserError: if bad records are not skipped, are too many, or the file has changed since it was opened.
        """
        try:
            return self.load(i)
        except UserError as error:
            self._leave_out(i, error)
        for j in range(i + 1, i + len(self)):
            if int(self._keys[j % len(self)]) in self.bad:
                continue
            try:
                return self.load(j % len(self))
            except UserError as error:
                self._leave_out(j % len(self), error)
        raise UserError(f"{self._reader.path}: none of its {len(self)} images can be used; {self.bad}")

    def digest(self) -> str:
        """Of the images' record keys and places in the file: another where the images are others, or in other order."""
        found = sha256(np.ascontiguousarray(self._keys, np.int64).data)
        found.update(np.ascontiguousarray(self._offsets, np.int64).data)
        return found.hexdigest()[:16]

    def is_image(self, images: np.ndarray, records: np.ndarray) -> np.ndarray:
        """Whether ``records``, keys of a batch, are those of ``images`` and not of others that stand in; bool (n,)."""
        return self._keys[images] == records

    def labels(self) -> np.ndarray:
        """The label of every image, int64 ``(len,)``; NO_LABEL for a record that is left out. Reads 36 bytes a record:
        2 s a million once they are cached."""
        found = np.full(len(self), np.nan, np.float32)
        for i, offset in enumerate(self._offsets.tolist()):
            try:
                head = self._reader.peek(offset, _LABELS.size)
            except UserError as error:
                self._leave_out(i, self.error(self._keys[i], error))
                continue
            if len(head) < _LABELS.size:
                self._leave_out(i, self.error(self._keys[i], f"its {len(head)} bytes hold no image"))
                continue
            flag, label, _, _, first = _LABELS.unpack(head)
            found[i] = first if flag else label
        with np.errstate(invalid="ignore"):
            labels = found.astype(np.int64)
        for i in np.flatnonzero((labels != found) | (labels < 0) | (labels >= self.num_classes)).tolist():
            labels[i], key = NO_LABEL, int(self._keys[i])
            if key not in self.bad:
                try:
                    self._class(key, float(found[i]))
                except UserError as error:
                    self._leave_out(i, error)
        return labels

    def require_unchanged(self) -> None:
        """:raises UserError: if the record file is no longer what it was when it was opened."""
        self._reader.require_unchanged()

    def check_labels(self) -> None:
        """Look at up to 1000 labels, so that a property file that is not of this set shows before training does.

        Labels mostly rise with the record, and the last one is among these: if they do, classes beyond it have no
        image, which is said in a line. Where bad records are skipped, no more than their share of these may be bad.
        """
        sample = self.take(np.linspace(0, len(self) - 1, min(len(self), LABELS_CHECKED)).astype(np.int64))
        sample.bad = BadRecords(SKIP if self.bad.skips else STOP, self.bad.share, len(sample), quiet=True)
        labels = sample.labels()
        labels = labels[labels != NO_LABEL]
        if len(labels) and (np.diff(labels) >= 0).all() and labels[-1] + 1 < self.num_classes:
            _logger.info("%s: %d identities, but the labels end at %d: those beyond it have no image",
                         self.path / "property", self.num_classes, labels[-1])

    def without_small_identities(self, min_images: int) -> FaceDataset:
        """The same set without the identities of fewer than ``min_images`` images. Labels stay as they are."""
        labels = self.labels()
        counts = np.bincount(labels[labels != NO_LABEL], minlength=self.num_classes)
        kept = (counts[labels] >= min_images) & (labels != NO_LABEL)
        few = (counts > 0) & (counts < min_images)
        _logger.info("%s: data_images_filter %d leaves out %d of %d identities and %d of %d images", self.path,
                     min_images, few.sum(), (counts > 0).sum(), (~kept).sum(), len(kept))
        return self.take(np.flatnonzero(kept))

    def take(self, images: np.ndarray) -> FaceDataset:
        """The set of these images, in this order; an image may come more than once. Labels stay as they are."""
        prop = Property(self.num_classes, *self.image_shape[:2], shuffled=False)
        return FaceDataset(self.path, self.form, prop, self._reader, self._keys[images], self._offsets[images],
                           self.bad)

    def error(self, key: int, what: object) -> UserError:
        """The error that names the file and the record."""
        return UserError(f"{self._reader.path}: record {key}: {what}")

    def close(self) -> None:
        self._reader.close()

    def _leave_out(self, i: int, error: UserError) -> None:
        if self.bad.skips:  # of a file that changes, what is left out would be chance
            self._reader.require_unchanged()
        self.bad.note(int(self._keys[i]), error)

    def _class(self, key: int, label: float) -> int:
        if not 0 <= label < self.num_classes or label != int(label):
            raise self.error(key, f"label {label:g}, expected a whole number from 0 to {self.num_classes - 1}, as "
                             f"{self.path / 'property'} says")
        return int(label)


def open_dataset(folder: PathLike, shuffled: bool = False, images_filter: int = 0, on_bad_record: str = STOP,
                 bad_record_share: float = 0.01) -> FaceDataset:
    """Open the training set in ``folder``, whichever form it has.

    shuffled: read it in file order even if ``property`` does not say so (``is_shuffled_rec``).
    images_filter: leave out identities of fewer images (``data_images_filter``).
    on_bad_record, bad_record_share: what to do about records that cannot be used, see ``bad_records``.
    """
    folder = Path(folder)
    if not (folder / "train.rec").is_file():
        raise UserError(f"{folder}: no train.rec there, expected a folder of train.rec, train.idx and property")
    prop = read_property(folder / "property")
    reader = RecordReader(folder / "train.rec")
    shuffled = shuffled or prop.shuffled
    bad = BadRecords(on_bad_record, bad_record_share)
    keys, offsets = find_records(folder / "train.idx", reader, shuffled, bad)
    images = find_images(reader, keys, offsets)
    form = "shuffled" if shuffled else "identities" if images.start else "sequential"
    if form != "identities":  # those have a header that says how many there are
        check_last(folder / "train.idx", reader, offsets, bad)
    bad.images = len(keys[images])
    dataset = FaceDataset(folder, form, prop, reader, keys[images], offsets[images], bad)
    if images.start:
        _check_identities(dataset, len(keys) - images.stop)
    if images_filter > 1:
        dataset = dataset.without_small_identities(images_filter)
    if not len(dataset):
        raise UserError(f"{reader.path}: no images there, or data_images_filter {images_filter} leaves none")
    return dataset


def _check_identities(dataset: FaceDataset, counted: int) -> None:
    """Hold the property file against the records that describe an identity each; ``counted``: 0 if none are indexed.

    There may be fewer where images were dropped and the labels kept: then these go beyond their number.
    """
    if counted in (0, dataset.num_classes):
        return
    labels = dataset.labels()  # a label out of range is the better message
    labels = labels[labels != NO_LABEL]
    last, path = int(labels.max(initial=0)), dataset.path / "property"
    if dataset.num_classes < counted or last < counted:
        raise UserError(f"{path}: found {dataset.num_classes} identities, but train.rec describes {counted} and its "
                        f"labels end at {last}, expected {counted}")
    _logger.info("%s: %d identities, of which %d have no image", path, dataset.num_classes,
                 dataset.num_classes - len(np.unique(labels)))
