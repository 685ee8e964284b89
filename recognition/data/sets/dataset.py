# SPDX-License-Identifier: Apache-2.0
"""A training set on disk: ``train.rec``, ``train.idx`` and ``property`` in one folder, in one of three forms.

``identities``  record 0 is a header without an image: flag 2, label (first identity record, end). Records 1 up to the
                first identity record are images; each record after them describes an identity and has no image.
``sequential``  every record is an image.
``shuffled``    every record is an image, the order is random already and there may be no ``.idx``; ``property`` has the
                further lines ``number of images`` and ``shuffled``. It must be read in file order, as its
                ``order`` does.
"""
from __future__ import annotations

import logging
import struct
from hashlib import sha256
from pathlib import Path

import numpy as np

from recognition.data.images.image import MOST_RECORD_PIXELS, decode_rgb, fit
from recognition.data.images.jpeg_damage import damage
from recognition.data.order import EpochOrder
from recognition.data.records.bad_records import SKIP, STOP, BadRecords
from recognition.data.records.recordio import PathLike, RecordReader, first_label_and_body, unpack_record
from recognition.data.records.set_layout import (
    MAX_CLASSES,
    Property,
    check_last,
    find_images,
    find_records,
    read_property,
)
from recognition.data.sets.image_set import NO_LABEL, ImageSet
from recognition.errors import UserError

LANDMARKS = "landmarks.npz"  # in the folder
LABELS_CHECKED = 1000  # before training; the others are checked when their images are read
_LABELS = struct.Struct("<IfQQf")  # a record's header and the first of its further labels
_logger = logging.getLogger("recognition.data.dataset")  # log lines begin with it


class FaceDataset(ImageSet):
    """The images of a record file, numbered 0 .. len - 1 by rising record key, which is their key.

    path: the folder. num_classes, image_shape: from ``property``, or what stands in for it.
    form: "identities", "sequential" or "shuffled", see the module.
    """

    def __init__(self, path: Path, form: str, prop: Property, reader: RecordReader, keys: np.ndarray,
                 offsets: np.ndarray, bad: BadRecords, counted_by: str = ""):
        """:param counted_by: what says how many identities there are, in words; empty: the property file."""
        super().__init__(path, form, prop.num_classes, (prop.height, prop.width, 3), keys, bad)
        self._reader, self._offsets = reader, offsets
        self.counted_by = counted_by or str(path / "property")

    @property
    def records(self) -> tuple[RecordReader, np.ndarray, np.ndarray]:
        """The record file, and the keys and offsets of the images, int64 (len,) each: for tools that look at damaged
        records, too."""
        return self._reader, self.keys, self._offsets

    def read(self, i: int) -> tuple[int, bytes, int]:
        """Label, encoded image and record key of image ``i``.

        :raises UserError: with the record's key, if the record cannot be read or has no image or a wrong label.
        """
        key = int(self.keys[i])
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
        """Label, pixels uint8 ``(H, W, 3)`` RGB of the set's size, and record key of image ``i``.

        :raises UserError: with the record's key, on anything that is wrong with it.
        """
        label, encoded, key = self.read(i)
        try:
            if lost := damage(encoded):
                raise ValueError(lost)
            return label, fit(decode_rgb(encoded, MOST_RECORD_PIXELS), *self.image_shape[:2]), key
        except ValueError as error:
            raise self.error(key, error) from error

    @property
    def source(self) -> Path:
        return self._reader.path

    @property
    def landmarks_place(self) -> tuple[Path, str]:
        return self.path / LANDMARKS, f"{self._reader.size} bytes of records"

    def order(self, seed: int) -> EpochOrder:
        """A shuffled file is read from front to end."""
        return EpochOrder(len(self), seed, shuffle=self.form != "shuffled")

    def digest(self) -> str:
        """A digest of the images' record keys and offsets: it changes with the images and with their order."""
        found = sha256(np.ascontiguousarray(self.keys, np.int64).data)
        found.update(np.ascontiguousarray(self._offsets, np.int64).data)
        return found.hexdigest()[:16]

    def labels(self) -> np.ndarray:
        """The label of every image, int64 ``(len,)``; NO_LABEL for a skipped record. Reads 36 bytes a record: 2 s a
        million once they are cached."""
        found = np.full(len(self), np.nan, np.float32)
        for i, offset in enumerate(self._offsets.tolist()):
            try:
                head = self._reader.peek(offset, _LABELS.size)
            except UserError as error:
                self._leave_out(i, self.error(self.keys[i], error))
                continue
            if len(head) < _LABELS.size:
                self._leave_out(i, self.error(self.keys[i], f"its {len(head)} bytes hold no image"))
                continue
            flag, label, _, _, first = _LABELS.unpack(head)
            found[i] = first if flag else label
        with np.errstate(invalid="ignore"):
            labels = found.astype(np.int64)
        for i in np.flatnonzero((labels != found) | (labels < 0) | (labels >= self.num_classes)).tolist():
            labels[i], key = NO_LABEL, int(self.keys[i])
            if key not in self.bad:
                try:
                    self._class(key, float(found[i]))
                except UserError as error:
                    self._leave_out(i, error)
        return labels

    def require_unchanged(self) -> None:
        """Compare the record file with what it was when it was opened.

        :raises UserError: if it has changed.
        """
        self._reader.require_unchanged()

    def check_labels(self) -> None:
        """Check up to LABELS_CHECKED labels before training, to find a property file of another set early.

        The last label is among them. If the labels rise with the records, classes beyond the last have no image: a line
        is logged. Where bad records are skipped, at most their tolerated share of these may be bad.

        :raises UserError: if a label is out of range, or too many records are bad.
        """
        sample = self.take(np.linspace(0, len(self) - 1, min(len(self), LABELS_CHECKED)).astype(np.int64))
        sample.bad = BadRecords(SKIP if self.bad.skips else STOP, self.bad.share, len(sample), quiet=True)
        labels = sample.labels()
        labels = labels[labels != NO_LABEL]
        if len(labels) and (np.diff(labels) >= 0).all() and labels[-1] + 1 < self.num_classes:
            _logger.info("%s: %d identities, but the labels end at %d: those beyond it have no image",
                         self.counted_by, self.num_classes, labels[-1])

    def take(self, images: np.ndarray) -> FaceDataset:
        """The set of ``images``, int64 (n,), in this order; an image may come more than once. Labels do not change."""
        prop = Property(self.num_classes, *self.image_shape[:2], shuffled=False)
        return FaceDataset(self.path, self.form, prop, self._reader, self.keys[images], self._offsets[images],
                           self.bad, self.counted_by)

    def error(self, key: int, what: object) -> UserError:
        """An error that names the file and the record."""
        return UserError(f"{self._reader.path}: record {key}: {what}")

    def close(self) -> None:
        self._reader.close()

    def _class(self, key: int, label: float) -> int:
        if not 0 <= label < self.num_classes or label != int(label):
            raise self.error(key, f"label {label:g}, expected a whole number from 0 to {self.num_classes - 1}, as "
                             f"{self.counted_by} says")
        return int(label)


def _property(folder: Path) -> Property:
    try:
        return read_property(folder / "property")
    except UserError as error:
        line = property_line(folder)
        raise UserError(f"{error}; the records fit {line}" if line else str(error)) from error


def open_dataset(folder: PathLike, shuffled: bool = False, images_filter: int = 0, on_bad_record: str = STOP,
                 bad_record_share: float = 0.01, header: bool = True, *,
                 otherwise: Property | None = None) -> FaceDataset:
    """Open the training set in ``folder``, in any of the three forms.

    shuffled: read it in file order even if ``property`` lacks the line ``shuffled`` (``is_shuffled_rec``).
    images_filter: leave out identities with fewer images (``data_images_filter``).
    on_bad_record, bad_record_share: the policy for records that cannot be used, see ``bad_records``.
    header: False: believe no header; header and identity records are then records without an image, which are bad.
    otherwise: what holds where there is no property file, as in sets that MXNet's im2rec made; with 0 classes they are
        counted by the labels. A line is logged. None: the file has to be there.

    :raises UserError: if the files are missing, damaged or do not fit together.
    """
    folder = Path(folder)
    if not (folder / "train.rec").is_file():
        raise UserError(f"{folder}: no train.rec there, expected a folder of train.rec, train.idx and property")
    reader = RecordReader(folder / "train.rec")
    known = (folder / "property").exists()
    if not known and otherwise is None:
        raise UserError(f"{folder / 'property'}: not found, expected a file of one line, "
                        f"{property_line(folder) or 'number of identities,height,width, such as 85742,112,112'}")
    prop = otherwise if otherwise and not known else _property(folder)
    shuffled = shuffled or prop.shuffled
    bad = BadRecords(on_bad_record, bad_record_share)
    keys, offsets = find_records(folder / "train.idx", reader, shuffled, bad)
    images = find_images(reader, keys, offsets) if header else slice(0, None)
    form = "shuffled" if shuffled else "identities" if images.start else "sequential"
    if form != "identities" and header:  # the header of "identities" holds the number of images
        check_last(folder / "train.idx", reader, offsets, bad)
    bad.images = len(keys[images])
    dataset = FaceDataset(folder, form, prop, reader, keys[images], offsets[images], bad)
    if not known:
        dataset = _count_identities(dataset, prop)
    elif images.start:
        _check_identities(dataset, len(keys) - images.stop)
    if images_filter > 1:
        dataset = dataset.take(dataset.large_identities(images_filter))
    if not len(dataset):
        raise UserError(f"{reader.path}: no images there, or data_images_filter {images_filter} leaves none")
    return dataset


def _count_identities(dataset: FaceDataset, otherwise: Property) -> FaceDataset:
    """The set with the number of identities that its missing property file would have."""
    count, counted_by = otherwise.num_classes, "num_classes of the configuration"
    if not count:
        reader, keys, offsets = dataset.records
        prop = otherwise._replace(num_classes=MAX_CLASSES)
        every = FaceDataset(dataset.path, dataset.form, prop, reader, keys, offsets, dataset.bad, "the record format")
        count, counted_by = int(every.labels().max(initial=0)) + 1, "the highest label"
    _logger.info("%s: no property file there: %d identities by %s, images of %d x %d", dataset.path, count, counted_by,
                 otherwise.height, otherwise.width)
    reader, keys, offsets = dataset.records
    return FaceDataset(dataset.path, dataset.form, otherwise._replace(num_classes=count), reader, keys, offsets,
                       dataset.bad, counted_by)


def property_line(folder: Path) -> str:
    """The line that ``property`` of a folder with ``train.rec`` should hold, from the records: the highest label + 1,
    and the size of the first image. Empty if it cannot be told."""
    reader = RecordReader(folder / "train.rec")
    try:
        keys, offsets = find_records(folder / "train.idx", reader, False, BadRecords(SKIP, 1.0))
        images = find_images(reader, keys, offsets)
        first, highest = "", -1.0
        for offset in offsets[images].tolist():
            label, body = first_label_and_body(reader.read(offset))
            if not first:
                height, width = decode_rgb(body, MOST_RECORD_PIXELS).shape[:2]
                first = f"{height},{width}"
            highest = max(highest, label)
    except (ValueError, OSError, UserError):
        return ""
    finally:
        reader.close()
    return f"{int(highest) + 1},{first}" if first and 0 <= highest < MAX_CLASSES and highest == int(highest) else ""


def _check_identities(dataset: FaceDataset, counted: int) -> None:
    """Compare the number of classes in the property file with ``counted``, the number of identity records; 0: none.

    A set from which images were dropped may have fewer identity records than classes if it kept its labels: the largest
    label is then not below ``counted``. A set that was packed from a list in another order than that of the labels has
    a record wherever the label changes, so more than classes; others have empty records, or two of an identity. If all
    labels are of the property file's classes, the labels count, as they always did.

    :raises UserError: if they do not fit together.
    """
    if counted in (0, dataset.num_classes):
        return
    labels = dataset.labels()  # first, as the message about a label out of range is the better one
    labels = labels[labels != NO_LABEL]
    last, path = int(labels.max(initial=0)), dataset.path / "property"
    if last < dataset.num_classes < counted:
        _logger.warning("%s: %d identity records for %d identities: %s; the labels of the images count",
                        path.with_name("train.rec"), counted, dataset.num_classes, why_more_identities(labels, counted))
        return
    if last < counted:
        raise UserError(f"{path}: found {dataset.num_classes} identities, but train.rec describes {counted} and its "
                        f"labels end at {last}, expected {counted}")
    if empty := dataset.num_classes - len(np.unique(labels)):
        _logger.info("%s: %d identities, of which %d have no image", path, dataset.num_classes, empty)


def why_more_identities(labels: np.ndarray, counted: int) -> str:
    """Why a set may have ``counted`` identity records, more than there are identities; ``labels``: in its order."""
    if counted <= (np.diff(labels) != 0).sum() + 1:
        return "the images of an identity do not lie together"
    return "some are empty, or several of one identity"
