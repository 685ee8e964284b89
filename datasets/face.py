# SPDX-License-Identifier: Apache-2.0
"""Synthetic persons: the attributes of an identity, and the frontal face that is drawn from them.

They are the same in all images of a person; ``datasets.photo`` takes pictures of them.
"""
from __future__ import annotations

from types import SimpleNamespace

import cv2
import numpy as np

from datasets import canvas as cv

#: range of each attribute of an identity, lengths in face units; values are drawn uniformly and independently
ATTRIBUTES = {
    "skin_tone": (0.0, 1.0), "skin_warmth": (-1.0, 1.0), "hair_tone": (0.0, 1.0), "hair_warmth": (-1.0, 1.0),
    "face_width": (0.66, 0.97), "cheek": (0.88, 1.03), "jaw": (0.55, 1.0), "chin_width": (0.12, 0.46),
    "chin": (1.06, 1.46), "ear_size": (0.7, 1.5), "ear_out": (-0.04, 0.10),
    "eye_spacing": (0.28, 0.46), "eye_width": (0.12, 0.23), "eye_height": (0.05, 0.125), "eye_tilt": (-0.24, 0.24),
    "iris_tone": (0.0, 1.0), "iris_size": (0.06, 0.085), "lash": (0.012, 0.04), "lid": (0.03, 0.09),
    "brow_height": (0.15, 0.34), "brow_width": (0.18, 0.32), "brow_thick": (0.02, 0.11), "brow_arch": (-0.03, 0.13),
    "brow_tilt": (-0.09, 0.09), "brow_fade": (0.0, 0.5),
    "nose_length": (0.34, 0.64), "nose_width": (0.10, 0.27), "nose_bridge": (0.05, 0.11), "nose_height": (0.10, 0.20),
    "mouth_gap": (0.19, 0.34), "mouth_width": (0.18, 0.43), "upper_lip": (0.02, 0.10), "lower_lip": (0.03, 0.13),
    "lip_colour": (0.0, 1.3), "cupid": (0.0, 0.5),
    "hairline": (-0.98, -0.50), "parting": (-0.75, 0.75), "part_height": (0.0, 0.22), "temple": (0.76, 1.0),
    "hair_volume": (0.03, 0.42), "hair_side": (0.0, 0.26), "hair_length": (-0.45, 1.75), "hair_wave": (0.0, 0.07),
    "beard": (-1.2, 1.0), "moustache": (-1.2, 1.0), "freckles": (-1.0, 1.0), "age": (-0.6, 1.0), "blush": (0.0, 0.5),
    "socket": (0.0, 0.45),
}
_SKIN = ((242, 212, 192), (228, 188, 158), (214, 162, 122), (166, 110, 74), (112, 70, 46), (70, 44, 32))
_HAIR = ((24, 20, 22), (52, 34, 26), (92, 58, 34), (138, 68, 34), (176, 120, 60), (226, 196, 132), (206, 204, 202))
_IRIS = ((52, 32, 20), (104, 66, 34), (120, 112, 56), (70, 118, 74), (72, 124, 160), (140, 164, 184))


def _palette(stops: tuple, position: float) -> np.ndarray:
    """The colour at ``position`` in 0..1 along ``stops``."""
    table = np.asarray(stops, np.float64)
    where = position * (len(table) - 1)
    return np.array([np.interp(where, range(len(table)), channel) for channel in table.T])


class Face:
    """One identity: its attributes, static layers, and the relief of its head.

    ``height`` is float32 ``(SIZE, SIZE)``, towards the viewer, in face units; ``normals`` float32 ``(SIZE, SIZE, 3)``.
    """

    def __init__(self, rng: np.random.Generator):
        self.a = a = SimpleNamespace(**{name: rng.uniform(*ends) for name, ends in ATTRIBUTES.items()})
        self.skin = np.clip(_palette(_SKIN, a.skin_tone) + a.skin_warmth * np.array([6, 0, -12]), 10, 255)
        self.hair = np.clip(_palette(_HAIR, a.hair_tone) * (1 + a.hair_warmth * np.array([.15, 0, -.15])), 5, 255)
        self.iris = _palette(_IRIS, a.iris_tone)
        self.lips = self.skin * (1 - 0.45 * a.lip_colour) + np.array([190, 60, 70]) * 0.45 * a.lip_colour
        self.mouth_y = a.nose_length + a.mouth_gap
        self.strands = self._strands(rng)
        self.outline = self._outline()
        self.bare = self._draw_back()  # everything except eyes, brows, mouth and the hair in front of the face
        cv.over(self.bare, self._draw_head(rng))
        self.front_hair = self._draw_front_hair()
        self.height = self._relief()
        slope_y, slope_x = np.gradient(self.height, 1 / cv.SCALE)
        normals = np.dstack([-slope_x, -slope_y, np.ones_like(slope_x)])
        self.normals = normals / np.linalg.norm(normals, axis=2, keepdims=True)

    # -- what never changes ---------------------------------------------------------------------------------------

    def _strands(self, rng: np.random.Generator) -> np.ndarray:
        """Brightness of hair strands, float32 ``(SIZE, SIZE, 1)`` about 1."""
        noise = rng.normal(1.0, 0.16, (7, 64)).astype(np.float32)
        return cv2.resize(noise, (cv.SIZE, cv.SIZE), interpolation=cv2.INTER_CUBIC)[..., None]

    def _hair_layer(self, points: np.ndarray) -> np.ndarray:
        layer = cv.new_layer()
        cv.fill(layer, points, self.hair)
        layer[..., :3] = np.clip(layer[..., :3] * self.strands, 0, layer[..., 3:])
        return layer

    def _outline(self) -> np.ndarray:
        a, w = self.a, self.a.face_width
        return cv.spline(cv.mirror([
            (0, -1.06), (0.55 * w, -0.95), (0.92 * w, -0.5), (w, 0.0), (w * a.cheek, 0.45),
            (w * a.jaw * 0.95, a.chin * 0.72), (a.chin_width, a.chin - 0.04), (0, a.chin)]))

    def _crown(self) -> list:
        """The hair's outer edge, from the middle of the top to above the right ear."""
        a, w = self.a, self.a.face_width
        return [(0, -1.08 - a.hair_volume), (0.6 * w, -0.98 - 0.9 * a.hair_volume),
                (w + 0.6 * a.hair_side, -0.6 - 0.3 * a.hair_volume)]

    def _draw_back(self) -> np.ndarray:
        a, w = self.a, self.a.face_width
        side = w + a.hair_side
        wave = a.hair_wave
        fall = [(side + (wave if i % 2 else -wave), y) for i, y in enumerate(np.arange(-0.2, a.hair_length, 0.28))]
        inner = [(0.5 * w, a.hair_length + 0.05), (0, min(a.hair_length, 0.0))]
        back = self._hair_layer(cv.spline(cv.mirror(self._crown() + fall + inner)))
        back[..., :3] = (back[..., :3] * 0.72).astype(np.uint8)
        neck = 0.52 * w + 0.1
        cv.fill(back, [(-neck, 0.8), (neck, 0.8), (neck + 0.02, 1.5), (1.3, 1.9), (-1.3, 1.9), (-neck - 0.02, 1.5)],
                self.skin * 0.82)
        return back

    def _draw_head(self, rng: np.random.Generator) -> np.ndarray:
        a, skin = self.a, self.skin
        head = cv.new_layer()
        for side in (-1, 1):
            ear = side * (a.face_width + a.ear_out)
            cv.fill(head, cv.ellipse(ear, 0.16, 0.11 * a.ear_size, 0.22 * a.ear_size, side * 0.2), skin * 0.92)
            cv.stroke(head, cv.ellipse(ear, 0.15, 0.06 * a.ear_size, 0.14 * a.ear_size)[4:22], skin * 0.72, 0.03)
        cv.fill(head, self.outline, skin)
        for side in (-1, 1):
            x = side * a.eye_spacing
            cv.tint(head, cv.mask_of(cv.ellipse(x, -0.05, 0.26, 0.20), 0.07) * a.socket, skin * 0.6)
            cheek = cv.ellipse(side * 0.48, 0.5, 0.2, 0.16)
            cv.tint(head, cv.mask_of(cheek, 0.1) * a.blush, skin * 0.55 + np.array([110, 30, 35]))
        self._draw_nose(head)
        self._draw_marks(head, rng)
        self._draw_beard(head)
        return head

    def _draw_nose(self, head: np.ndarray) -> None:
        a, skin = self.a, self.skin
        tip = a.nose_length
        for side in (-1, 1):
            flank = [(side * a.nose_bridge, -0.1), (side * a.nose_bridge * 1.1, 0.5 * tip),
                     (side * a.nose_width * 0.9, tip - 0.06), (side * 0.6 * a.nose_width, tip), (0, 0.5 * tip)]
            cv.tint(head, cv.mask_of(flank, 0.035) * 0.30, skin * 0.55)
            wing = [(side * a.nose_width * 0.8, tip - 0.13), (side * a.nose_width, tip - 0.04),
                    (side * a.nose_width * 0.8, tip + 0.02)]
            cv.stroke(head, cv.spline(wing, closed=False), skin * 0.62, 0.025)
            nostril = cv.ellipse(side * a.nose_width * 0.48, tip, a.nose_width * 0.22, 0.026, side * -0.2)
            cv.fill(head, nostril, skin * 0.3)
        cv.tint(head, cv.mask_of(cv.ellipse(0, 0.5 * tip, 0.035, 0.5 * tip), 0.03) * 0.25, skin * 0.3 + 190)
        cv.tint(head, cv.mask_of(cv.ellipse(0, tip + 0.07, 0.13, 0.05), 0.03) * 0.3, skin * 0.6)

    def _draw_marks(self, head: np.ndarray, rng: np.random.Generator) -> None:
        """Freckles, moles and lines of age."""
        a, skin = self.a, self.skin
        for _ in range(round(max(a.freckles, 0) * 60)):
            x, y = np.clip(rng.normal((0, 0.32), (0.32, 0.15)), (-0.6, -0.1), (0.6, 0.8))
            cv.fill(head, cv.ellipse(x, y, 0.012, 0.012, steps=8), skin * rng.uniform(0.66, 0.85))
        for _ in range(rng.poisson(1.5)):
            x, y, r = rng.uniform(-0.5, 0.5), rng.uniform(-0.5, 0.95), rng.uniform(0.016, 0.042)
            cv.fill(head, cv.ellipse(x, y, r, r, steps=12), skin * 0.3)
        if a.age > 0:
            lines = [[(-0.4, y), (0, y - 0.04), (0.4, y)] for y in (-0.62, -0.5)]
            for s in (-1, 1):
                lines += [[(s * (a.nose_width + 0.04), a.nose_length - 0.05),
                           (s * (a.mouth_width + 0.05), self.mouth_y - 0.1),
                           (s * (a.mouth_width + 0.07), self.mouth_y + 0.08)],
                          [(s * (a.eye_spacing + x), y) for x, y in ((-0.14, 0.13), (0, 0.18), (0.15, 0.13))]]
            for line in lines:
                cv.stroke(head, cv.spline(line, closed=False), skin * (1 - 0.4 * a.age), 0.02)

    def _draw_beard(self, head: np.ndarray) -> None:
        a = self.a
        stubble = 0.75 + 0.5 * (self.strands[..., 0] - 1) / 0.16 * 0.3
        face = cv.mask_of(self.outline)
        if a.beard > 0:
            w, y = a.face_width, self.mouth_y
            inner = [(0, y + 0.17), (a.mouth_width + 0.08, y + 0.05), (0.8 * w, 0.4), (1.3 * w, 0.15)]
            area = cv.mask_of(cv.mirror([*inner, (1.3 * w, 2.0), (0, 2.0)]), 0.05)
            cv.tint(head, np.clip(area * face * stubble * (0.25 + 0.75 * a.beard), 0, 1), self.hair * 0.9)
        if a.moustache > 0:
            tip, y = a.nose_length + 0.06, self.mouth_y
            area = cv.mask_of(cv.mirror([(0, tip), (a.mouth_width * 0.7, tip + 0.05), (a.mouth_width + 0.08, y + 0.08),
                                         (a.mouth_width * 0.7, y), (0, y - 0.04)]), 0.02)
            cv.tint(head, np.clip(area * stubble * (0.3 + 0.7 * a.moustache), 0, 1), self.hair * 0.9)

    def _draw_front_hair(self) -> np.ndarray:
        a, w = self.a, self.a.face_width
        part, line = a.parting * 0.6 * w, a.hairline
        side = [(w + 0.04, -0.02), (w * 0.95, -0.12), (a.temple * w * 0.93, -0.38)]
        edge = [*side, (max(part + 0.3, 0.55 * w), line + 0.12), (part + 0.1, line), (part, line - a.part_height),
                (part - 0.1, line), (min(part - 0.3, -0.55 * w), line + 0.12), *((-x, y) for x, y in reversed(side))]
        crown = self._crown()
        top = [(-x, y) for x, y in reversed(crown)] + crown[1:]
        return self._hair_layer(cv.spline(edge + top, steps=5))

    def _relief(self) -> np.ndarray:
        a = self.a
        r2 = (cv.X / (1.15 * a.face_width)) ** 2 + ((cv.Y - 0.15) / 1.6) ** 2
        height = 0.75 / (1 + r2 * r2 * 0.6 + r2 * 0.5) - 0.45
        along = np.clip((cv.Y + 0.1) / (a.nose_length + 0.1), 0, 1)
        below = np.exp(-(np.maximum(cv.Y - a.nose_length, 0) / 0.07) ** 2)
        width = 0.06 + 0.75 * a.nose_width * along
        height += a.nose_height * along ** 1.3 * below * np.exp(-(cv.X / width) ** 2)
        sockets = sum(np.exp(-((cv.X - s * a.eye_spacing) / 0.2) ** 2 - (cv.Y / 0.15) ** 2) for s in (-1, 1))
        lips = np.exp(-(cv.X / a.mouth_width) ** 4 - ((cv.Y - self.mouth_y) / 0.12) ** 2)
        chin = np.exp(-(cv.X / 0.25) ** 2 - ((cv.Y - a.chin + 0.15) / 0.15) ** 2)
        height += -0.07 * sockets + 0.05 * lips + 0.06 * chin
        return cv2.GaussianBlur(height.astype(np.float32), (0, 0), 2.0)

    # -- what an expression changes ---------------------------------------------------------------------------------

    def draw(self, smile: float, open_mouth: float, open_eyes: float, brows: float, gaze: float) -> np.ndarray:
        """The frontal face with an expression, as a layer.

        ``smile`` -1..1, ``open_mouth`` 0..1, ``open_eyes`` 0..1.2, ``brows`` (raised) -1..1, ``gaze`` -1 (left)..1.
        """
        layer = self.bare.copy()
        self._draw_mouth(layer, smile, open_mouth)
        self._draw_eyes(layer, open_eyes, gaze)
        for side in (-1, 1):
            self._draw_brow(layer, side, brows)
        cv.over(layer, self.front_hair)
        return layer

    def _draw_mouth(self, layer: np.ndarray, smile: float, opened: float) -> None:
        a, lips = self.a, self.lips
        w, y = a.mouth_width * (1 + 0.18 * smile - 0.12 * opened), self.mouth_y
        corner, gap = y - 0.07 * smile, 0.16 * opened
        peak = a.upper_lip * (1 - 0.3 * max(smile, 0))
        low = a.lower_lip * (1 - 0.2 * max(smile, 0))
        if gap > 0.01:
            inside = cv.spline([(-w * .95, corner), (0, y - 0.01), (w * .95, corner), (0, y + gap + 0.02)], steps=8)
            cv.fill(layer, inside, (60, 20, 22))
            teeth = [(-0.6 * w, corner + 0.06 * gap), (0.6 * w, corner + 0.06 * gap),
                     (0.5 * w, y + 0.4 * gap), (-0.5 * w, y + 0.4 * gap)]
            cv.fill(layer, teeth, (238, 234, 224))
        upper = [(-w, corner), (-0.22 * w, y - peak), (0, y - peak * (1 - a.cupid)), (0.22 * w, y - peak), (w, corner),
                 (0, y + 0.005)]
        lower = [(-w, corner), (0, y + gap), (w, corner), (0.5 * w, y + gap + low * 0.8), (0, y + gap + low),
                 (-0.5 * w, y + gap + low * 0.8)]
        cv.fill(layer, cv.spline(lower, steps=4), lips)
        cv.fill(layer, cv.spline(upper, steps=4), lips * 0.88)
        if gap <= 0.01:
            cv.stroke(layer, cv.spline([(-w, corner), (0, y + 0.005), (w, corner)], closed=False), lips * 0.45, 0.02)

    def _draw_eyes(self, layer: np.ndarray, opened: float, gaze: float) -> None:
        a, w = self.a, self.a.eye_width
        up, down = a.eye_height * opened * 1.25, a.eye_height * (0.45 + 0.35 * opened)
        eyes, inside = layer.copy(), np.zeros((cv.SIZE, cv.SIZE), np.float32)
        lids = []
        for side in (-1, 1):
            x, rise = side * a.eye_spacing, side * a.eye_tilt * w  # eye_tilt > 0: the outer corner is lower
            lid = cv.spline([(x - w, -rise), (x - 0.5 * w, -up * 0.8), (x, -up), (x + 0.5 * w, -up * 0.8),
                             (x + w, rise)], closed=False)
            bottom = cv.spline([(x + w, rise), (x, down), (x - w, -rise)], closed=False)
            lids.append((lid, bottom))
            shape = np.vstack([lid, bottom])
            inside += cv.mask_of(shape)
            cv.fill(eyes, shape, (236, 232, 228))
            x += gaze * 0.3 * w
            for radius, colour in ((1.0, self.iris * 0.55), (0.84, self.iris), (0.42, np.array([12, 10, 10]))):
                cv.fill(eyes, cv.ellipse(x, 0, a.iris_size * radius, a.iris_size * radius, steps=20), colour)
            cv.fill(eyes, cv.ellipse(x + 0.025, -0.03, 0.014, 0.014, steps=8), (250, 250, 250))
        cv.mix(layer, eyes, inside)
        for lid, bottom in lids:
            cv.stroke(layer, lid, self.skin * 0.18, a.lash)
            cv.stroke(layer, bottom, self.skin * 0.55, 0.018)
            cv.stroke(layer, lid[3:-3] - (0, a.lid), self.skin * 0.62, 0.018)

    def _draw_brow(self, layer: np.ndarray, side: int, raised: float) -> None:
        a = self.a
        y, w, half = -a.brow_height - 0.06 * raised, a.brow_width, a.brow_thick / 2
        inner, outer = a.eye_spacing - w * 0.9, a.eye_spacing + w
        middle = 0.5 * (inner + outer) + 0.05
        lift = a.brow_tilt + 0.03 * raised
        ridge = [(inner, y + lift - half), (middle, y - a.brow_arch - half), (outer, y - lift + 0.02)]
        under = [(outer, y - lift + 0.03), (middle, y - a.brow_arch + half), (inner, y + lift + half)]
        points = np.vstack([cv.spline(ridge, False), cv.spline(under, False)]) * (side, 1)
        colour = self.hair * 0.7 * (1 - a.brow_fade) + self.skin * 0.8 * a.brow_fade
        cv.fill(layer, points, np.minimum(colour, self.skin * 0.85))
