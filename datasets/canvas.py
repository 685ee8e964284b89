# SPDX-License-Identifier: Apache-2.0
"""A small anti-aliased canvas in face units: the origin lies between the eyes, x to the right, y downwards.

One unit is about 1.4 times the distance between the eyes. A layer is a premultiplied RGBA image, uint8
``(SIZE, SIZE, 4)``. Outlines and lines are float ``(n, 2)`` or lists of (x, y); colours are RGB, 0 to 255.
"""
from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import ArrayLike

SIZE = 192  # pixels
SPAN = 3.5  # face units
LEFT, TOP = -1.75, -1.65  # face units
SCALE = SIZE / SPAN  # pixels in a face unit
_SHIFT = 4  # bits of cv2's fixed-point coordinates: 1/16 of a pixel

_axis = (np.arange(SIZE, dtype=np.float32) + 0.5) / SCALE
#: face coordinates of each pixel of a layer, float32 ``(SIZE, SIZE)``
X, Y = np.meshgrid(_axis + LEFT, _axis + TOP)


def new_layer() -> np.ndarray:
    """An empty (transparent) layer."""
    return np.zeros((SIZE, SIZE, 4), np.uint8)


def _fixed(points: ArrayLike) -> np.ndarray:
    """Convert face units to the fixed-point pixel coordinates of cv2, int32 ``(n, 2)``."""
    pixels = (np.asarray(points, np.float64) - (LEFT, TOP)) * SCALE - 0.5
    return np.rint(pixels * (1 << _SHIFT)).astype(np.int32)


def _opaque(colour: ArrayLike) -> tuple[float, ...]:
    return (*np.asarray(colour, np.float64).tolist(), 255.0)


def spline(points: ArrayLike, closed: bool = True, steps: int = 6) -> np.ndarray:
    """A Catmull-Rom curve through ``points``: float64 ``(n * steps, 2)``, or ``((n - 1) * steps + 1, 2)`` when open."""
    p = np.asarray(points, np.float64)
    p = np.vstack([p[-1:], p, p[:2]]) if closed else np.vstack([2 * p[0] - p[1], p, 2 * p[-1] - p[-2]])
    before, start, stop, after = p[:-3, None], p[1:-2, None], p[2:-1, None], p[3:, None]
    t = (np.arange(steps) / steps)[:, None]
    curve = start + 0.5 * t * (stop - before + t * (2 * before - 5 * start + 4 * stop - after
                                                    + t * (3 * (start - stop) + after - before)))
    curve = curve.reshape(-1, 2)
    return curve if closed else np.vstack([curve, p[-2:-1]])


def mirror(right_half: list) -> list:
    """A closed outline from its right half, whose points go from top to bottom."""
    return list(right_half) + [(-x, y) for x, y in reversed(right_half) if x > 1e-6]


def ellipse(x: float, y: float, rx: float, ry: float, tilt: float = 0.0, steps: int = 28) -> np.ndarray:
    """The outline of an ellipse turned by ``tilt`` radians."""
    t = np.arange(steps) * (2 * np.pi / steps)
    u, v = rx * np.cos(t), ry * np.sin(t)
    return np.stack([x + u * np.cos(tilt) - v * np.sin(tilt), y + u * np.sin(tilt) + v * np.cos(tilt)], axis=1)


def fill(layer: np.ndarray, points: ArrayLike, colour: ArrayLike) -> None:
    """Fill an outline with an opaque colour."""
    cv2.fillPoly(layer, [_fixed(points)], _opaque(colour), cv2.LINE_AA, _SHIFT)


def stroke(layer: np.ndarray, points: ArrayLike, colour: ArrayLike, width: float) -> None:
    """Draw an open line ``width`` units wide (at least a pixel)."""
    cv2.polylines(layer, [_fixed(points)], False, _opaque(colour), max(1, round(width * SCALE)), cv2.LINE_AA, _SHIFT)


def mask_of(points: ArrayLike, blur: float = 0.0) -> np.ndarray:
    """Coverage of an outline in 0..1, float32 ``(SIZE, SIZE)``, its edge softened by ``blur`` units."""
    drawn = np.zeros((SIZE, SIZE), np.uint8)
    cv2.fillPoly(drawn, [_fixed(points)], 255, cv2.LINE_AA, _SHIFT)
    mask = drawn.astype(np.float32) / 255
    return cv2.GaussianBlur(mask, (0, 0), blur * SCALE) if blur else mask


def _band(mask: np.ndarray) -> slice:
    """The rows in which the mask ``(SIZE, SIZE)`` is not all zero."""
    rows = np.flatnonzero(mask.any(axis=1))
    return slice(rows[0], rows[-1] + 1) if len(rows) else slice(0)


def tint(layer: np.ndarray, mask: np.ndarray, colour: ArrayLike) -> None:
    """Mix ``colour`` into the opaque parts of the layer, by ``mask`` in 0..1; transparent parts stay transparent."""
    band = _band(mask > 0.004)
    below, weight = layer[band], mask[band, :, None]
    target = np.asarray(colour, np.float32) * (below[..., 3:] / np.float32(255))
    below[..., :3] = np.clip(below[..., :3] * (1 - weight) + target * weight + 0.5, 0, 255)


def mix(layer: np.ndarray, other: np.ndarray, weight: np.ndarray) -> None:
    """Blend ``other`` into ``layer``, in place, by ``weight``, float32 ``(SIZE, SIZE)`` in 0..1."""
    band = _band(weight)
    below = layer[band]
    below[:] = below + weight[band, :, None] * (other[band].astype(np.float32) - below) + np.float32(0.5)


def over(layer: np.ndarray, upper: np.ndarray) -> None:
    """Put the layer ``upper`` on ``layer``, in place."""
    band = _band(upper[..., 3])
    left = 255 - upper[band, :, 3:].astype(np.uint16)
    layer[band] = upper[band] + ((layer[band] * left + 127) // 255).astype(np.uint8)
