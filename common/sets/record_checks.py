# SPDX-License-Identifier: Apache-2.0
"""A survey of all records of a file, for the doctor and the statistics. It keeps a few numbers of each record.

The checks of images are those of training: :func:`recognition.data.images.image.decode_rgb`, the range of labels, the
size in ``property``. An image of any size takes about 50 bytes of memory here.
"""
from __future__ import annotations

from array import array
from collections.abc import Iterator
from hashlib import blake2b
from typing import NamedTuple

import numpy as np

from common.sets.image_files import in_order, jpeg_damage
from recognition.data.images.image import MOST_RECORD_PIXELS, decode_rgb, fit
from recognition.data.images.jpeg_damage import damage
from recognition.data.records.recordio import MAGIC, RecordReader, unpack_record
from recognition.errors import UserError
from recognition.progress import progress

MOST_PROBLEMS = 1000  # kept with their text; all are counted
_RECORDS_PER_TASK = 64
_BLOCK_BYTES = 1 << 20
_MAGIC_BYTES = MAGIC.to_bytes(4, "little")


class Image(NamedTuple):
    """The facts about an encoded image. Sides are 0 if unknown. ``problem`` is empty if training can use the image;
    ``damage`` describes damage that decoders ignore."""

    bytes: int
    height: int
    width: int
    grey: bool
    digest: int  # 64 bits of the encoded bytes
    problem: str
    damage: str = ""


def digest_of(encoded: bytes) -> int:
    """A digest, of 64 bits, of the bytes."""
    return int.from_bytes(blake2b(encoded, digest_size=8).digest(), "little")


def look_at(encoded: bytes, height: int, width: int, decode: bool = True) -> Image:
    """Examine an image like training on images of (height, width)."""
    digest = digest_of(encoded)
    if not encoded:
        return Image(0, 0, 0, False, digest, "it has no image")
    problem = damage(encoded)
    if not decode:
        return Image(len(encoded), 0, 0, False, digest, problem)
    try:
        pixels = decode_rgb(encoded, MOST_RECORD_PIXELS)
    except ValueError as error:
        return Image(len(encoded), 0, 0, False, digest, problem or str(error))
    grey = bool((pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 1] == pixels[..., 2]).all())
    if not problem:
        try:
            fit(pixels, height, width)
        except ValueError as error:
            problem = str(error)
    return Image(len(encoded), pixels.shape[0], pixels.shape[1], grey, digest, problem, jpeg_damage(encoded))


class Survey(NamedTuple):
    """The facts about N records that should be images. ``problems`` and ``damages`` are (index, text), at most
    MOST_PROBLEMS of each."""

    labels: np.ndarray  # float32 (N,), NaN if the record cannot be read
    bytes: np.ndarray  # int32 (N,)
    sides: np.ndarray  # int32 (N, 2): height and width
    grey: np.ndarray  # bool (N,)
    digests: np.ndarray  # uint64 (N,)
    good: np.ndarray  # bool (N,)
    problems: list[tuple[int, str]]
    damages: list[tuple[int, str]]


def survey(reader: RecordReader, offsets: np.ndarray, height: int, width: int, decode: bool = True) -> Survey:
    """Read, and with ``decode`` decode, the records at ``offsets``, in threads."""
    n = len(offsets)
    found = Survey(np.full(n, np.nan, np.float32), np.zeros(n, np.int32), np.zeros((n, 2), np.int32),
                   np.zeros(n, bool), np.zeros(n, np.uint64), np.zeros(n, bool), [], [])

    def chunk(low: int) -> list[tuple[float, Image]]:
        part = offsets[low : low + _RECORDS_PER_TASK]
        return [_record(reader, int(offset), height, width, decode) for offset in part]

    with progress(total=n, desc="looking at images", unit=" images") as bar:
        starts = range(0, n, _RECORDS_PER_TASK)
        for low, looked in zip(starts, in_order(chunk, starts)):
            for i, (label, image) in enumerate(looked, low):
                found.labels[i], found.bytes[i], found.grey[i] = label, image.bytes, image.grey
                found.sides[i], found.digests[i], found.good[i] = image[1:3], image.digest, not image.problem
                if image.problem and len(found.problems) < MOST_PROBLEMS:
                    found.problems.append((i, image.problem))
                elif image.damage and len(found.damages) < MOST_PROBLEMS:
                    found.damages.append((i, image.damage))
            bar.update(len(looked))
    return found


def _record(reader: RecordReader, offset: int, height: int, width: int, decode: bool) -> tuple[float, Image]:
    try:
        record = unpack_record(reader.read(offset))
    except (ValueError, OSError, UserError) as error:
        return float("nan"), Image(0, 0, 0, False, 0, str(error))
    return float(record.label[0]), look_at(record.body, height, width, decode)


def repeats(digests: np.ndarray, used: np.ndarray) -> Iterator[np.ndarray]:
    """Yield groups of two or more of the indices ``used`` with the same digest, rising within a group."""
    order = used[np.argsort(digests[used], kind="stable")]
    same = digests[order[1:]] == digests[order[:-1]]
    starts = np.flatnonzero(np.concatenate([[True], ~same])) if len(order) else np.empty(0, np.int64)
    for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(order)]):
        if end - start > 1:
            yield order[start:end]


class Framing(NamedTuple):
    """The offsets of whole records, int64 ``(N,)`` in file order, and the damaged ranges between them: (start, end,
    reason)."""

    offsets: np.ndarray
    damaged: list[tuple[int, int, str]]


def framing(reader: RecordReader) -> Framing:
    """Find the records of a file one after the other; after damage the search goes on at the next whole record."""
    offsets = array("q")
    damaged = []
    offset = 0
    with progress(total=reader.size, desc="finding records", unit="B", unit_scale=True) as bar:
        while offset < reader.size:
            try:
                end = reader.end(offset)
                offsets.append(offset)
            except UserError as error:
                end = _next_record(reader, offset + 4)
                damaged.append((offset, end, str(error).split(": ", 2)[-1]))
            bar.update(end - offset)
            offset = end
    return Framing(np.array(offsets, np.int64), damaged)


def _next_record(reader: RecordReader, start: int) -> int:
    """The first offset from ``start`` on, a multiple of four, at which a whole record begins; else the file's size."""
    for low in range(start, reader.size, _BLOCK_BYTES):
        block = reader.raw(low, _BLOCK_BYTES + 3)
        place = block.find(_MAGIC_BYTES)
        while 0 <= place < _BLOCK_BYTES:
            if (low + place) % 4 == 0 and _begins_record(reader, low + place):
                return low + place
            place = block.find(_MAGIC_BYTES, place + 1)
    return reader.size


def _begins_record(reader: RecordReader, offset: int) -> bool:
    try:
        unpack_record(reader.read(offset))
    except (ValueError, UserError):
        return False
    return True
