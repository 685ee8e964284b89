# SPDX-License-Identifier: Apache-2.0
"""Contact sheets: many images in rows, each with a line of text below it."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from recognition.io.files import write_whole

TILE, GAP, LINE = 112, 6, 16  # pixels: an image, the space between two, a line of text
_WHITE, _INK = 255, (61, 54, 48)
_FONT_SCALE = 0.36


def draw_sheet(path: Path, images: Sequence[np.ndarray], captions: Sequence[str], columns: int = 8,
               title: str = "") -> None:
    """Write a .png of images, uint8 ``(H, W, 3)`` RGB of any size, with captions that are cut to an image's width."""
    rows = max(1, -(-len(images) // columns))
    top = GAP + (LINE + GAP if title else 0)
    sheet = np.full((top + rows * (TILE + LINE + GAP), GAP + columns * (TILE + GAP), 3), _WHITE, np.uint8)
    if title:
        _write(sheet, title, GAP, GAP + LINE - 4, sheet.shape[1] - 2 * GAP)
    for number, (image, caption) in enumerate(zip(images, captions)):
        y = top + number // columns * (TILE + LINE + GAP)
        x = GAP + number % columns * (TILE + GAP)
        height, width = image.shape[:2]
        scale = TILE / max(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
        sheet[y : y + size[1], x : x + size[0]] = cv2.cvtColor(small, cv2.COLOR_RGB2BGR)
        _write(sheet, caption, x, y + TILE + LINE - 4, TILE)
    write_whole(path, cv2.imencode(".png", sheet)[1].tobytes())


def _write(sheet: np.ndarray, text: str, x: int, y: int, width: int) -> None:
    """Write a text of at most ``width`` pixels. OpenCV has ASCII letters alone. A long text loses its start, as paths
    differ at their ends."""
    shown = text.encode("ascii", "replace").decode()
    while shown and cv2.getTextSize(shown, cv2.FONT_HERSHEY_SIMPLEX, _FONT_SCALE, 1)[0][0] > width:
        shown = shown[1:]
    cv2.putText(sheet, shown, (x, y), cv2.FONT_HERSHEY_SIMPLEX, _FONT_SCALE, _INK, 1, cv2.LINE_AA)
