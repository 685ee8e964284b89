# SPDX-License-Identifier: Apache-2.0
"""The recipes' augmentations, in this order: mirror; a mask, fewer pixels, blur, other colours, grey; recompression,
colour jitter, cutoff.

Every choice is read from the image's own row of ``order.uniforms``: in an epoch an image looks the same for any batch
size, devices and threads. The recipes keep jittered pixels as floats, which may leave 0..255; here they are rounded and
clipped to uint8.
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import permutations

import cv2
import numpy as np

from recognition.data import degrade

JITTER = 0.125  # brightness, contrast and saturation are scaled by a factor between 1 - JITTER and 1 + JITTER
NO_KEY = -1  # of an image that is of no set
_LUMA = (0.299, 0.587, 0.114)  # of red, green, blue; their sum is 1
_JITTER_ORDERS = tuple(permutations(("brightness", "contrast", "saturation")))


@dataclass(frozen=True)
class Augmentation:
    """Callable ``(image uint8 (H, W, 3) RGB, NUM_UNIFORMS numbers in [0, 1), its key) -> image``. It may write into
    ``image``.

    mirror: left and right change places in half of the images (``data_rand_mirror``).
    cutoff: in half of the images a square of this side in pixels, around a random pixel, becomes 128 (``data_cutoff``);
        0 and 1 do nothing, and an odd side loses a pixel, as in the recipes.
    color: 1 jitters brightness, contrast and saturation by up to 12.5 % each, in random order; 2 and above
        also recompresses half of the images as JPEG of quality 2 to 20 before it (``data_color``).
    mask, resize, blur, hsv, grey: the shares of images that :mod:`recognition.data.degrade` makes worse
        (``data_mask_prob``, ``data_resize_prob``, ...).
    landmarks: by key, float16 ``(K, 5, 2)``: where masks lie; None, or NaN: where the template has them.
    """

    NUM_UNIFORMS = 22

    mirror: bool = True
    cutoff: int = 0
    color: int = 0
    mask: float = 0
    resize: float = 0
    blur: float = 0
    hsv: float = 0
    grey: float = 0
    landmarks: np.ndarray | None = field(default=None, compare=False)

    def __call__(self, image: np.ndarray, uniforms: Sequence[float], key: int = NO_KEY) -> np.ndarray:
        # Each choice has its own column: switching one on or off does not change the others.
        mirror, compress, quality, order, brightness, contrast, saturation, cut, row, column = uniforms[:10]
        if self.mirror and mirror < 0.5:
            image = cv2.flip(image, 1)
        if self.mask or self.resize or self.blur or self.hsv or self.grey:
            image = self._degrade(image, uniforms[10:], key, self.mirror and mirror < 0.5)
        if self.color > 1 and compress < 0.5:
            image = recompress(image, 2 + int(19 * quality))
        if self.color > 0:
            drawn = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
            names = _JITTER_ORDERS[int(6 * order)]
            image = jitter(image, [(name, 1 + JITTER * (2 * drawn[name] - 1)) for name in names])
        if self.cutoff > 0 and cut < 0.5:
            height, width = image.shape[:2]
            y, x, half = int(height * row), int(width * column), self.cutoff // 2
            image[max(0, y - half):y + half, max(0, x - half):x + half] = 128
        return image

    def _degrade(self, image: np.ndarray, uniforms: Sequence[float], key: int, flipped: bool) -> np.ndarray:
        masked, colour, right, down, shrunk, side, blurred, window, turned, hue, stretch, greyed = uniforms
        if masked < self.mask:
            image = degrade.mask_face(image, colour, (right, down), self._landmarks(key, flipped, image.shape[1]))
        if shrunk < self.resize:
            image = degrade.down_up(image, side)
        if blurred < self.blur:
            image = degrade.blur(image, window)
        if turned < self.hsv:
            image = degrade.turn_colours(image, hue, stretch)
        if greyed < self.grey:
            image = degrade.grey(image)
        return image


    def _landmarks(self, key: int, flipped: bool, width: int) -> np.ndarray | None:
        """The landmarks of an image, float64 ``(5, 2)``, None where they are not known."""
        if self.landmarks is None or not 0 <= key < len(self.landmarks):
            return None
        points = self.landmarks[key].astype(np.float64)
        if not np.isfinite(points).all():
            return None
        return degrade.mirrored(points, width) if flipped else points


def recompress(image: np.ndarray, quality: int) -> np.ndarray:
    """Encode ``image`` as JPEG of ``quality`` (1 to 100) and decode it again."""
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.cvtColor(cv2.imdecode(encoded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def jitter(image: np.ndarray, steps: Iterable[tuple[str, float]]) -> np.ndarray:
    """Apply each (name, factor) in turn to uint8 ``(H, W, 3)`` RGB.

    brightness scales the pixels, contrast their distance from the image's mean luma, saturation their distance from
    their own luma. Every step maps a pixel p to a p + b luma(p) + c, and so does their product: one pass is enough.
    """
    mean_luma = float(np.dot(_LUMA, cv2.mean(image)[:3]))
    a, b, c = 1.0, 0.0, 0.0
    for name, factor in steps:
        if name == "brightness":
            a, b, c = factor * a, factor * b, factor * c
        elif name == "contrast":
            a, b, c = factor * a, factor * b, factor * c + (1 - factor) * ((a + b) * mean_luma + c)
        else:
            a, b = factor * a, factor * b + (1 - factor) * (a + b)
    red, green, blue = (b * weight for weight in _LUMA)
    rows = [[a + red, green, blue, c], [red, a + green, blue, c], [red, green, a + blue, c]]
    return cv2.transform(image, np.array(rows))
