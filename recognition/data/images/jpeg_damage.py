# SPDX-License-Identifier: Apache-2.0
"""Damage to a JPEG that decoders ignore: they fill the rest of the image with grey or stripes, without an error.

The damage is a missing end, as after an interrupted copy, or zero bytes within a scan, as after a disk or a copy lost
blocks of the file.
"""
from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from recognition.data.images.jpeg_segments import (
    DATA,
    END,
    FRAMES,
    JUNK,
    SCAN,
    START_OF_SCAN,
    frame_size,
    is_jpeg,
    segments,
)

CUT = "the JPEG is cut short, it has no end marker after its last scan"
FEWEST_ZEROS = 256  # zero bytes in a row that count as a loss, in a small image
_ZEROS, _STRIDE = bytes(FEWEST_ZEROS), FEWEST_ZEROS // 2  # the stride puts two samples into each such run
_END = b"\xff\xd9"
_NOT_ZERO = re.compile(rb"[^\0]")
_SEQUENTIAL = frozenset((0xC0, 0xC1))  # frames whose blocks follow one another, with Huffman codes
_CODES, _STEPS = 0xC4, 0xDB  # Huffman and quantisation tables, which never have so many zeros


def damage(encoded: bytes) -> str:
    """A description of the data that a JPEG has lost; empty for a sound one and for other formats. It takes less than a
    microsecond for most images."""
    if not is_jpeg(encoded):
        return ""
    if not encoded.endswith(_END) and encoded.rfind(_END) < encoded.rfind(START_OF_SCAN):
        return CUT
    if b"\0\0" in encoded[::_STRIDE] and _ZEROS in encoded:
        return _lost(encoded)
    return ""


def _lost(encoded: bytes) -> str:
    """A description of the first run of zeros that no sound JPEG has. Metadata (EXIF, colour profiles, comments) and
    data after the end may contain any zeros."""
    most, sequential, flat = FEWEST_ZEROS - 1, False, True
    shortest: dict[int, int] = {}
    for marker, start, body, end in segments(encoded):
        what = ""
        if marker == JUNK:
            what = _run(encoded, start, start + FEWEST_ZEROS, FEWEST_ZEROS - 1, "where a segment should begin")
        elif marker in FRAMES and end <= len(encoded) and (size := frame_size(encoded, body)):
            most, sequential = _most_zeros(*size), marker in _SEQUENTIAL
        elif marker in (_CODES, _STEPS):
            what = _run(encoded, body, end, FEWEST_ZEROS - 1, "in its tables")
            if marker == _CODES:
                shortest.update(_shortest(encoded[body + 2 : end]))
        elif marker == SCAN:
            flat = not sequential or _zeros_are_flat(encoded[body + 3 : end], shortest)
        elif marker == DATA:
            what = _run(encoded, start, end, most if flat else FEWEST_ZEROS - 1, "in a scan")
        if what or marker == END:
            return what
    return ""


def _most_zeros(height: int, width: int) -> int:
    """An upper bound of the zero bytes in a row in a sound scan of (height, width) pixels.

    The shortest Huffman codes consist of zero bits, and a flat area of a colour image takes two of them for each block
    and component: six bits if the whole image is flat, up to twelve if the rest has many symbols. So two bytes for each
    block of 8 x 8 pixels are more than there can be. Sides are rounded up to blocks of 16 x 16.
    """
    return max(FEWEST_ZEROS - 1, 2 * 4 * -(-height // 16) * -(-width // 16))


def _shortest(tables: bytes) -> Iterator[tuple[int, int]]:
    """Yield the number of each Huffman table and its first symbol, whose code consists of zero bits. Numbers from 0x10
    on are for all coefficients of a block but the first."""
    while len(tables) > 17:
        yield tables[0], tables[17]
        tables = tables[17 + sum(tables[1:17]) :]


def _zeros_are_flat(components: bytes, shortest: Mapping[int, int]) -> bool:
    """True if zero bits encode flat blocks, "no difference" and "end of block", in all components of a scan, which have
    an identifier and two numbers of tables each. With the tables of most encoders zero bits are small coefficients
    instead, which no image has for long."""
    return all(shortest.get(tables >> 4, 0) == shortest.get(0x10 | tables & 0xF, 0) == 0
               for tables in components[1:-3:2])


def _run(encoded: bytes, start: int, end: int, most: int, where: str) -> str:
    """A description of the first run of more than ``most`` zeros that begins in ``encoded[start:end]``, and may end
    later; empty if there is none."""
    place = encoded.find(bytes(most + 1), start, end)
    if place < 0:
        return ""
    stop = _NOT_ZERO.search(encoded, place)
    count = (stop.start() if stop else len(encoded)) - place
    return f"the JPEG has lost data: {count} zero bytes at byte {place}, {where}"
