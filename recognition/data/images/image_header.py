# SPDX-License-Identifier: Apache-2.0
"""The size in the header of an encoded image, which is checked before anything is decoded.

A file of a few hundred bytes can announce an image of gigabytes. Formats that are not listed here are never decoded:
OpenCV reads more formats than anybody keeps faces in, and each is one more parser for untrusted files.
"""
from __future__ import annotations

import itertools
import re
import struct
from typing import Callable

from recognition.data.images.jpeg_segments import END, FRAMES, SCAN, START_OF_SCAN, frame_size, is_jpeg, segments

MOST_SCANS = 200  # of a JPEG: progressive ones have about ten, and each costs a pass over the whole image
_SMALL_FILE_BYTES, _SMALL_IMAGE_PIXELS = 1 << 16, 1 << 16  # up to here any number of scans takes no time
_MOST_SEGMENTS = 4096  # before the frame of a JPEG
_MOST_TAGS = 4096  # in a TIFF's directory
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_BLANK = rb"(?:[ \t\r\n]|#[^\r\n]*[\r\n])+"
_PNM = re.compile(rb"P[1-6]" + _BLANK + rb"([0-9]{1,9})" + _BLANK + rb"([0-9]{1,9})[ \t\r\n]")


def image_size(encoded: bytes) -> tuple[int, int] | None:
    """The (height, width) in pixels in the header of a JPEG, PNG, WebP, BMP, PNM (PBM, PGM, PPM) or TIFF; None for any
    other file.

    :raises ValueError: for a JPEG with more than MOST_SCANS scans.
    """
    if is_jpeg(encoded):
        return _jpeg(encoded)
    for magic, read in _READERS.items():
        if encoded.startswith(magic):
            try:
                return read(encoded)
            except (struct.error, IndexError):  # the file is cut short
                return None
    return None


def _jpeg(encoded: bytes) -> tuple[int, int] | None:
    """The size in the first frame, which is the only one."""
    for marker, _, body, _ in itertools.islice(segments(encoded), _MOST_SEGMENTS):
        if marker in FRAMES:
            size = frame_size(encoded, body)
            if size and (len(encoded) > _SMALL_FILE_BYTES or size[0] * size[1] > _SMALL_IMAGE_PIXELS):
                scans = encoded.count(START_OF_SCAN)
                if scans > MOST_SCANS:
                    raise ValueError(f"the JPEG has {scans} scans, expected at most {MOST_SCANS}")
            return size
        if marker in (END, SCAN):  # before any frame
            return None
    return None


def _png(encoded: bytes) -> tuple[int, int] | None:
    """The size of a sound PNG: all chunks must lie within the file, with pixels among them, and the end must be empty.
    OpenCV allocates the length that a chunk announces, and reads on after a wrong end."""
    width, height = struct.unpack_from(">II", encoded, 16)
    if encoded[12:16] != b"IHDR" or not width or not height:
        return None
    place, pixels = len(_PNG_MAGIC), False
    while (chunk_type := encoded[place + 4 : place + 8]) != b"IEND":
        pixels = pixels or chunk_type == b"IDAT"
        place += 12 + struct.unpack_from(">I", encoded, place)[0]  # 12: length, type and checksum
        if place + 12 > len(encoded):
            return None
    return (height, width) if pixels and encoded[place : place + 4] == bytes(4) else None


def _webp(encoded: bytes) -> tuple[int, int] | None:
    form = encoded[8:16]
    if form == b"WEBPVP8 ":
        width, height = struct.unpack_from("<HH", encoded, 26)
        return height & 0x3FFF, width & 0x3FFF
    if form == b"WEBPVP8L":
        (bits,) = struct.unpack_from("<I", encoded, 21)
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    if form == b"WEBPVP8X":
        low = struct.unpack_from("<HBHB", encoded, 24)
        return (low[2] | low[3] << 16) + 1, (low[0] | low[1] << 16) + 1
    return None


def _bmp(encoded: bytes) -> tuple[int, int] | None:
    (header,) = struct.unpack_from("<I", encoded, 14)
    width, height = struct.unpack_from("<HH" if header == 12 else "<ii", encoded, 18)
    return abs(height), abs(width)  # a negative height: the rows come from the top


def _pnm(encoded: bytes) -> tuple[int, int] | None:
    found = _PNM.match(encoded[:4096])
    return (int(found[2]), int(found[1])) if found else None


def _tiff(encoded: bytes) -> tuple[int, int] | None:
    order = "<" if encoded.startswith(b"II") else ">"
    (place,) = struct.unpack_from(order + "I", encoded, 4)
    (count,) = struct.unpack_from(order + "H", encoded, place)
    sides: dict[int, int] = {}
    for n in range(min(count, _MOST_TAGS)):
        tag, number_type, values = struct.unpack_from(order + "HHI", encoded, place + 2 + 12 * n)
        if tag in (256, 257):  # width, height
            if number_type not in (3, 4) or values != 1 or tag in sides:
                return None
            form = order + ("H" if number_type == 3 else "I")
            (sides[tag],) = struct.unpack_from(form, encoded, place + 10 + 12 * n)
    return (sides[257], sides[256]) if len(sides) == 2 else None


_READERS: dict[bytes, Callable[[bytes], tuple[int, int] | None]] = {
    _PNG_MAGIC: _png, b"RIFF": _webp, b"BM": _bmp, b"II*\0": _tiff, b"MM\0*": _tiff,
    **{b"P%d" % n: _pnm for n in range(1, 7)}}
