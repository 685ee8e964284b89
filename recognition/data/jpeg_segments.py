# SPDX-License-Identifier: Apache-2.0
"""The segments of a JPEG file, one after the other, as libjpeg goes through them; nothing is decoded."""
from __future__ import annotations

import re
import struct
from collections.abc import Iterator

END, SCAN = 0xD9, 0xDA
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
JUNK, DATA = -1, -2  # kinds of what is no segment: bytes where one should begin, and the data of a scan
START_OF_SCAN = b"\xff\xda"
_START = b"\xff\xd8"
_ALONE = frozenset((0x01, *range(0xD0, 0xD8), END))  # markers without a length
_NONE = (0x00, 0xD8)  # no marker, and one that stands only at the start
_FRAME = struct.Struct(">HBHH")  # length, bits, height, width
_MARKER, _NO_FILL = re.compile(rb"\xff"), re.compile(rb"[^\xff]")
_SCAN_END = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # 0xff of a scan's data comes before 0, a restart or a fill byte


# A kind (the marker's second byte, JUNK or DATA), the place of the marker, and the places between which its body lies:
# a length of two bytes and the rest, or nothing. The last may be behind the end of the file.
Segment = tuple[int, int, int, int]


def is_jpeg(encoded: bytes) -> bool:
    return encoded.startswith(_START)


def segments(encoded: bytes) -> Iterator[Segment]:
    """Go through a JPEG from behind its first marker to its END, or to the file's end if it has none."""
    end = 2
    while end < len(encoded) - 1:
        start, kind = end, encoded[end + 1]
        if encoded[start] != 0xFF:
            end = _end(_MARKER, encoded, start)
            yield JUNK, start, start, end
        elif kind == 0xFF:
            end = _end(_NO_FILL, encoded, start) - 1
        elif kind in _ALONE:
            end = start + 2
            yield kind, start, end, end
            if kind == END:
                return
        else:
            body = start + 2
            if body + 2 > len(encoded):
                return
            length = 0 if kind in _NONE else encoded[body] << 8 | encoded[body + 1]
            if length < 2:  # of those two bytes at least
                length, kind = 0, JUNK
            end = body + length
            yield kind, start, body, end
            if kind == SCAN:
                start, end = end, _end(_SCAN_END, encoded, end)
                yield DATA, start, start, end


def _end(pattern: re.Pattern[bytes], encoded: bytes, place: int) -> int:
    """The place of the first match from ``place`` on; the end of the file if there is none."""
    found = pattern.search(encoded, place)
    return found.start() if found else len(encoded)


def frame_size(encoded: bytes, body: int) -> tuple[int, int] | None:
    """(height, width) as the frame (FRAMES) at ``body`` has them; None if the file ends before."""
    if body + _FRAME.size > len(encoded):
        return None
    _, _, height, width = _FRAME.unpack_from(encoded, body)
    return height, width
