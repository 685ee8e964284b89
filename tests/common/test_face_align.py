# SPDX-License-Identifier: Apache-2.0
"""The five-point transform against linear least squares and against Umeyama's SVD, and images moved back by it."""
from __future__ import annotations

import cv2
import numpy as np
import pytest

from common.faces.alignment import ARCFACE, FIVE, align, best_transform, similarity, templates_of


def by_least_squares(points, target):
    """(a, b, x, y) of u = a x - b y + x0, v = b x + a y + y0."""
    rows = np.zeros((2 * len(points), 4))
    rows[0::2] = np.column_stack([points[:, 0], -points[:, 1], np.ones(len(points)), np.zeros(len(points))])
    rows[1::2] = np.column_stack([points[:, 1], points[:, 0], np.zeros(len(points)), np.ones(len(points))])
    a, b, x, y = np.linalg.lstsq(rows, target.ravel(), rcond=None)[0]
    return np.array([[a, -b, x], [b, a, y]])


def by_svd(points, target):
    """Umeyama's paper, equations 34 to 43, for any dimension."""
    centre, goal = points.mean(axis=0), target.mean(axis=0)
    covariance = (target - goal).T @ (points - centre) / len(points)
    u, d, vt = np.linalg.svd(covariance)
    sign = np.array([1, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    rotation = u @ np.diag(sign) @ vt
    scale = (d * sign).sum() / np.mean(np.sum((points - centre) ** 2, axis=1))
    return np.column_stack([scale * rotation, goal - scale * rotation @ centre])


@pytest.mark.parametrize("seed", range(8))
def test_against_two_other_routes(seed):
    random = np.random.default_rng(seed)
    points = random.uniform(0, 500, (5, 2))  # a mirrored face among them: the nearest is no reflection
    found = similarity(points, ARCFACE)
    np.testing.assert_allclose(found, by_least_squares(points, ARCFACE), atol=1e-9)  # float64, hundreds of pixels
    np.testing.assert_allclose(found, by_svd(points, ARCFACE), atol=1e-9)
    assert np.linalg.det(found[:, :2]) > 0


def test_the_transform_of_a_moved_template_is_undone():
    turn = 1.7 * np.exp(0.4j)
    moved = (ARCFACE @ [1, 1j]) * turn + (31 - 12j)
    found = similarity(np.column_stack([moved.real, moved.imag]), ARCFACE)
    points = np.column_stack([moved.real, moved.imag, np.ones(5)])
    np.testing.assert_allclose(points @ found.T, ARCFACE, atol=1e-12)


def test_templates_are_the_published_ones():
    # Glint360K's, as it was published: the template of 112 x 96, 8 to the right. The same numbers.
    narrow = [[30.2946, 51.6963], [65.5318, 51.5014], [48.0252, 71.7366], [33.5493, 92.3655], [62.7299, 92.2041]]
    shifted = np.array(narrow) + np.array([8, 0])
    np.testing.assert_allclose(shifted, ARCFACE, atol=1e-12)
    # The five mirror each other: the first is the last seen in a mirror, eyes and corners of the mouth swapped.
    mirrored = FIVE[::-1, [1, 0, 2, 4, 3]] * [-1, 1] + [112, 0]
    assert np.abs(mirrored - FIVE).max() < 0.7  # as far as the published numbers do
    np.testing.assert_array_equal(templates_of("five", 224), 2 * FIVE)
    np.testing.assert_array_equal(templates_of("arcface", 112), ARCFACE[None])
    with pytest.raises(ValueError, match="found size 100"):
        templates_of("arcface", 100)


@pytest.mark.parametrize("number", range(5))
def test_the_template_that_fits_is_chosen(number):
    moved = (FIVE[number] @ [1, 1j]) * 2.1j + 50
    transform, chosen = best_transform(np.column_stack([moved.real, moved.imag]), FIVE)
    assert chosen == number
    assert np.hypot(*transform[:, 0]) == pytest.approx(1 / 2.1)


@pytest.mark.parametrize("size", [112, 224])
def test_a_face_moved_and_turned_comes_back(shared, size):
    face = cv2.resize(cv2.imread(str(shared / "data" / "wild" / "00000001.jpg")), (size, size))
    face = cv2.GaussianBlur(face, (0, 0), 2)  # so that two interpolations change little
    away = np.array([[1.3, -0.5, 140], [0.5, 1.3, 30]])
    picture = cv2.warpAffine(face, away, (4 * size, 4 * size))
    landmarks = (ARCFACE * (size / 112)) @ away[:, :2].T + away[:, 2]
    back = align(picture, landmarks, size)
    inner = slice(size // 16, -size // 16)
    difference = np.abs(back[inner, inner].astype(int) - face[inner, inner])
    assert back.shape == face.shape and difference.mean() < 1.5 and difference.max() < 12


def test_black_beyond_the_image():
    image = np.full((60, 60, 3), 255, np.uint8)
    aligned = align(image, ARCFACE + 20)  # the face begins at 20, 20
    assert aligned[:39, :39].min() == 255 and aligned[42:].max() == 0


@pytest.mark.parametrize("points", [np.full((5, 2), 33.0), np.full((5, 2), np.nan), np.full((5, 2), 1e30)])
def test_landmarks_without_extent(points):
    with pytest.raises(ValueError, match="all one point or not finite"):
        similarity(points, ARCFACE)
