# SPDX-License-Identifier: Apache-2.0
"""The checks of :mod:`common.doctor`: problems of a data set's folder, each with advice."""
from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.sets.record_checks import MOST_PROBLEMS, Framing, Survey, framing, repeats
from common.sets.text_columns import whole_number
from common.sets.training_set import MAX_RECORDS
from recognition.data.records.record_index import read_index, require_fitting
from recognition.data.records.recordio import RecordReader, unpack_record
from recognition.data.records.set_layout import MAX_CLASSES, Property, find_images, read_property
from recognition.data.sets.dataset import open_dataset, property_line, why_more_identities
from recognition.errors import UserError
from recognition.io.text import read_text

ERROR, WARNING, NOTE = "error", "warning", "note"  # error: training stops or learns wrong things
_REPACK = "python -m common.rec_builder DIR NEW writes a set whose records, index, header and property agree"
_REPACK_WHOLE = "python -m common.rec_builder DIR NEW --skip-broken writes a set of the records that can be used"


class Finding(NamedTuple):
    """A problem. ``where``: its file, and record; ``advice``: a remedy."""

    level: str
    where: str
    what: str
    advice: str


class Records(NamedTuple):
    """The parts of a record file. The N records of ``keys`` and ``offsets`` should be images; keys rise."""

    reader: RecordReader
    framing: Framing
    keys: np.ndarray  # int64 (N,)
    offsets: np.ndarray  # int64 (N,)
    header: bool
    identities: list[tuple[int, int]]  # first and end image key of each identity record


def check_property(folder: Path) -> tuple[Property | None, list[Finding]]:
    path = folder / "property"
    try:
        return read_property(path), []
    except UserError as error:
        line = property_line(folder) if (folder / "train.rec").is_file() else ""
        what = str(error).split(": ", 1)[-1] if path.is_file() or not line else "is not there"
        return None, [Finding(ERROR, "property", what, "write one line into it: " + (
            line or "number of identities (the highest label + 1), height and width: 85742,112,112"))]


def check_files(folder: Path) -> tuple[Records | None, list[Finding]]:
    """Compare the record file with its index, and check the header and the identity records."""
    rec = folder / "train.rec"
    if not rec.is_file() or not rec.stat().st_size:
        what = "is empty" if rec.is_file() else "is not there"
        return None, [Finding(ERROR, "train.rec", what, "get it again: without it there is no set")]
    reader = RecordReader(rec)
    frames = framing(reader)
    findings = [Finding(ERROR, "train.rec", f"bytes {start} to {end} are no whole record: {why}",
                        "get the file again and compare its size or checksum" if end == reader.size else
                        "get the file again; " + _REPACK_WHOLE)
                for start, end, why in frames.damaged[:10]]
    keys, offsets, of_index = _check_index(folder / "train.idx", frames)
    findings += of_index
    order = np.argsort(keys, kind="stable")
    keys, offsets = keys[order], offsets[order]
    start, stop, identities, of_header = _check_header(reader, keys, offsets)
    return Records(reader, frames, keys[start:stop], offsets[start:stop], start == 1, identities), findings + of_header


def _check_index(path: Path, frames: Framing) -> tuple[np.ndarray, np.ndarray, list[Finding]]:
    """The keys and offsets of the index that lead to records, and findings; without an index, those of a scan."""
    scanned = np.arange(len(frames.offsets)), frames.offsets
    advice = f"{path.name} can be made anew from train.rec: python -m common.doctor DIR --write-index"
    if not path.exists():
        return *scanned, [Finding(NOTE, path.name, "is not there; records are found by a scan at each start", advice)]
    try:
        require_fitting(path, path.with_name("train.rec").stat().st_size)
        keys, offsets = read_index(path)
    except UserError as error:
        return *scanned, [Finding(ERROR, path.name, str(error).split(": ", 1)[-1], advice)]
    findings = []
    places = np.searchsorted(frames.offsets, offsets)
    found = np.zeros(len(offsets), bool)
    inside = places < len(frames.offsets)
    found[inside] = frames.offsets[places[inside]] == offsets[inside]
    if not found.all():
        key, offset = keys[~found][0], offsets[~found][0]
        findings.append(Finding(ERROR, path.name, f"{(~found).sum()} of {len(keys)} lines do not lead to a record, "
                                f"such as key {key}: offset {offset}", advice))
    _, times = np.unique(offsets, return_counts=True)
    if (times > 1).any():
        findings.append(Finding(WARNING, path.name, f"{(times > 1).sum()} records have more than one key", advice))
    missing = len(frames.offsets) - len(np.unique(places[found]))
    if missing:
        findings.append(Finding(ERROR, path.name, f"{missing} of the {len(frames.offsets)} records in train.rec are "
                                "not in it", advice))
    return keys[found], offsets[found], findings


def _check_header(reader: RecordReader, keys: np.ndarray,
                  offsets: np.ndarray) -> tuple[int, int, list[tuple[int, int]], list[Finding]]:
    """The range of images among the keys (start, stop), the identity records, and findings about them."""
    everything: tuple[int, int, list[tuple[int, int]]] = (0, len(keys), [])
    if not len(keys) or keys[0] != 0:
        return *everything, []
    try:
        images = find_images(reader, keys, offsets)
    except UserError as error:
        stop = len(keys)
        while stop > 1 and _identity(reader, int(offsets[stop - 1])) is not None:
            stop -= 1
        return 1, stop, [], [Finding(ERROR, "train.rec", str(error).split(": ", 1)[-1], _REPACK_WHOLE)]
    if not images.start:
        return *everything, []  # sequential, or shuffled
    stop, findings = images.stop, []
    end = float(unpack_record(reader.read(int(offsets[0]))).label[1])
    if end != np.float32(keys[-1] + 1):
        findings.append(Finding(WARNING, "train.rec, record 0", f"its header says that records end at {end:g}, the "
                                f"keys at {keys[-1] + 1}", _REPACK))
    identities = []
    for key, offset in zip(keys[stop:].tolist(), offsets[stop:].tolist()):
        record = _identity(reader, offset)
        if record is None:
            findings.append(Finding(ERROR, f"train.rec, record {key}", "should describe an identity: flag 2, two keys, "
                                    "no image", _REPACK))
            break
        identities.append(record)
    return 1, stop, identities, findings


def _identity(reader: RecordReader, offset: int) -> tuple[int, int] | None:
    """The range of images in an identity record; None for any other record."""
    try:
        record = unpack_record(reader.read(offset))
    except ValueError:
        return None
    if record.flag != 2 or record.body or not ((record.label >= 0) & (record.label < 1 << 31)).all():  # nor NaN
        return None
    return int(record.label[0]), int(record.label[1])


def check_identities(records: Records, labels: np.ndarray) -> list[Finding]:
    """Compare the ranges of identity records with the labels of the images in them, float32 (N,)."""
    if not records.identities or not len(records.keys) or records.keys[-1] >= MAX_RECORDS:
        return []  # ranges are float32, which rounds larger keys
    ranges = np.array(records.identities, np.int64)
    found = []
    first, last = records.keys[0], records.keys[-1] + 1
    gaps = np.flatnonzero(ranges[:, 0] != np.concatenate([[first], ranges[:-1, 1]]))
    if gaps.size or ranges[-1, 1] != last or (ranges[:, 1] < ranges[:, 0]).any():
        where = f"that of identity {gaps[0]} begins at {ranges[gaps[0], 0]}" if gaps.size else (
            f"the last ends at {ranges[-1, 1]}, the images at {last}")
        found.append(Finding(ERROR, "train.rec", f"the identity records' ranges do not follow one another: {where}",
                             _REPACK))
        return found
    known = labels[np.isfinite(labels)]
    classes = int(known.max(initial=-1)) + 1
    if len(ranges) > classes:
        found.append(Finding(NOTE, "train.rec", f"{len(ranges)} identity records for {classes} identities: "
                             f"{why_more_identities(known, len(ranges))}; training goes by the labels", _REPACK))
    starts = np.searchsorted(records.keys, ranges[:, 0])
    ends = np.searchsorted(records.keys, ranges[:, 1])
    counts = ends - starts
    owner = np.repeat(np.arange(len(ranges)), counts)
    present = labels[starts[counts > 0]]
    mixed = np.flatnonzero((labels != np.repeat(present, counts[counts > 0])) & np.isfinite(labels))
    if mixed.size:
        i = mixed[0]
        found.append(Finding(ERROR, f"train.rec, record {records.keys[i]}", f"has label {labels[i]:g}, others of its "
                             f"identity {present[np.searchsorted(np.flatnonzero(counts > 0), owner[i])]:g}; so have "
                             f"{mixed.size} records", "triplets are drawn by label: find out which is right, or "
                             "common.drop finds wrong labels"))
    return found


def check_images(records: Records, looked: Survey, prop: Property) -> list[Finding]:
    """Check for broken images, labels out of range, other sizes and repeats."""
    keys, found = records.keys, []
    for i, problem in looked.problems[:3]:
        found.append(Finding(ERROR, f"train.rec, record {keys[i]}", problem, "--on-bad-record skip trains without it; "
                             + _REPACK_WHOLE))
    bad = int((~looked.good).sum())
    if bad > 3:
        found.append(Finding(ERROR, "train.rec", f"{bad} of {len(keys)} images cannot be used", "as above"))
    if looked.damages:
        i, damage = looked.damages[0]
        many = f"{len(looked.damages)}{' or more' if len(looked.damages) == MOST_PROBLEMS else ''}"
        found.append(Finding(WARNING, f"train.rec, record {keys[i]}", f"{damage}; {many} JPEGs are damaged so, and "
                             "decode to something", "look at doubtful.png; get the file again if its checksum differs"))
    labels = looked.labels
    whole = np.isfinite(labels) & (labels == np.floor(labels)) & (labels >= 0)
    wrong = np.flatnonzero((looked.bytes > 0) & ~(whole & (labels < prop.num_classes)))  # readable, with a wrong label
    if wrong.size:
        highest = int(labels[whole & (labels < MAX_CLASSES)].max(initial=0))  # of labels that property allows
        advice = "find out where these labels come from, then leave the records out or pack them with labels 0, 1, ..."
        if highest >= prop.num_classes:
            advice = f"if the labels are right, write {highest + 1},{prop.height},{prop.width} into property"
        found.append(Finding(ERROR, f"train.rec, record {keys[wrong[0]]}", f"label {labels[wrong[0]]:g}: {wrong.size} "
                             f"of {len(labels)} labels are none of 0 to {prop.num_classes - 1}, which property gives",
                             advice))
    sizes = looked.sides[looked.good & (looked.sides[:, 0] > 0)]
    other = int((sizes != (prop.height, prop.width)).any(axis=1).sum())
    if other:
        found.append(Finding(WARNING, "train.rec", f"{other} images are not {prop.height} x {prop.width}: they "
                             "are scaled each time they are read", "python -m common.rec2image --include DIR --output "
                             f"IMAGES, then python -m common.rec_builder IMAGES NEW --size {prop.height}"))
    if looked.grey.any():
        found.append(Finding(NOTE, "train.rec", f"{int(looked.grey.sum())} of {len(labels)} images are grey",
                             "nothing: they are used as they are"))
    return found + _check_counts(labels[whole], prop) + _check_repeats(keys, looked)


def _check_counts(labels: np.ndarray, prop: Property) -> list[Finding]:
    classes = labels.astype(float).clip(0, prop.num_classes).astype(np.int64)
    counts = np.bincount(classes, minlength=prop.num_classes + 1)[:-1]
    empty, single = int((counts == 0).sum()), int((counts == 1).sum())
    found = []
    if empty:
        found.append(Finding(WARNING, "train.rec", f"{empty} of {prop.num_classes} identities have no image, such as "
                             f"{int(np.argmin(counts))}", "they cost memory and are never right: python -m "
                             "common.rec_builder DIR NEW --renumber closes the gaps"))
    if single:
        found.append(Finding(NOTE, "train.rec", f"{single} identities have one image, such as "
                             f"{int(np.argmax(counts == 1))}", "config.data_images_filter leaves small ones out"))
    return found


def _check_repeats(keys: np.ndarray, looked: Survey) -> list[Finding]:
    same = different = 0
    example: tuple[int, int] | None = None
    one: tuple[int, int] | None = None
    for group in repeats(looked.digests, np.flatnonzero(looked.bytes > 0)):
        of = looked.labels[group]
        apart = np.flatnonzero(of != of[0])
        if apart.size:
            different += len(group)
            example = example or (int(keys[group[0]]), int(keys[group[apart[0]]]))
        else:
            same += len(group) - 1
            one = one or (int(keys[group[0]]), int(keys[group[1]]))
    found = []
    if example:
        found.append(Finding(WARNING, "train.rec", f"{different} records hold images that are there under more than "
                             f"one label, byte for byte, such as {example[0]} and {example[1]}", "one of them is "
                             "wrong, or both are one person: common.drop, or leave them out"))
    if one:
        found.append(Finding(NOTE, "train.rec", f"{same} records repeat another of the same identity, such as {one[0]} "
                             f"and {one[1]}", "python -m common.merge_sets DIR --output NEW leaves repeats out"))
    return found


def check_shuffled(prop: Property, folder: Path, images: int) -> list[Finding]:
    """Check the further lines in the ``property`` of a shuffled set."""
    lines = read_text(folder / "property").split()
    numbers = [line for line in lines[1:] if line.isdecimal()]
    if prop.shuffled and numbers and whole_number(numbers[0]) != images:
        return [Finding(WARNING, "property", f"says {numbers[0][:20]} images, there are {images}",
                        "write the right number into its second line, or get train.rec again")]
    return []


def check_open(folder: Path, findings: list[Finding]) -> list[Finding]:
    """Open the set like training, for its own checks; an error counts if there is no other finding of an error."""
    try:
        open_dataset(folder).close()
    except UserError as error:
        if not any(finding.level == ERROR for finding in findings):
            return [Finding(ERROR, folder.name, str(error), "mend what the line names")]
    return []
