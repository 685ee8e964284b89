# SPDX-License-Identifier: Apache-2.0
"""Damage to a JPEG that decoders pass over: they paint the rest of the image grey or in stripes, and say nothing.

An end that is missing, as after a copy that broke off, and zero bytes within a scan, as where a disk or a copy lost
blocks of the file.
"""
from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping

from recognition.data.image_header import is_jpeg

CUT = "the JPEG is cut short, it has no end marker after its last scan"
FEWEST = 256  # zero bytes in a row that count as a loss, of a small image
_ZEROS, _STRIDE = bytes(FEWEST), FEWEST // 2  # so that two places looked at lie in each such run
_END, _START_OF_SCAN = b"\xff\xd9", b"\xff\xda"
_NOT_ZERO = re.compile(rb"[^\0]")
_SCAN_END = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # 0xff of a scan's data comes before 0, a restart or a fill byte
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL = frozenset((0xC0, 0xC1))  # frames of blocks with Huffman codes, one after the other
_CODES, _STEPS = 0xC4, 0xDB  # tables, none of which has as many zeros: Huffman and quantisation
_FRAME = struct.Struct(">HBHH")  # length, bits, height, width


def damage(encoded: bytes) -> str:
    """What a JPEG has lost; empty of one that has all, and of other formats. Below a microsecond for most images."""
    if not is_jpeg(encoded):
        return ""
    if not encoded.endswith(_END) and encoded.rfind(_END) < encoded.rfind(_START_OF_SCAN):
        return CUT
    if b"\0\0" in encoded[::_STRIDE] and _ZEROS in encoded:
        return _lost(encoded)
    return ""


def _lost(encoded: bytes) -> str:
    """The first run of zeros that no sound JPEG has. Metadata (EXIF, colour profiles, comments) may hold any, and so
    may what follows the end."""
    place, most, sequential = 2, FEWEST - 1, False
    shortest: dict[int, int] = {}
    while 0 <= place < len(encoded) - 4:
        if encoded[place] != 0xFF:
            if what := _run(encoded, place, place + FEWEST, FEWEST - 1, "where a segment should begin"):
                return what
            place = encoded.find(b"\xff", place)  # as libjpeg does
            continue
        kind, body = encoded[place + 1], place + 2
        if kind == 0xD9:
            return ""
        if kind == 0xFF:
            place += 1
            continue
        if kind <= 0x01 or 0xD0 <= kind <= 0xD8:  # without a length
            place = body
            continue
        place = body + max(2, encoded[body] << 8 | encoded[body + 1])
        if kind in _FRAMES and place <= len(encoded) and place - body >= _FRAME.size:
            most, sequential = _most_zeros(*_FRAME.unpack_from(encoded, body)[2:]), kind in _SEQUENTIAL
        elif kind in (_CODES, _STEPS):
            if what := _run(encoded, body, place, FEWEST - 1, "in its tables"):
                return what
            if kind == _CODES:
                shortest.update(_shortest(encoded[body + 2 : place]))
        elif kind == 0xDA:
            found = _SCAN_END.search(encoded, place)
            end = found.start() if found else len(encoded)
            flat = not sequential or _zeros_are_flat(encoded[body + 3 : place], shortest)
            if what := _run(encoded, place, end, most if flat else FEWEST - 1, "in a scan"):
                return what
            place = end
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
