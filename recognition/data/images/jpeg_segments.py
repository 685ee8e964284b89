# SPDX-License-Identifier: Apache-2.0
"""A walk over the segments of a JPEG file, like that of libjpeg. Nothing is decoded."""
from __future__ import annotations

import re
import struct
from collections.abc import Iterator

END, SCAN = 0xD9, 0xDA
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
JUNK, DATA = -1, -2  # no segments: bytes where one should begin, and the data of a scan
START_OF_SCAN = b"\xff\xda"
_START = b"\xff\xd8"
_ALONE = frozenset((0x01, *range(0xD0, 0xD8), END))  # markers without a length
_NONE = (0x00, 0xD8)  # 0x00 is no marker, and 0xD8 is one only at the start
_FRAME = struct.Struct(">HBHH")  # length, bits, height, width
_MARKER, _NO_FILL = re.compile(rb"\xff"), re.compile(rb"[^\xff]")
_SCAN_END = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # within a scan 0, a restart or a fill byte follows 0xff


# The marker's second byte, JUNK or DATA; the place of the marker; start and end of the body, which is empty or has a
# length of two bytes and the rest. The end may lie beyond the end of the file.
Segment = tuple[int, int, int, int]


def is_jpeg(encoded: bytes) -> bool:
    return encoded.startswith(_START)


def segments(encoded: bytes) -> Iterator[Segment]:
    """Yield the segments of a JPEG from its first marker (exclusive) to its END, or to the end of the file."""
    end = 2
    while end < len(encoded) - 1:
        start, marker = end, encoded[end + 1]
        if encoded[start] != 0xFF:
            end = _end(_MARKER, encoded, start)
            yield JUNK, start, start, end
        elif marker == 0xFF:
            end = _end(_NO_FILL, encoded, start) - 1
        elif marker in _ALONE:
            end = start + 2
            yield marker, start, end, end
            if marker == END:
                return
        else:
            body = start + 2
            if body + 2 > len(encoded):
                return
            length = 0 if marker in _NONE else encoded[body] << 8 | encoded[body + 1]
            if length < 2:  # a length counts its own two bytes
                length, marker = 0, JUNK
            end = body + length
            yield marker, start, body, end
            if marker == SCAN:
                start, end = end, _end(_SCAN_END, encoded, end)
                yield DATA, start, start, end


def _end(pattern: re.Pattern[bytes], encoded: bytes, place: int) -> int:
    """The place of the first match from ``place`` on; the end of the file if there is none."""
    found = pattern.search(encoded, place)
    return found.start() if found else len(encoded)


def frame_size(encoded: bytes, body: int) -> tuple[int, int] | None:
    """The (height, width) in the body of a frame (FRAMES); None if the file ends before."""
    if body + _FRAME.size > len(encoded):
        return None
    _, _, height, width = _FRAME.unpack_from(encoded, body)
    return height, width
