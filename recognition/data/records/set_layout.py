# SPDX-License-Identifier: Apache-2.0
"""The layout of a training set in its files: the property file, the places of its records, and the images among them.
"""
from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable, NamedTuple

import numpy as np

from recognition.data.records.bad_records import BadRecords
from recognition.data.records.record_index import read_index_lines, repeated_key, require_fitting
from recognition.data.records.recordio import PathLike, Record, RecordReader, unpack_record
from recognition.errors import UserError
from recognition.io.files import reading, regular

MAX_CLASSES = 1 << 24  # labels are float32, which holds every whole number up to here
_MAX_SIDE = 4096
_logger = logging.getLogger("recognition.data.set_layout")  # log lines begin with it


class Property(NamedTuple):
    """The content of the file ``property``: number of classes, image size in pixels, and ``shuffled`` if it has that
    line."""

    num_classes: int
    height: int
    width: int
    shuffled: bool


def read_property(path: PathLike) -> Property:
    """Read the file ``property``, whose first line is ``num_classes,height,width``.

    :raises UserError: if it cannot be read or holds something else.
    """
    with reading(path), open(path, encoding="utf-8-sig", errors="replace", opener=regular) as file:
        lines = [line.strip() for line in file.read(4096).splitlines()]
    first = lines[0] if lines else ""
    numbers = [int(part.strip()) for part in first.split(",") if part.strip().isdecimal()]
    if len(numbers) != 3 or first.count(",") != 2:
        raise UserError(f"{path}: found {first[:60]!r}, expected 'num_classes,height,width' such as '85742,112,112'")
    num_classes, height, width = numbers
    if not (1 <= num_classes <= MAX_CLASSES and 1 <= height <= _MAX_SIDE and 1 <= width <= _MAX_SIDE):
        raise UserError(f"{path}: found {first!r}, expected 1 to {MAX_CLASSES} classes and sides of 1 to {_MAX_SIDE}")
    return Property(num_classes, height, width, "shuffled" in lines[1:])


def find_records(path: Path, reader: RecordReader, by_offset: bool, bad: BadRecords) -> tuple[np.ndarray, np.ndarray]:
    """Keys and offsets of the records, int64 (N,) each, by rising offset if ``by_offset``, else by rising key. Without
    an index file the records are found by a scan and numbered from 0 on, as packers do.

    If bad records are skipped and there are few of them, a scan leaves out records with damaged framing, the first line
    of a repeated key counts, and an offset beyond the file is noticed when its image is read.

    :raises UserError: on such a fault if bad records are not skipped, or on too many.
    """
    if not path.exists():
        damages: list[UserError] = []
        offsets = reader.offsets(damages.append if bad.skips else None)
        _logger.warning("%s: not found, %d records of %s indexed by a scan", path, len(offsets), reader.path)
        _require_few(bad, damages, len(offsets), lambda n: damages[n])
        return np.arange(len(offsets)), offsets
    require_fitting(path, reader.size)
    keys, offsets, again = read_index_lines(path)
    _require_few(bad, again, len(keys), lambda n: UserError(repeated_key(path, keys, again[n])))
    beyond = np.flatnonzero(offsets >= reader.size)
    _require_few(bad, beyond, len(keys), lambda n: UserError(
        f"{path}: line {beyond[n] + 1}: offset {offsets[beyond[n]]}, but {reader.path} has only {reader.size} bytes"))
    keys, offsets = np.delete(keys, again), np.delete(offsets, again)
    order = np.argsort(offsets if by_offset else keys, kind="stable")
    keys, offsets = keys[order], offsets[order]
    _warn_of_shared(path, keys, offsets)
    return keys, offsets


def _warn_of_shared(path: Path, keys: np.ndarray, offsets: np.ndarray) -> None:
    """Log a warning if several keys lead to the same record. In most indexes offsets rise with the keys: then they need
    no sorting, which takes 3 s for 42 million lines."""
    if (offsets[1:] > offsets[:-1]).all():
        return
    ordered = np.sort(offsets)
    again = ordered[1:][ordered[1:] == ordered[:-1]]
    if again.size:
        first, second = keys[offsets == again[0]][:2].tolist()
        _logger.warning("%s: %d of %d keys lead to a record that another key leads to, such as %d and %d, offset %d: "
                        "it is used more than once, another may be missing; python -m common.doctor says more", path,
                        again.size, len(keys), first, second, again[0])


def _require_few(bad: BadRecords, found: Sequence[Any] | np.ndarray, records: int,
                 error: Callable[[int], UserError]) -> None:
    """Raise the error of the first of the ``found`` faults, unless bad records are skipped and these are no more than
    the tolerated share of ``records``."""
    if not len(found):
        return
    most = math.ceil(bad.share * records) if bad.skips else 0
    if len(found) > most:
        few = f"; {len(found)} such, expected at most {most}, which is --bad-record-share {bad.share:g}"
        raise UserError(f"{error(0)}{few if bad.skips else ''}")
    _logger.warning("left out: %s; %d such of %d records", error(0), len(found), records)


def check_last(path: Path, reader: RecordReader, offsets: np.ndarray, bad: BadRecords) -> None:
    """Compare the end of the last indexed record with the end of the record file.

    :raises UserError: if the index stops before the file does.
    """
    inside = offsets[offsets < reader.size] if bad.skips else offsets
    try:
        end = reader.end(int(inside.max())) if len(inside) else 0
    except UserError:
        if not bad.skips:
            raise
        return  # the last record is a bad one
    if end != reader.size:
        raise UserError(f"{path}: its last record ends at byte {end}, but {reader.path} has {reader.size}, expected an "
                        "index of all records; without an index the records are found by a scan")


def find_images(reader: RecordReader, keys: np.ndarray, offsets: np.ndarray) -> slice:
    """The slice of the records that are images: 1 .. first identity record - 1 behind a header, all without one.

    :raises UserError: if header and index do not fit together.
    """
    everything = slice(0, None)
    if not len(keys) or keys[0] != 0:
        return everything
    header = _unpacked(reader, 0, int(offsets[0]))
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


def _first_identity(reader: RecordReader, keys: np.ndarray, offsets: np.ndarray, announced: int) -> int:
    """The key of the first identity record. That is ``announced``, the header's label; as a float32 it is rounded above
    2**24, so the first record near it without an image counts."""
    margin = int(np.spacing(np.float32(announced))) // 2
    for key in range(announced - margin, announced + margin):
        position = np.searchsorted(keys, key)
        if position < len(keys) and not _unpacked(reader, int(key), int(offsets[position])).body:
            return key
    return announced + margin


def _unpacked(reader: RecordReader, key: int, offset: int) -> Record:
    try:
        return unpack_record(reader.read(offset))
    except ValueError as error:
        raise UserError(f"{reader.path}: record {key}: {error}") from error
