# SPDX-License-Identifier: Apache-2.0
"""Augmentations against the recipes' arithmetic in float64."""
from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from types import ModuleType

import cv2
import numpy as np
import pytest

from recognition.data import degrade
from recognition.data.augment import Augmentation, jitter, recompress
from recognition.data.images.image import decode_rgb

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


OTHERS = {"mask": (10, 11, 12, 13), "resize": (14, 15), "blur": (16, 17), "hsv": (18, 19, 20), "grey": (21,)}


@pytest.mark.parametrize("name", OTHERS)
def test_a_share_of_the_images_is_made_worse_by_columns_of_its_own(image: np.ndarray, name: str) -> None:
    """The first column of each decides, against the share; those of others do not matter, nor do the recipes' ten."""
    random = np.random.RandomState(0)
    for share in (0.3, 0.7):
        augmentation = Augmentation(mirror=False, **{name: share})
        for _ in range(20):
            row = random.rand(Augmentation.NUM_UNIFORMS)
            found = augmentation(image.copy(), row.tolist())
            assert np.array_equal(found, image) == (row[OTHERS[name][0]] >= share)
            other = random.rand(len(row))
            other[list(OTHERS[name])] = row[list(OTHERS[name])]
            assert np.array_equal(augmentation(image.copy(), other.tolist()), found)


def test_the_recipes_augmentations_are_as_before(image: np.ndarray) -> None:
    """Ten numbers are enough for them, and more columns change nothing."""
    row = np.random.RandomState(1).rand(Augmentation.NUM_UNIFORMS).tolist()
    recipes = Augmentation(cutoff=40, color=2)
    assert np.array_equal(recipes(image.copy(), row), recipes(image.copy(), row[:10]))


@pytest.mark.parametrize("hue, saturation", [(0, 0), (0.999, 0), (0, 0.999), (0.5, 0.25)])
def test_colours_turn_in_the_plane_of_i_and_q(image: np.ndarray, hue: float, saturation: float) -> None:
    """In float64, pixel by pixel. Within a level: half of one for rounding, and the fixed point of cv2.transform."""
    yiq = image @ np.array([(0.299, 0.587, 0.114), (0.596, -0.274, -0.321), (0.211, -0.523, 0.311)]).T
    angle, factor = np.deg2rad(20 * hue), 1 + 0.2 * saturation
    colour = (yiq[..., 1] + 1j * yiq[..., 2]) * factor * np.exp(-1j * angle)
    turned = np.stack([yiq[..., 0], colour.real, colour.imag], axis=-1)
    back = np.linalg.inv([(0.299, 0.587, 0.114), (0.596, -0.274, -0.321), (0.211, -0.523, 0.311)])
    expected = np.clip(turned @ back.T, 0, 255)
    assert np.abs(degrade.turn_colours(image, hue, saturation) - expected).max() <= 1


def test_grey_is_the_luma(image: np.ndarray) -> None:
    luma = image @ np.array((0.299, 0.587, 0.114))
    assert np.abs(degrade.grey(image) - luma[..., None]).max() <= 1


@pytest.mark.parametrize("size, side", [(0.2, 3), (0.7, 5)])
def test_blur_is_a_gaussian_window(image: np.ndarray, size: float, side: int) -> None:
    """In float64, mirrored at the edges without repeating them. OpenCV's window has 8 bits: within 2 levels."""
    sigma, half = 0.3 * (side // 2 - 1) + 0.8, side // 2
    window = np.exp(-np.square(np.arange(-half, half + 1)) / (2 * sigma ** 2))
    window /= window.sum()
    padded = np.pad(image.astype(float), ((half, half), (half, half), (0, 0)), mode="reflect")
    rows = sum(weight * padded[i : i + 112] for i, weight in enumerate(window))
    expected = sum(weight * rows[:, i : i + 112] for i, weight in enumerate(window))
    assert np.abs(degrade.blur(image, size) - expected).max() <= 2


def test_fewer_pixels(image: np.ndarray) -> None:
    """Half of each side: means of four pixels, then straight lines between them; a level for each rounding. The larger
    the share, the nearer to the image."""
    means = image.reshape(56, 2, 56, 2, 3).mean(axis=(1, 3))
    at = np.clip((np.arange(112) + 0.5) / 2 - 0.5, 0, 55)
    low, part = np.minimum(at.astype(int), 54), at - np.minimum(at.astype(int), 54)
    rows = means[low] * (1 - part)[:, None, None] + means[low + 1] * part[:, None, None]
    expected = rows[:, low] * (1 - part)[None, :, None] + rows[:, low + 1] * part[None, :, None]
    assert np.abs(degrade.down_up(image, 0) - expected).max() <= 2
    away = [np.abs(degrade.down_up(image, size).astype(int) - image).mean() for size in (0, 0.5, 0.99)]
    assert away == sorted(away, reverse=True)


def test_a_mask_hides_mouth_and_nose_and_leaves_the_eyes(image: np.ndarray) -> None:
    """At the places of the template, whatever the shift; larger images have larger masks."""
    for side in (112, 224):
        for colour, shift in ((0.0, (0, 0)), (0.99, (0.999, 0.999)), (0.5, (0.5, 0.2))):
            plain = cv2.resize(image, (side, side))
            masked = degrade.mask_face(plain.copy(), colour, shift)
            changed = (masked != plain).any(axis=2)
            for x, y, hidden in ((38, 52, False), (74, 52, False), (56, 72, True), (42, 92, True), (71, 92, True)):
                rows, columns = (slice((at - 2) * side // 112, (at + 2) * side // 112) for at in (y, x))
                near = changed[rows, columns]
                assert near.all() if hidden else not near.any()


def test_a_mask_moves_as_its_landmarks(image: np.ndarray) -> None:
    """The template's own leave it where it is, and landmarks that lie elsewhere by whole pixels move it by as many;
    what lies far outside is drawn nowhere, without a word."""
    plain = np.full_like(image, 200)
    at_home = degrade.mask_face(plain.copy(), 0.4, (0.5, 0.5))
    np.testing.assert_array_equal(degrade.mask_face(plain.copy(), 0.4, (0.5, 0.5), degrade.ARCFACE), at_home)
    moved = degrade.mask_face(plain.copy(), 0.4, (0.5, 0.5), degrade.ARCFACE - np.array([12, 9]))
    np.testing.assert_array_equal(moved[:112 - 9, :112 - 12], at_home[9:, 12:])
    far = degrade.mask_face(plain.copy(), 0.4, (0.5, 0.5), degrade.ARCFACE + 1e6)
    np.testing.assert_array_equal(far, plain)
    narrow = degrade.ARCFACE * (0.6, 1) + (20, 0)  # as a face that turns away
    covered = (degrade.mask_face(plain.copy(), 0.4, (0.5, 0.5), narrow) != plain).any(axis=2).sum()
    assert covered == pytest.approx(0.6 * (at_home != plain).any(axis=2).sum(), rel=0.05)  # its edge is of pixels


def test_mirrored_landmarks_are_those_of_the_mirrored_image() -> None:
    found = degrade.mirrored(degrade.ARCFACE, 112)
    assert found[0, 0] == 111 - degrade.ARCFACE[1, 0] and found[2, 1] == degrade.ARCFACE[2, 1]
    np.testing.assert_allclose(degrade.mirrored(found, 112), degrade.ARCFACE, atol=1e-12)
