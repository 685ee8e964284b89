# SPDX-License-Identifier: Apache-2.0
"""Alignment of faces by five landmarks: eyes, nose, corners of the mouth, the left one of the image first.

A similarity transform (scale, rotation, shift) brings the landmarks nearest to a template in the sense of least
squares: Umeyama, "Least-squares estimation of transformation parameters between two point patterns", PAMI 1991. In the
plane a similarity is the product with a complex number plus a shift, which gives it in closed form.

ARCFACE is the template of ArcFace's training and test sets, and of Glint360K, which published it as the template of
112 x 96 shifted by 8 to the right: the same numbers. FIVE are the five templates of the recipes' other mode, from one
profile over the front to the other; the best fitting one is used.

    python -m common.face_align photographs aligned --landmarks FILE
    python -m common.face_align photographs aligned --detector face_detection_yunet_2023mar.onnx

aligns a folder of images (``common/face_align.py``).
"""
from __future__ import annotations

import cv2
import numpy as np

from recognition.data.degrade import ARCFACE as ARCFACE

FIVE = np.array([
    [[51.642, 50.115], [57.617, 49.990], [35.740, 69.007], [51.157, 89.050], [57.025, 89.702]],  # profile to the left
    [[45.031, 50.118], [65.568, 50.872], [39.677, 68.111], [45.177, 86.190], [64.246, 86.758]],
    [[39.730, 51.138], [72.270, 51.138], [56.000, 68.493], [42.463, 87.010], [69.537, 87.010]],  # from the front
    [[46.845, 50.872], [67.382, 50.118], [72.737, 68.111], [48.167, 86.758], [67.236, 86.190]],
    [[54.796, 49.990], [60.771, 50.115], [76.673, 69.007], [55.388, 89.702], [61.257, 89.050]],  # profile to the right
])
MODES = {"arcface": ARCFACE[None], "five": FIVE}  # float64 (templates, 5, 2), for images of 112 x 112
BASE = 112


def templates_of(mode: str, size: int) -> np.ndarray:
    """The templates of a mode, float64 ``(templates, 5, 2)``, for images of ``size``: 112, or a multiple of it."""
    if size % BASE or size < BASE:
        raise ValueError(f"found size {size}, expected a multiple of {BASE}")
    return MODES[mode] * (size // BASE)


def similarity(points: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The similarity transform that brings ``points`` nearest to ``target``, both float ``(n, 2)``: float64 ``(2, 3)``.

    It is never a reflection.

    :raises ValueError: if all points are the same, or if one is not finite.
    """
    source = np.asarray(points, np.float64) @ [1, 1j]
    wanted = np.asarray(target, np.float64) @ [1, 1j]
    centred = source - source.mean()
    spread = np.vdot(centred, centred).real
    if not (np.isfinite(spread) and spread > 1e-12 * max(1.0, float(np.abs(source).max()) ** 2)):
        raise ValueError("the landmarks are all one point or not finite, expected five places in a face")
    factor = np.vdot(centred, wanted - wanted.mean()) / spread  # vdot conjugates the first
    shift = wanted.mean() - factor * source.mean()
    return np.array([[factor.real, -factor.imag, shift.real], [factor.imag, factor.real, shift.imag]])


def best_transform(landmarks: np.ndarray, templates: np.ndarray) -> tuple[np.ndarray, int]:
    """The transform to the best fitting of templates, float ``(templates, 5, 2)``, and the number of that template.

    The best one has the smallest sum of the five distances after the transform, as in the recipes.
    """
    found = [similarity(landmarks, template) for template in templates]
    moved = [landmarks @ transform[:, :2].T + transform[:, 2] for transform in found]
    errors = [np.linalg.norm(points - template, axis=1).sum() for points, template in zip(moved, templates)]
    best = int(np.argmin(errors))
    return found[best], best


def align(image: np.ndarray, landmarks: np.ndarray, size: int = BASE, mode: str = "arcface") -> np.ndarray:
    """The aligned face, uint8 ``(size, size, 3)``; black outside of the image.

    :param image: uint8 ``(H, W, 3)``
    :param landmarks: float ``(5, 2)``, x and y in pixels of ``image``
    :param mode: ``arcface`` or ``five``
    :raises ValueError: if the landmarks have no extent
    """
    return align_with_landmarks(image, landmarks, size, mode)[0]


def align_with_landmarks(image: np.ndarray, landmarks: np.ndarray, size: int = BASE,
                         mode: str = "arcface") -> tuple[np.ndarray, np.ndarray]:
    """The aligned face, as :func:`align` gives it, and the landmarks in it, float64 ``(5, 2)``."""
    points = np.asarray(landmarks, np.float64)
    transform, _ = best_transform(points, templates_of(mode, size))
    aligned = cv2.warpAffine(image, transform, (size, size), flags=cv2.INTER_LINEAR, borderValue=0)
    return aligned, points @ transform[:, :2].T + transform[:, 2]


def estimate_norm(lmk: np.ndarray, image_size: int = BASE, mode: str = "arcface") -> tuple[np.ndarray, int]:
    """The recipes' name and arguments for :func:`best_transform`."""
    return best_transform(np.asarray(lmk, np.float64), templates_of(mode, image_size))


def norm_crop(img: np.ndarray, landmark: np.ndarray, image_size: int = BASE, mode: str = "arcface") -> np.ndarray:
    """The recipes' name and arguments for :func:`align`."""
    return align(img, landmark, image_size, mode)
