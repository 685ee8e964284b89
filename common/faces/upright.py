# SPDX-License-Identifier: Apache-2.0
"""Check that five landmarks form an upright face; if not, which other order of numbers would make them one.

Landmarks are fitted to the templates by a similarity transform, as for the alignment. Those of a face leave a small
residual and are turned little; those in another order (left and right exchanged, y before x, all x before all y, eyes
last) do not. Faces that YuNet finds in photographs leave 0.03 at most, profiles between two templates as much; a wrong
order leaves 0.2 to 0.7, but for full profiles, where one side of the face lies on the other.
"""
from __future__ import annotations

from typing import NamedTuple

import numpy as np

from common.faces.alignment import ARCFACE, FIVE

MOST_RESIDUAL = 0.1  # of the template's sum of squares
MOST_DEGREES = 75.0  # between upright and lying on its side: a face that lies has the landmarks of one with y before x
_TEMPLATES = np.concatenate([ARCFACE[None], FIVE]) @ [1, 1j]
_ROWS = 1 << 16
LEAST_PIXELS = 4  # of the box around the landmarks: of fewer nothing can be seen
EXPECTED_ORDER = "expected left eye, right eye, nose, left and right corner of the mouth, x before y"

_STANDARD = (0, 1, 2, 3, 4)
_POINTS = {  # the place in the file of: left eye, right eye, nose, left corner of the mouth, right one
    "": _STANDARD, "left and right exchanged": (1, 0, 2, 4, 3), "eyes last": (3, 4, 2, 0, 1),
    "eyes last, left and right exchanged": (4, 3, 2, 1, 0), "nose first": (1, 2, 0, 3, 4), "nose last": (0, 1, 4, 2, 3),
    "nose first, eyes last": (3, 4, 0, 1, 2), "nose last, eyes after the mouth": (2, 3, 4, 0, 1),
    "the corners of the mouth exchanged": (0, 1, 2, 4, 3), "the eyes exchanged": (1, 0, 2, 3, 4)}
_NUMBERS = {  # the place in the file of x and y of the five
    "": [(2 * i, 2 * i + 1) for i in range(5)], "y before x": [(2 * i + 1, 2 * i) for i in range(5)],
    "all x before all y": [(i, 5 + i) for i in range(5)], "all y before all x": [(5 + i, i) for i in range(5)]}


class Fit(NamedTuple):
    """The fit of each of N sets of five landmarks to the nearest template."""

    residuals: np.ndarray  # float64 (N,): 0 is a perfect fit, 1 none
    degrees: np.ndarray  # float64 (N,): by how much the face is turned, -180 to 180

    def upright(self) -> np.ndarray:
        """bool (N,)"""
        return (self.residuals <= MOST_RESIDUAL) & (np.abs(self.degrees) <= MOST_DEGREES)


def fit(points: np.ndarray) -> Fit:
    """Fit float ``(N, 5, 2)``. Landmarks without extent, or that are not finite, fit nothing."""
    source = np.asarray(points, np.float64) @ [1, 1j]
    source = source - source.mean(axis=1, keepdims=True)
    wanted = _TEMPLATES - _TEMPLATES.mean(axis=1, keepdims=True)
    products = source.conj() @ wanted.T  # (N, templates): scale and rotation, times the spread of the source
    spread = np.square(np.abs(source)).sum(axis=1)[:, None] * np.square(np.abs(wanted)).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        residuals = np.nan_to_num(1 - np.square(np.abs(products)) / spread, nan=1.0)
    best = residuals.argmin(axis=1)
    rows = np.arange(len(best))
    return Fit(residuals[rows, best], np.degrees(np.angle(products[rows, best])))


def upright(points: np.ndarray) -> np.ndarray:
    """True where five landmarks form an upright face, bool ``(N,)`` of float ``(N, 5, 2)``."""
    parts = [fit(points[start : start + _ROWS]).upright() for start in range(0, len(points), _ROWS)]
    return np.concatenate(parts) if parts else np.zeros(0, bool)


def why_no_face(points: np.ndarray) -> str:
    """The fault of the landmarks of one face, float ``(5, 2)``; empty if they form an upright one."""
    found = fit(points[None])
    if found.upright()[0]:
        return ""
    residual, degrees = found.residuals[0], found.degrees[0]
    what = f"turned by {degrees:.0f} degrees" if residual <= MOST_RESIDUAL else f"{residual:.0%} fits no face"
    return f"its landmarks form no upright face ({what}), {EXPECTED_ORDER}"


def extents(points: np.ndarray) -> np.ndarray:
    """The longer side in pixels of the box around five landmarks, float ``(N,)`` of float ``(N, 5, 2)``."""
    return np.ptp(points, axis=1).max(axis=1)


def why_not_in(points: np.ndarray, height: int, width: int) -> str:
    """The fault of the landmarks, float ``(5, 2)``, of a face in an image of this size; empty if nothing is. A
    face at the border may have some of them outside."""
    if (extent := extents(points[None])[0]) < LEAST_PIXELS:
        return f"its landmarks lie within {extent:.2g} pixels, expected at least {LEAST_PIXELS}, in pixels of the image"
    x, y = points.mean(axis=0)
    if 0 <= x < width and 0 <= y < height:
        return ""
    return (f"its landmarks lie around ({x:.0f}, {y:.0f}), expected inside the image, which is {width} wide and "
            f"{height} high: are they of another size of it?")


def likely_order(numbers: np.ndarray) -> tuple[str, float]:
    """The order in which most rows of float ``(N, 10)`` form an upright face, in words, and their part of all rows.

    The standard order is the empty text. Of orders that fit alike the first in the tables above is taken.
    """
    best, most = "", -1.0
    for layout, places in _NUMBERS.items():
        points = numbers[:, np.array(places)]
        for order, chosen in _POINTS.items():
            part = float(upright(points[:, list(chosen)]).mean())
            if part > most + 0.05:  # not for a few profiles
                best, most = ", ".join(filter(None, (layout, order))), part
    return best, most
