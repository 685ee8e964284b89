# SPDX-License-Identifier: Apache-2.0
"""Pictures made worse, as cameras and people do: fewer pixels, blur, other colours, none, a mask over mouth and nose.

Sizes and colours are those of arcface_torch's DALI pipeline (``dataset.py``, ``dali_aug``). Each function takes uint8
``(H, W, 3)`` RGB, and numbers in [0, 1) that choose.
"""
from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

_SIDES = (0.5, 0.8)  # of the image's own: the smallest and the largest to which it shrinks
_MOST_HUE = 20.0  # degrees
_MOST_SATURATION = 1.2
_LUMA = (0.299, 0.587, 0.114)
# DALI's hsv turns and stretches the colours of a pixel in the plane of I and Q, beside its luma Y.
_TO_YIQ = np.array([_LUMA, (0.596, -0.274, -0.321), (0.211, -0.523, 0.311)])
_FROM_YIQ = np.linalg.inv(_TO_YIQ)
# ArcFace's template: eyes, nose, corners of the mouth, the left one of the image first, in pixels of 112 x 112.
ARCFACE = np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]])
# A mask on a face that is aligned by the template: its upper edge over the nose, the cheeks, the chin.
_MASK = np.array([(56, 62), (86, 68), (89, 88), (78, 106), (56, 112), (34, 106), (23, 88), (26, 68)], np.float64) / 112
# Its corners as sums of five landmarks: moved by the affine map that brings the template nearest to them (least
# squares).
_SUMS = np.column_stack([_MASK, np.ones(len(_MASK))]) @ np.linalg.pinv(np.column_stack([ARCFACE / 112, np.ones(5)]))
_MASK_COLOURS = ((236, 240, 241), (160, 200, 225), (30, 32, 36), (120, 130, 140), (190, 150, 160), (60, 90, 70))
_FARTHEST = 1  # a corner's way out of the image, in sides
_MOST_SHIFT = 0.04  # of the mask, as a share of the image's side
_FOLD = 1 / 56  # height of a fold, likewise


def down_up(image: np.ndarray, size: float) -> np.ndarray:
    """Shrink to 0.5 to 0.8 of each side, and enlarge again."""
    height, width = image.shape[:2]
    share = _SIDES[0] + size * (_SIDES[1] - _SIDES[0])
    small = cv2.resize(image, (max(1, int(width * share)), max(1, int(height * share))), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


def blur(image: np.ndarray, size: float) -> np.ndarray:
    """Blur by a Gaussian window of 3 or 5 pixels, with the standard deviation that belongs to it, 0.8 or 1.1."""
    side = 3 if size < 0.5 else 5
    return cv2.GaussianBlur(image, (side, side), 0)


def turn_colours(image: np.ndarray, hue: float, saturation: float) -> np.ndarray:
    """Turn the hue by 0 to 20 degrees, and stretch the saturation by 1 to 1.2."""
    angle, factor = np.deg2rad(_MOST_HUE * hue), 1 + (_MOST_SATURATION - 1) * saturation
    cosine, sine = factor * np.cos(angle), factor * np.sin(angle)
    turn = np.array([(1, 0, 0), (0, cosine, sine), (0, -sine, cosine)])
    return cv2.transform(image, _FROM_YIQ @ turn @ _TO_YIQ)


def grey(image: np.ndarray) -> np.ndarray:
    """The luma of each pixel in all three channels."""
    return cv2.transform(image, np.array([_LUMA] * 3))


def mirrored(landmarks: np.ndarray, width: int) -> np.ndarray:
    """The landmarks of the mirrored image, float ``(5, 2)``: left and right change places."""
    return (landmarks * (-1, 1) + (width - 1, 0))[[1, 0, 2, 4, 3]]


def mask_face(image: np.ndarray, colour: float, shift: Sequence[float],
              landmarks: np.ndarray | None = None) -> np.ndarray:
    """Draw a mask over nose, mouth and chin of an aligned face, into ``image``.

    :param colour: one of six; ``shift``: two numbers, right and down by up to 0.04 of the side either way.
    :param landmarks: float ``(5, 2)`` in pixels: the template's mask is moved by the affine map that brings its
        landmarks nearest to these; None: it stays
    """
    height, width = image.shape[:2]
    mask = _MASK
    if landmarks is not None:
        mask = (_SUMS @ (landmarks / (width, height))).clip(-_FARTHEST, 1 + _FARTHEST)
    moved = mask + (np.asarray(shift) * 2 - 1) * _MOST_SHIFT
    corners = np.rint(moved * (width, height)).astype(np.int32)
    tone = np.array(_MASK_COLOURS[int(colour * len(_MASK_COLOURS))])
    cv2.fillConvexPoly(image, corners, tone.tolist(), cv2.LINE_AA)
    for share in (0.3, 0.5, 0.7):  # folds, a little darker, from cheek to cheek
        left, right = (corners[i] + share * (corners[j] - corners[i]) for i, j in ((7, 5), (1, 3)))
        cv2.line(image, left.astype(int).tolist(), right.astype(int).tolist(), (0.85 * tone).tolist(),
                 max(1, round(height * _FOLD / 2)), cv2.LINE_AA)
    return image
