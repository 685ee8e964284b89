# SPDX-License-Identifier: Apache-2.0
"""Careful reading of image files."""
from __future__ import annotations

import stat
from pathlib import Path

import numpy as np

from recognition.data.images.image import decode_rgb
from recognition.data.images.jpeg_damage import damage
from recognition.errors import UserError, naming
from recognition.io.files import reading

MOST_BYTES = 256 << 20  # of an image file, or of a list of names


def read_file(path: Path) -> bytes:
    """Read a file of at most MOST_BYTES.

    :raises UserError: if it cannot be read or is larger; if it is a pipe or a device, which may have no end.
    """
    with reading(path):
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > MOST_BYTES:
            raise UserError(f"{path}: found {found.st_size} bytes in what is {stat.filemode(found.st_mode)}, expected "
                            f"a file of at most {MOST_BYTES >> 20} MB")
        return path.read_bytes()


def read_image(path: Path) -> tuple[bytes, np.ndarray]:
    """Read the bytes of an image file and its pixels, uint8 ``(H, W, 3)`` RGB.

    :raises UserError: if the image is broken.
    """
    encoded = read_file(path)
    with naming(path):
        image = decode_rgb(encoded)
    if lost := damage(encoded):
        raise UserError(f"{path}: {lost}")
    return encoded, image
