# SPDX-License-Identifier: Apache-2.0
"""Decoding and scaling against MXNet's image functions.

Both decode with libjpeg-turbo, of two versions: equal pixels are expected, and one level is allowed.
"""
from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest

from recognition.data.images.image import decode_rgb, fit, mirror, write_planes


def assert_like_mxnet(mx: ModuleType, encoded: bytes) -> None:
    theirs = mx.image.imdecode(encoded).asnumpy()
    ours = decode_rgb(encoded)
    assert ours.shape == theirs.shape
    assert abs(ours.astype(int) - theirs).max() <= 1


def with_exif_orientation(jpeg: bytes, orientation: int) -> bytes:
    tiff = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(tiff) + 8) + b"Exif\0\0" + tiff + jpeg[2:]


def test_decode_real_photographs(shared: Path, mx: ModuleType) -> None:
    for path in sorted((shared / "data" / "wild").glob("*.jpg")):
        assert_like_mxnet(mx, path.read_bytes())


def test_decode_colour_grey_progressive_png(make_jpeg: Callable[..., bytes], mx: ModuleType) -> None:
    colour = decode_rgb(make_jpeg(1))
    grey = cv2.imencode(".jpg", cv2.cvtColor(colour, cv2.COLOR_RGB2GRAY))[1].tobytes()
    progressive = cv2.imencode(".jpg", colour, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    png = cv2.imencode(".png", colour)[1].tobytes()
    for encoded in (make_jpeg(1), grey, progressive, png):
        assert_like_mxnet(mx, encoded)
    assert decode_rgb(grey).shape == (112, 112, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(make_jpeg: Callable[..., bytes], mx: ModuleType, orientation: int) -> None:
    encoded = with_exif_orientation(make_jpeg(2, (40, 60)), orientation)
    assert_like_mxnet(mx, encoded)
    assert decode_rgb(encoded).shape == ((40, 60, 3) if orientation < 5 else (60, 40, 3))


@pytest.mark.parametrize("encoded", [b"", b"x", b"\xff\xd8\xff", b"GIF87a" + b"\0" * 50])
def test_not_an_image(encoded: bytes) -> None:
    with pytest.raises(ValueError, match=f"its {len(encoded)} bytes are not an image"):
        decode_rgb(encoded)


@pytest.mark.parametrize("size", [(128, 128), (96, 96), (250, 250), (112, 112)])
def test_fit_as_mxnet(make_jpeg: Callable[..., bytes], mx: ModuleType, size: tuple[int, int]) -> None:
    """Two versions of OpenCV scale within one level of each other."""
    image = decode_rgb(make_jpeg(3, size))
    theirs = mx.image.resize_short(mx.nd.array(image, dtype="uint8"), 112).asnumpy()
    ours = fit(image, 112, 112)
    assert ours.shape == theirs.shape == (112, 112, 3)
    assert abs(ours.astype(int) - theirs).max() <= 1


@pytest.mark.parametrize("size", [(112, 96), (112, 113), (200, 100)])
def test_fit_refuses_another_shape(make_jpeg: Callable[..., bytes], size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"the image is {size[0]} x {size[1]}, expected 112 x 112"):
        fit(decode_rgb(make_jpeg(3, size)), 112, 112)


@pytest.mark.skipif(cv2.__version__.startswith("4.8."), reason="OpenCV 4.8 prints it at every log level")
@pytest.mark.parametrize("ending", [".bmp", ".ppm"])
def test_opencv_says_nothing_of_an_image_that_is_refused(ending: str, capfd: pytest.CaptureFixture[str]) -> None:
    encoded = cv2.imencode(ending, np.zeros((24, 24, 3), np.uint8))[1].tobytes()
    with pytest.raises(ValueError, match="not an image that OpenCV can decode"):
        decode_rgb(encoded[:-5])
    assert capfd.readouterr().err == ""


def test_write_planes(make_jpeg: Callable[..., bytes]) -> None:
    image = decode_rgb(make_jpeg(4, (30, 20)))
    batch = np.zeros((3, 3, 30, 20), np.uint8)
    write_planes(image, batch[1])
    np.testing.assert_array_equal(batch[1], image.transpose(2, 0, 1))
    assert not batch[0].any() and not batch[2].any()


def test_an_older_opencv_gives_the_same_pixels(shared: Path, make_jpeg: Callable[..., bytes],
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    """From 4.11 on the decoder writes RGB itself; before, BGR is turned round."""
    colour = decode_rgb(make_jpeg(1))
    images = [make_jpeg(1), with_exif_orientation(make_jpeg(2, (40, 60)), 6),
              cv2.imencode(".jpg", colour, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes(),
              *(cv2.imencode(form, image)[1].tobytes() for form in (".png", ".jpg", ".webp", ".bmp", ".tiff")
                for image in (colour, colour[..., 0])),
              cv2.imencode(".png", np.dstack([colour, colour[..., 0]]))[1].tobytes(),
              cv2.imencode(".png", colour.astype(np.uint16) * 200)[1].tobytes(),
              cv2.imencode(".ppm", colour)[1].tobytes(),
              *(path.read_bytes() for path in sorted((shared / "data" / "wild").glob("*.jpg")))]
    now = [decode_rgb(encoded) for encoded in images]
    monkeypatch.setattr("recognition.data.images.image._TO_RGB", None)
    for encoded, pixels in zip(images, now):
        np.testing.assert_array_equal(decode_rgb(encoded), pixels)


@pytest.mark.parametrize("shape", [(2, 3, 5, 8), (1, 3, 4, 7), (3, 3, 112, 112)])
def test_mirror(shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    target = np.zeros_like(images)
    mirror(images, target)
    np.testing.assert_array_equal(target, images[..., ::-1])
