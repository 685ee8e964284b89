# SPDX-License-Identifier: Apache-2.0
"""Augmentations against the recipes' arithmetic in float64."""
from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from types import ModuleType

import cv2
import numpy as np
import pytest

from recognition.data.augment import Augmentation, jitter, recompress
from recognition.data.image import decode_rgb

NOTHING = [0.9] * 10
MIRROR, COMPRESS, QUALITY, ORDER, BRIGHTNESS, CONTRAST, SATURATION, CUT, ROW, COLUMN = range(10)


def numbers(**chosen: float) -> list[float]:
    row = list(NOTHING)
    for name, value in chosen.items():
        row[globals()[name.upper()]] = value
    return row


@pytest.fixture
def image(make_jpeg: Callable[..., bytes]) -> np.ndarray:
    return decode_rgb(make_jpeg(0))


def test_mirror(image: np.ndarray) -> None:
    np.testing.assert_array_equal(Augmentation()(image.copy(), numbers(mirror=0.4)), image[:, ::-1])
    np.testing.assert_array_equal(Augmentation()(image.copy(), numbers(mirror=0.5)), image)
    np.testing.assert_array_equal(Augmentation(mirror=False)(image.copy(), [0.0] * 10), image)


@pytest.mark.parametrize("cutoff, row, column, box", [
    (32, 0.5, 0.25, (40, 72, 12, 44)), (32, 0.0, 0.999, (0, 16, 95, 112)), (33, 0.5, 0.25, (40, 72, 12, 44)),
    (1, 0.5, 0.5, (0, 0, 0, 0)), (True, 0.5, 0.5, (0, 0, 0, 0)), (400, 0.5, 0.5, (0, 112, 0, 112))])
def test_cutoff(image: np.ndarray, cutoff: int, row: float, column: float, box: tuple[int, ...]) -> None:
    expected = image.copy()
    expected[box[0]:box[1], box[2]:box[3]] = 128
    augmentation = Augmentation(mirror=False, cutoff=cutoff)
    np.testing.assert_array_equal(augmentation(image.copy(), numbers(cut=0.1, row=row, column=column)), expected)
    np.testing.assert_array_equal(augmentation(image.copy(), numbers(cut=0.6, row=row, column=column)), image)


def jitter_float64(image: np.ndarray, steps: list[tuple[str, float]]) -> np.ndarray:
    """The three steps one after the other on floats, as the recipes do them."""
    pixels, luma = image.astype(np.float64), np.array([0.299, 0.587, 0.114])
    for name, factor in steps:
        towards = {"brightness": 0.0, "contrast": (pixels @ luma).mean(), "saturation": (pixels @ luma)[..., None]}
        pixels = factor * pixels + (1 - factor) * towards[name]
    return pixels


@pytest.mark.parametrize("names", list(permutations(("brightness", "contrast", "saturation"))))
def test_jitter(image: np.ndarray, names: tuple[str, ...]) -> None:
    """Within a level: half of one for rounding, and OpenCV's 10 bits after the point in the coefficients."""
    steps = list(zip(names, (1.12, 0.88, 1.1)))
    expected = jitter_float64(image, steps)
    assert abs(jitter(image, steps) - np.clip(expected, 0, 255)).max() < 1
    assert expected.min() < -0.5 or expected.max() > 255.5  # clipped somewhere


def test_jitter_follows_the_numbers(image: np.ndarray) -> None:
    row = numbers(order=0.99, brightness=0.0, contrast=0.999999, saturation=0.5)
    got = Augmentation(mirror=False, color=1)(image.copy(), row)
    steps = [("saturation", 1.0), ("contrast", 1.125), ("brightness", 0.875)]
    assert abs(got - np.clip(jitter_float64(image, steps), 0, 255)).max() < 1


def test_jitter_as_mxnet(image: np.ndarray, mx: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """MXNet's own augmenter with its draws fixed; within a level, as above."""
    monkeypatch.setattr(mx.image.image.random, "uniform", lambda low, high: 0.1)
    monkeypatch.setattr(mx.image.image.random, "shuffle", lambda augmenters: None)
    theirs = mx.image.ColorJitterAug(0.125, 0.125, 0.125)(mx.nd.array(image)).asnumpy()
    ours = jitter(image, [("brightness", 1.1), ("contrast", 1.1), ("saturation", 1.1)])
    assert abs(ours - np.clip(theirs, 0, 255)).max() < 1


def test_recompression(image: np.ndarray) -> None:
    for quality, number in ((2, 0.0), (11, 0.5), (20, 0.9999)):
        bgr = np.ascontiguousarray(image[..., ::-1])
        encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
        np.testing.assert_array_equal(recompress(image, quality), decode_rgb(encoded))
        row = numbers(compress=0.2, quality=number, brightness=0.5, contrast=0.5, saturation=0.5)
        np.testing.assert_array_equal(Augmentation(False, color=2)(image.copy(), row), recompress(image, quality))
        np.testing.assert_array_equal(Augmentation(False, color=1)(image.copy(), row), image)
