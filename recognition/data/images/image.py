# SPDX-License-Identifier: Apache-2.0
"""Decoding of images, to the same pixels as MXNet's image functions."""
from __future__ import annotations

import os

import cv2
import numpy as np

from recognition.data.images.image_header import image_size

MOST_PIXELS = 1 << 26  # of one image: 8192 x 8192, 200 MB
MOST_RECORD_PIXELS = 1 << 24  # of an image that is decoded beside many others: 4096 x 4096, the largest side of a set

_TO_RGB = getattr(cv2, "IMREAD_COLOR_RGB", None)  # from OpenCV 4.11 on the decoder writes RGB itself
_FATAL = 1  # a level of OpenCV's logging; 2 is errors
_set_log_level = cv2.setLogLevel if hasattr(cv2, "setLogLevel") else cv2.utils.logging.setLogLevel  # type: ignore

if "OPENCV_LOG_LEVEL" not in os.environ:  # OpenCV would print its own lines about an image that is cut short
    _set_log_level(_FATAL)


def decode_rgb(encoded: bytes, most_pixels: int = MOST_PIXELS) -> np.ndarray:
    """Decode an image to uint8 ``(H, W, 3)`` RGB, a grey one too, and turn it by its EXIF tag as MXNet does.

    :raises ValueError: if the bytes are no image, or if its header announces more than ``most_pixels``: such an image
        is not decoded.
    """
    size = image_size(encoded)
    if size is not None and size[0] * size[1] > most_pixels:
        raise ValueError(f"the image is {size[0]} x {size[1]}, expected at most {most_pixels} pixels")
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), _TO_RGB or cv2.IMREAD_COLOR) if size else None
    except cv2.error:  # OpenCV returns nothing for some broken images and throws at others
        image = None
    if image is None:
        raise ValueError(f"its {len(encoded)} bytes are not an image that OpenCV can decode")
    return image if _TO_RGB else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def fit(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """``image`` itself if it has the size, else scaled (bicubic) to a shorter side of ``height``.

    The MXNet recipes do the same by ``resize_short``.

    :raises ValueError: if the scaled shape is not ``height`` x ``width``.
    """
    h, w = image.shape[:2]
    if (h, w) == (height, width):
        return image
    new_h, new_w = (height * h // w, height) if h > w else (height, height * w // h)
    if (new_h, new_w) != (height, width):
        raise ValueError(f"the image is {h} x {w}, expected {height} x {width} or the same shape in another size")
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)


def fit_square(image: np.ndarray, size: int, fit: str) -> np.ndarray:
    """Resize an image, uint8 ``(H, W, 3)``, to ``(size, size, 3)``.

    ``pad`` scales the longer side to ``size`` and centres the image on black: 112 x 96 crops get the columns that the
    112 x 112 template adds. ``crop`` scales the shorter side and cuts the middle out. ``stretch`` scales both.
    """
    height, width = image.shape[:2]
    new_height, new_width = size, size
    if fit != "stretch":
        scale = size / (max(height, width) if fit == "pad" else min(height, width))
        new_height, new_width = max(1, round(height * scale)), max(1, round(width * scale))
    if (new_height, new_width) != (height, width):
        shrinks = new_height * new_width < height * width
        image = cv2.resize(image, (new_width, new_height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    if fit == "pad":
        top, left = (size - new_height) // 2, (size - new_width) // 2
        return cv2.copyMakeBorder(image, top, size - new_height - top, left, size - new_width - left,
                                  cv2.BORDER_CONSTANT, value=(0, 0, 0))
    top, left = (new_height - size) // 2, (new_width - size) // 2
    return image[top:top + size, left:left + size]


def write_planes(image: np.ndarray, planes: np.ndarray) -> None:
    """Write ``(H, W, 3)`` into a C-contiguous ``(3, H, W)`` array of the same type, four times faster than NumPy."""
    cv2.split(image, [planes[0], planes[1], planes[2]])


def mirror(images: np.ndarray, target: np.ndarray) -> None:
    """Write uint8 ``(n, 3, H, W)`` with left and right exchanged into ``target``, of the same shape; both C-contiguous.

    It takes a quarter of NumPy's time.
    """
    width = images.shape[-1]
    cv2.flip(images.reshape(-1, width), 1, target.reshape(-1, width))
