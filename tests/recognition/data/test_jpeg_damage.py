# SPDX-License-Identifier: Apache-2.0
"""JPEGs that have lost bytes, and sound ones full of zeros, which must not be taken for them."""
from __future__ import annotations

import struct
from pathlib import Path
from typing import Callable

import cv2
import numpy as np
import pytest

from common.sets.record_checks import look_at
from recognition.data.images.image import decode_rgb
from recognition.data.images.image_files import read_image
from recognition.data.images.jpeg_damage import CUT, damage
from recognition.data.sets.dataset import open_dataset
from recognition.errors import UserError

SAMPLING = {"4:4:4": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444, "4:2:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420}


def jpeg(image: np.ndarray, quality: int = 95, optimise: int = 0, progressive: int = 0, sampling: str = "4:2:0",
         restart: int = 0) -> bytes:
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_OPTIMIZE, optimise, cv2.IMWRITE_JPEG_PROGRESSIVE,
               progressive, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, SAMPLING[sampling], cv2.IMWRITE_JPEG_RST_INTERVAL,
               restart]
    return bytes(cv2.imencode(".jpg", image, options)[1])


def photograph(side: int) -> np.ndarray:
    random = np.random.RandomState(side)
    return cv2.resize(random.randint(0, 256, (12, 12, 3)).astype(np.uint8), (side, side)) // 2 + random.randint(
        0, 128, (side, side, 3)).astype(np.uint8)


def zeroed(data: bytes, start: int, count: int) -> bytes:
    return data[:start] + bytes(len(data[start : start + count])) + data[start + count :]


@pytest.mark.parametrize("sampling", SAMPLING)
@pytest.mark.parametrize("progressive", [0, 1])
@pytest.mark.parametrize("optimise", [0, 1])
@pytest.mark.parametrize("side", [8, 112, 250, 1000, 2048])
def test_flat_images_are_sound(side: int, optimise: int, progressive: int, sampling: str) -> None:
    for colour in (0, 128, 255, (7, 90, 201)):
        for shape in ((side, side, 3), (side, 2 * side // 3 + 1)):
            image = np.empty(shape, np.uint8)
            image[:] = colour if len(shape) == 3 or isinstance(colour, int) else 90
            assert damage(jpeg(image, 95, optimise, progressive, sampling)) == ""


@pytest.mark.parametrize("share", [0.5, 0.8, 0.9, 0.95, 0.98])
def test_photographs_on_a_flat_ground_are_sound(share: float) -> None:
    """Where the codes of a flat block are longer than one bit, for the rest of the image has many symbols."""
    for side in (512, 1024):
        image = photograph(side)
        image[: int(side * share)] = 255
        for quality in (30, 75, 100):
            for optimise, sampling in ((0, "4:2:0"), (1, "4:2:0"), (1, "4:4:4")):
                assert damage(jpeg(image, quality, optimise, 0, sampling)) == ""


def test_real_faces_are_sound(shared: Path) -> None:
    paths = sorted((shared / "data").rglob("*.[jp][pg][gm]"))
    assert len(paths) > 100
    for path in paths:
        image = cv2.imread(str(path))
        assert damage(path.read_bytes()) == ""
        for optimise, quality in ((0, 90), (1, 30)):
            assert damage(jpeg(cv2.resize(image, (112, 112)), quality, optimise)) == ""


@pytest.mark.parametrize("progressive, optimise, restart", [(0, 0, 0), (0, 1, 0), (1, 0, 0), (0, 0, 4)])
def test_lost_blocks_are_found_which_opencv_decodes(progressive: int, optimise: int, restart: int) -> None:
    whole = jpeg(photograph(112), 98, optimise, progressive, restart=restart)
    assert len(whole) > 10_000 and damage(whole) == ""
    scan = whole.rindex(b"\xff\xda") if not progressive else whole.index(b"\xff\xda")
    half = zeroed(whole, len(whole) // 2, len(whole) // 2 - 2)
    assert decode_rgb(half).shape == (112, 112, 3)
    assert damage(half) == (f"the JPEG has lost data: {len(whole) - 2 - len(whole) // 2} zero bytes at byte "
                            f"{len(whole) // 2}, in a scan")
    for count in (512, 4096):
        for start in range(scan + 20, len(whole) - count - 2, 1000):
            assert f"{count} zero bytes at byte {start}, " in damage(
                zeroed(whole, start, count)[: start + count] + b"\x01" + whole[start + count + 1 :]) or progressive
            assert damage(zeroed(whole, start, count))


def test_real_faces_that_lost_a_block(shared: Path) -> None:
    paths = sorted((shared / "data" / "orl").rglob("*.*g*"))[:40] + sorted((shared / "data" / "wild").glob("*.jpg"))
    for path in paths:
        face = cv2.imread(str(path))
        if face is None:
            continue
        whole = jpeg(cv2.resize(face, (112, 112)), 95)
        assert "zero bytes at byte" in damage(zeroed(whole, len(whole) // 2, 512))
        assert "zero bytes at byte" in damage(zeroed(whole, len(whole) // 2, len(whole) // 2 - 2))


def test_a_small_loss_of_a_large_photograph() -> None:
    whole = jpeg(photograph(1024))
    for start in range(1000, len(whole) - 3000, len(whole) // 7):
        assert damage(zeroed(whole, start, 2048)).endswith(", in a scan")


def test_zeros_in_tables_and_between_segments() -> None:
    whole = jpeg(photograph(112))
    tables = whole.index(b"\xff\xc4")
    first = zeroed(whole, 24, tables + 300 - 24)  # behind the JFIF header
    assert damage(first).endswith("where a segment should begin")
    assert "zero bytes" in damage(whole[: tables + 2] + struct.pack(">H", 402) + bytes(400) + whole[tables:])


def test_zeros_that_are_no_matter() -> None:
    """In metadata, behind the end, and in what is no JPEG."""
    whole = jpeg(photograph(112))
    for kind in (b"\xff\xe1", b"\xff\xe2", b"\xff\xfe"):
        assert damage(whole[:2] + kind + struct.pack(">H", 30_002) + bytes(30_000) + whole[2:]) == ""
    assert damage(whole + bytes(5000) + b"\xff\xd9") == damage(whole + bytes(5000)) == ""
    assert damage(bytes(5000)) == damage(b"") == damage(cv2.imencode(".bmp", np.zeros((99, 99)))[1].tobytes()) == ""


def test_an_end_that_is_missing() -> None:
    whole = jpeg(photograph(112))
    assert damage(whole[:-2]) == damage(whole[:3000] + bytes(9000)) == CUT
    assert damage(whole + b"more") == ""


@pytest.mark.parametrize("at", range(0, 700, 7))
def test_nothing_is_raised_wherever_it_breaks_off(at: int) -> None:
    whole = jpeg(photograph(112))
    for behind in (b"", bytes(600) + whole[-2:], b"\xff" * 600 + bytes(600) + whole[-2:]):
        assert isinstance(damage(whole[:at] + behind), str)


def test_training_doctor_and_tools_agree(make_set: Callable[..., Path], tmp_path: Path) -> None:
    whole = jpeg(photograph(112), 98)
    half = zeroed(whole, len(whole) // 2, len(whole) // 2 - 2)
    dataset = open_dataset(make_set(counts=(4, 4), bodies={2: half}), on_bad_record="skip", bad_record_share=0.2)
    with pytest.raises(UserError, match=r"train\.rec: record 3: the JPEG has lost data: \d+ zero bytes at byte \d+"):
        dataset.load(2)
    assert dataset.usable(2)[2] == 4 and len(dataset.bad) == 1
    assert look_at(half, 112, 112).problem == look_at(half, 112, 112, decode=False).problem == damage(half) != ""
    (tmp_path / "half.jpg").write_bytes(half)
    with pytest.raises(UserError, match=r"half\.jpg: the JPEG has lost data"):
        read_image(tmp_path / "half.jpg")
