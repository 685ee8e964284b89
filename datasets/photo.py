# SPDX-License-Identifier: Apache-2.0
"""Pictures of synthetic persons. Expression, wear, pose, light, background, occlusion, blur and noise vary by image."""
from __future__ import annotations

import cv2
import numpy as np

from datasets import canvas as cv
from datasets.face import Face

SIZE = 112             # pixels
SCALE = 41.0           # pixels per face unit, before the jitter
CENTRE = (56.0, 50.0)  # place of the point between the eyes, in pixels
_u, _v = np.meshgrid(np.arange(SIZE, dtype=np.float32) + 0.5, np.arange(SIZE, dtype=np.float32) + 0.5)


def photograph(face: Face, rng: np.random.Generator) -> np.ndarray:
    """One image of the person, uint8 ``(112, 112, 3)`` RGB. Everything random in it comes from ``rng``."""
    layer = _dressed(face, rng)
    where = _pose(face, rng)
    warped = cv2.remap(layer, *where, cv2.INTER_LINEAR).astype(np.float32)
    person, coverage = warped[..., :3], warped[..., 3:] / 255
    person = person * _shading(face, where, rng)
    image = person + _background(rng) * (1 - coverage)
    return _developed(_occluded(image, rng), rng)


def _dressed(face: Face, rng: np.random.Generator) -> np.ndarray:
    """The frontal face with an expression, clothes, and in some images glasses or a cap."""
    eyes = 0.12 if rng.random() < 0.04 else rng.uniform(0.75, 1.1)
    opened = max(0.0, rng.uniform(-1.2, 1.0))
    layer = face.draw(rng.uniform(-0.7, 1.0), opened, eyes, rng.uniform(-0.8, 1.0), rng.uniform(-1, 1))
    cloth, collar = rng.uniform(20, 235, 3), rng.uniform(0.05, 0.5)
    cv.fill(layer, [(-1.8, 1.75), (-0.6, 1.42), (-collar, 1.45), (0, 1.45 + collar), (collar, 1.45), (0.6, 1.42),
                    (1.8, 1.75), (1.8, 2.0), (-1.8, 2.0)], cloth)
    wear = rng.random()
    if wear < 0.18:
        _draw_glasses(layer, face, rng, dark=wear < 0.02)
    elif wear < 0.195:
        w, brim = face.a.face_width + 0.12, rng.uniform(-0.72, -0.55)
        colour = rng.uniform(20, 230, 3)
        cap = [(-w, brim), (-0.85 * w, -1.15), (0, -1.5), (0.85 * w, -1.15), (w, brim)]
        peak = [(-w, brim - 0.1), (0, brim - 0.2), (w, brim - 0.1), (0.9 * w, brim + 0.06), (0, brim + 0.02),
                (-0.9 * w, brim + 0.06)]
        cv.fill(layer, cv.spline(cap, closed=False), colour)
        cv.fill(layer, cv.spline(peak), colour * 0.7)
    return layer


def _draw_glasses(layer: np.ndarray, face: Face, rng: np.random.Generator, dark: bool) -> None:
    x, rx, ry = face.a.eye_spacing, rng.uniform(0.22, 0.27), rng.uniform(0.15, 0.24)
    frame, width, power = rng.uniform(10, 120, 3), rng.uniform(0.018, 0.05), rng.uniform(0.45, 1.0)
    t = np.linspace(0, 2 * np.pi, 33)
    for side in (-1, 1):
        rim = np.stack([side * x + rx * np.sign(np.cos(t)) * np.abs(np.cos(t)) ** power,
                        0.03 + ry * np.sign(np.sin(t)) * np.abs(np.sin(t)) ** power], axis=1)
        cv.tint(layer, cv.mask_of(rim) * (0.88 if dark else 0.08), (20, 20, 24) if dark else (225, 235, 245))
        cv.stroke(layer, rim, frame, width)
        cv.stroke(layer, [(side * (x + rx), -0.02), (side * (face.a.face_width + 0.02), -0.06)], frame, width)
    cv.stroke(layer, cv.spline([(-x + rx, 0), (0, -0.05), (x - rx, 0)], False), frame, width)


def _pose(face: Face, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The layer coordinates of every output pixel, two float32 ``(112, 112)``: the relief turned in space, from afar.

    The projection is orthographic: u = x cos(yaw) + z sin(yaw), v = y cos(pitch) - z sin(pitch). It is solved for (x,
    y) by fixed-point steps, which converge since the relief's slopes are well below 1 / tan(yaw).
    """
    yaw, pitch = np.clip(rng.normal(0, (0.24, 0.13)), (-0.52, -0.3), (0.52, 0.3))
    roll, zoom = rng.normal(0, 0.11), SCALE * rng.uniform(0.87, 1.13)
    du, dv = _u - CENTRE[0] - rng.normal(0, 2.7), _v - CENTRE[1] - rng.normal(0, 2.7)
    u = ((np.cos(roll) * du + np.sin(roll) * dv) / zoom).astype(np.float32)
    v = ((np.cos(roll) * dv - np.sin(roll) * du) / zoom).astype(np.float32)
    z = np.float32(0)
    for _ in range(5):
        x = (u - np.float32(np.sin(yaw)) * z) / np.float32(np.cos(yaw))
        y = (v + np.float32(np.sin(pitch)) * z) / np.float32(np.cos(pitch))
        where = ((x - cv.LEFT) * np.float32(cv.SCALE) - 0.5, (y - cv.TOP) * np.float32(cv.SCALE) - 0.5)
        z = cv2.remap(face.height, *where, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return where


def _shading(face: Face, where: tuple[np.ndarray, np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Light on the relief, float32 ``(112, 112, 3)``: a coloured lamp from one side over coloured ambient light."""
    normals = cv2.remap(face.normals, *where, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    lamp = np.array([rng.uniform(-1.5, 1.5), rng.uniform(-1.0, 0.4), 1.0])
    facing = normals @ (lamp / np.linalg.norm(lamp)).astype(np.float32)
    strength = rng.uniform(0.4, 1.1)
    ambient = (1 - 0.75 * strength) * rng.uniform(0.92, 1.08, 3)
    light = strength * rng.uniform(0.92, 1.08, 3) * 1.15
    return (ambient + np.maximum(facing, 0)[..., None] * light).astype(np.float32)


def _background(rng: np.random.Generator) -> np.ndarray:
    """A background out of focus, float32 ``(112, 112, 3)``."""
    side, vivid = int(rng.integers(2, 6)), rng.uniform(0.1, 0.5)
    blotches = (rng.uniform(-60, 315, (side, side, 3)) * vivid + rng.uniform(-60, 315, (side, side, 1)) * (1 - vivid)
                ).astype(np.float32)
    image = cv2.resize(blotches, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    for _ in range(rng.integers(0, 5)):
        (x0, y0), (w, h) = rng.integers(0, SIZE, 2), rng.integers(6, 60, 2)
        cv2.rectangle(image, (int(x0), int(y0)), (int(x0 + w), int(y0 + h)),
                      (rng.uniform(0, 255, 3) * vivid + rng.uniform(0, 255) * (1 - vivid)).tolist(), -1)
    return np.clip(cv2.GaussianBlur(image, (0, 0), rng.uniform(0.5, 3.0)), 0, 255)


def _occluded(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The image, sometimes with a bar or a hand in front of the face."""
    chance = rng.random()
    if chance > 0.08:
        return image
    mask = np.zeros((SIZE, SIZE), np.uint8)
    if chance < 0.04:
        centre, angle = rng.uniform(10, SIZE - 10, 2), rng.uniform(0, np.pi)
        along, across = np.array([np.cos(angle), np.sin(angle)]) * 160, np.array([-np.sin(angle), np.cos(angle)])
        half = across * rng.uniform(3, 6)
        corners = [centre - along - half, centre + along - half, centre + along + half, centre - along + half]
        shapes = [np.array(corners)]
        colour = rng.uniform(0, 255, 3)
    else:
        shapes, colour = _hand(rng), np.array([1.0, 0.76, 0.6]) * rng.uniform(70, 245)
    for shape in shapes:
        cv2.fillPoly(mask, [np.rint(shape * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    weight = (mask.astype(np.float32) / 255)[..., None]
    edge = cv2.GaussianBlur(weight[..., 0], (0, 0), 1.5)[..., None]  # a darker rim, so that it looks solid
    return image * (1 - weight) + weight * (colour * (0.55 + 0.45 * edge)).astype(np.float32)


def _hand(rng: np.random.Generator) -> list[np.ndarray]:
    """The outlines, in pixels, of four fingers and a palm that reach in from below."""
    wrist, lean = np.array([rng.uniform(10, SIZE - 10), SIZE + 14.0]), rng.uniform(-0.6, 0.6)
    turn = np.array([[np.cos(lean), -np.sin(lean)], [np.sin(lean), np.cos(lean)]])
    outlines = [cv.ellipse(0, -14, 15, 17)]
    outlines += [cv.ellipse(-12 + 8 * i, -37 - (4, 9, 8, 2)[i], 3.7, 15, (i - 1.5) * 0.09) for i in range(4)]
    return [outline @ turn.T + wrist for outline in outlines]


def _developed(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Apply the camera's exposure, colour balance and contrast, blur and noise: uint8 ``(112, 112, 3)``."""
    exposure = np.exp(rng.normal(0, 0.11)) * np.exp(rng.normal(0, 0.04, 3))
    image = 280 * np.tanh(image * (exposure / 260).astype(np.float32))  # highlights fade instead of clipping
    contrast = rng.uniform(0.75, 1.1)
    image = (image - 120) * np.float32(contrast) + 120 + np.float32(rng.normal(0, 6))
    if rng.random() < 0.35:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.2))
    image += rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(1.0, 6.0))
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)
