# SPDX-License-Identifier: Apache-2.0
"""Sizes from headers against OpenCV's decoder, and images that announce more than anybody decodes."""
from __future__ import annotations

import resource
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recognition.data.images.image import MOST_RECORD_PIXELS, decode_rgb
from recognition.data.images.image_header import MOST_SCANS, image_size

IMAGE = np.random.RandomState(0).randint(0, 256, (37, 53, 3)).astype(np.uint8)
KINDS = {
    "jpeg": (".jpg", []), "progressive": (".jpg", [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]), "png": (".png", []),
    "webp": (".webp", [cv2.IMWRITE_WEBP_QUALITY, 90]), "lossless webp": (".webp", [cv2.IMWRITE_WEBP_QUALITY, 101]),
    "bmp": (".bmp", []), "ppm": (".ppm", [cv2.IMWRITE_PXM_BINARY, 1]), "plain ppm": (".ppm",
                                                                                  [cv2.IMWRITE_PXM_BINARY, 0]),
    "tiff": (".tiff", [])}


def encoded(kind: str, image: np.ndarray = IMAGE) -> bytes:
    ending, options = KINDS[kind]
    return cv2.imencode(ending, image, options)[1].tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_is_what_opencv_decodes(kind: str) -> None:
    assert image_size(encoded(kind)) == (37, 53) == decode_rgb(encoded(kind)).shape[:2]


def test_sizes_of_real_photographs(shared: Path) -> None:
    for path in sorted((shared / "data" / "wild").glob("*.jpg")):
        assert image_size(path.read_bytes()) == cv2.imread(str(path), cv2.IMREAD_IGNORE_ORIENTATION
                                                           | cv2.IMREAD_COLOR).shape[:2]


def test_sixteen_bits_become_eight() -> None:
    deep = IMAGE.astype(np.uint16) * 257
    np.testing.assert_array_equal(decode_rgb(encoded("png", deep)), IMAGE[..., ::-1])


def test_transparency_is_left_out() -> None:
    clear = np.concatenate([IMAGE, np.zeros((37, 53, 1), np.uint8)], axis=2)
    np.testing.assert_array_equal(decode_rgb(encoded("png", clear)), IMAGE[..., ::-1])


def enlarged(kind: str, side: int) -> bytes:
    """The image with a header that says ``side`` x ``side``."""
    data = bytearray(encoded(kind))
    if KINDS[kind][0] == ".jpg":
        frame = data.index(b"\xff\xc2" if kind == "progressive" else b"\xff\xc0")
        struct.pack_into(">HH", data, frame + 5, side, side)
    elif kind == "png":
        struct.pack_into(">II", data, 16, side, side)
    elif kind == "bmp":
        struct.pack_into("<ii", data, 18, side, -side)
    elif kind == "webp":
        struct.pack_into("<HH", data, 26, side, side)
    elif kind.endswith("ppm"):
        return bytes(data).replace(b"53 37", b"%d %d" % (side, side))
    else:
        raise AssertionError(kind)
    return bytes(data)


@pytest.mark.parametrize("kind", ["jpeg", "progressive", "png", "webp", "bmp", "ppm", "plain ppm"])
def test_a_bomb_is_refused_by_its_header(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = enlarged(kind, 16383)
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("it is decoded"))
    with pytest.raises(ValueError, match=r"^the image is 16383 x 16383, expected at most 16777216 pixels$"):
        decode_rgb(bomb, MOST_RECORD_PIXELS)


@pytest.mark.parametrize("place", [8, 33])  # of the header, and of the chunk behind it
def test_a_png_whose_chunk_says_that_it_is_of_gigabytes(place: int) -> None:
    """OpenCV takes as much memory before it reads; found by fuzzing."""
    data = bytearray(encoded("png"))
    struct.pack_into(">I", data, place, 0xD80627F9)
    began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for bad in (bytes(data), encoded("png")[:-5]):
        with pytest.raises(ValueError, match="bytes are not an image that OpenCV can decode"):
            decode_rgb(bad)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - began < 100_000  # kilobytes


def test_a_png_without_pixels_or_whose_end_is_none() -> None:
    """OpenCV looks on behind it, and takes gigabytes for what it finds there; found by fuzzing."""
    whole = encoded("png")
    chunk = struct.pack(">I4s", 9, b"IEND") + bytes(13)
    began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for bad in (whole[:33] + chunk + whole[33:], whole[:33] + chunk + b"\xd8" * 900, whole[:33] + whole[-12:]):
        with pytest.raises(ValueError, match="bytes are not an image that OpenCV can decode"):
            decode_rgb(bad)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - began < 100_000  # kilobytes


def test_a_frame_in_a_comment_does_not_hide_the_real_one() -> None:
    bomb = enlarged("jpeg", 20000)
    comment = encoded("jpeg")
    decoy = bomb[:2] + b"\xff\xfe" + struct.pack(">H", len(comment) + 2) + comment + b"junk\xff\xff" + bomb[3:]
    with pytest.raises(ValueError, match="the image is 20000 x 20000"):
        decode_rgb(decoy)


def test_a_jpeg_of_thousands_of_scans_is_refused() -> None:
    image = encoded("progressive", np.zeros((1000, 1000, 3), np.uint8))
    start = image.rindex(b"\xff\xda")
    with pytest.raises(ValueError, match=f"the JPEG has .* scans, expected at most {MOST_SCANS}"):
        decode_rgb(image[:start] + image[start:-2] * 5000 + image[-2:])


@pytest.mark.parametrize("ending", [".jp2", ".hdr", ".pam", ".ras"])
def test_formats_that_nobody_keeps_faces_in_do_not_reach_opencv(ending: str) -> None:
    done, data = cv2.imencode(ending, IMAGE.astype(np.float32) if ending == ".hdr" else IMAGE)
    assert done
    with pytest.raises(ValueError, match="are not an image"):
        decode_rgb(data.tobytes())


@settings(max_examples=300, deadline=None)
@given(kind=st.sampled_from(list(KINDS)), data=st.data())
def test_damage_is_a_value_error_or_an_image_of_the_size_said(kind: str, data: st.DataObject) -> None:
    damaged = bytearray(encoded(kind))
    for at in data.draw(st.lists(st.integers(0, len(damaged) - 1), max_size=4)):
        damaged[at] = data.draw(st.integers(0, 255))
    damaged = damaged[:data.draw(st.integers(0, len(damaged)))]
    try:
        image = decode_rgb(bytes(damaged), 1 << 20)
    except ValueError:
        return
    size = image_size(bytes(damaged))
    assert size in (image.shape[:2], image.shape[1::-1])  # an EXIF tag may turn it
