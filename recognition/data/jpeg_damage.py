# SPDX-License-Identifier: Apache-2.0
"""Damage to a JPEG that decoders pass over: they paint the rest of the image grey or in stripes, and say nothing.

An end that is missing, as after a copy that broke off, and zero bytes within a scan, as where a disk or a copy lost
blocks of the file.
"""
from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from recognition.data.jpeg_segments import DATA, END, FRAMES, JUNK, SCAN, START_OF_SCAN, frame_size, is_jpeg, segments

CUT = "the JPEG is cut short, it has no end marker after its last scan"
FEWEST = 256  # zero bytes in a row that count as a loss, of a small image
_ZEROS, _STRIDE = bytes(FEWEST), FEWEST // 2  # so that two places looked at lie in each such run
_END = b"\xff\xd9"
_NOT_ZERO = re.compile(rb"[^\0]")
_SEQUENTIAL = frozenset((0xC0, 0xC1))  # frames of blocks with Huffman codes, one after the other
_CODES, _STEPS = 0xC4, 0xDB  # tables, none of which has as many zeros: Huffman and quantisation


def damage(encoded: bytes) -> str:
    """What a JPEG has lost; empty of one that has all, and of other formats. Below a microsecond for most images."""
    if not is_jpeg(encoded):
        return ""
    if not encoded.endswith(_END) and encoded.rfind(_END) < encoded.rfind(START_OF_SCAN):
        return CUT
    if b"\0\0" in encoded[::_STRIDE] and _ZEROS in encoded:
        return _lost(encoded)
    return ""


def _lost(encoded: bytes) -> str:
    """The first run of zeros that no sound JPEG has. Metadata (EXIF, colour profiles, comments) may hold any, and so
    may what follows the end."""
    most, sequential, flat = FEWEST - 1, False, True
    shortest: dict[int, int] = {}
    for kind, start, body, end in segments(encoded):
        what = ""
        if kind == JUNK:
            what = _run(encoded, start, start + FEWEST, FEWEST - 1, "where a segment should begin")
        elif kind in FRAMES and end <= len(encoded) and (size := frame_size(encoded, body)):
            most, sequential = _most_zeros(*size), kind in _SEQUENTIAL
        elif kind in (_CODES, _STEPS):
            what = _run(encoded, body, end, FEWEST - 1, "in its tables")
            if kind == _CODES:
                shortest.update(_shortest(encoded[body + 2 : end]))
        elif kind == SCAN:
            flat = not sequential or _zeros_are_flat(encoded[body + 3 : end], shortest)
        elif kind == DATA:
            what = _run(encoded, start, end, most if flat else FEWEST - 1, "in a scan")
        if what or kind == END:
            return what
    return ""


def _most_zeros(height: int, width: int) -> int:
    """Zero bytes in a row that a sound scan of (height, width) pixels may hold.

    The shortest Huffman codes are of nothing but zero bits, and a flat area of a colour image takes two of them a block
    and component: six bits where everything is flat, up to twelve where the other part has many symbols. So two bytes
    a block of 8 x 8 pixels are more than there can be. Sides are those of whole blocks of 16 x 16.
    """
    return max(FEWEST - 1, 2 * 4 * -(-height // 16) * -(-width // 16))


def _shortest(tables: bytes) -> Iterator[tuple[int, int]]:
    """The number of each Huffman table, from 0x10 on for coefficients behind a block's first, and its first symbol:
    the one whose code is all zero bits."""
    while len(tables) > 17:
        yield tables[0], tables[17]
        tables = tables[17 + sum(tables[1:17]) :]


def _zeros_are_flat(components: bytes, shortest: Mapping[int, int]) -> bool:
    """Whether zero bits are flat blocks, for all components of a scan (an identifier and two numbers of tables each):
    "no difference" and "end of block". With the tables that most encoders have they are small coefficients instead,
    which no image has for long."""
    return all(shortest.get(tables >> 4, 0) == shortest.get(0x10 | tables & 0xF, 0) == 0
               for tables in components[1:-3:2])


def _run(encoded: bytes, start: int, end: int, most: int, where: str) -> str:
    """Of a run of more than ``most`` zeros that begins in ``encoded[start:end]``; a run may go on behind ``end``."""
    place = encoded.find(bytes(most + 1), start, end)
    if place < 0:
        return ""
    stop = _NOT_ZERO.search(encoded, place)
    count = (stop.start() if stop else len(encoded)) - place
    return f"the JPEG has lost data: {count} zero bytes at byte {place}, {where}"
