# SPDX-License-Identifier: Apache-2.0
"""A detector of faces and their five landmarks: YuNet, through OpenCV, with a model file of the user.

YuNet: Wu, Peng and Yu, "YuNet: A Tiny Millisecond-level Face Detector", 2023. OpenCV's model zoo publishes the file
(``face_detection_yunet_*.onnx``); it is not part of this project.
"""
from __future__ import annotations

import threading
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from recognition.errors import UserError

RULES = ("main", "largest", "surest")
_EXPECTED = "expected a YuNet model that cv2.FaceDetectorYN reads, such as face_detection_yunet_2023mar.onnx"
_NMS_OVERLAP, _MOST_BOXES = 0.3, 5000  # OpenCV's defaults; boxes that overlap more are one face


class Found(NamedTuple):
    """The N faces of an image, in its pixels."""

    boxes: np.ndarray  # float32 (N, 4): left, top, width, height
    landmarks: np.ndarray  # float32 (N, 5, 2): x and y; the left eye of the image first
    scores: np.ndarray  # float32 (N,), 0 to 1


class FaceDetector:
    """A callable from uint8 ``(H, W, 3)`` RGB to :class:`Found`, for any thread: each has a network of its own."""

    def __init__(self, model: Path, score: float = 0.6, longest_side: int = 640) -> None:
        """:param score: the least score of a face
        :param longest_side: larger images are scaled to this side in pixels: YuNet finds faces of 10 to 300 pixels
        :raises UserError: if OpenCV cannot read the model, or if it is another network
        """
        if not model.is_file():
            raise UserError(f"{model}: not found, {_EXPECTED}")
        self._model, self._score, self._longest = model, score, longest_side
        self._local = threading.local()
        try:
            self._detect(np.zeros((64, 96, 3), np.uint8))
        except cv2.error as error:
            raise UserError(f"{model}: {' '.join((error.err or str(error)).split())[:120]}; {_EXPECTED}") from error

    def __call__(self, image: np.ndarray) -> Found:
        height, width = image.shape[:2]
        scale = min(1.0, self._longest / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        looked_at = image if scale == 1 else cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        rows = self._detect(cv2.cvtColor(looked_at, cv2.COLOR_RGB2BGR))
        back = np.array([width / size[0], height / size[1]], np.float32)
        return Found(rows[:, :4] * np.tile(back, 2), rows[:, 4:14].reshape(-1, 5, 2) * back, rows[:, 14])

    def _detect(self, image: np.ndarray) -> np.ndarray:
        """The boxes, landmarks and scores, float32 ``(N, 15)``, of an image in BGR."""
        size = (image.shape[1], image.shape[0])
        detector = getattr(self._local, "detector", None)
        if detector is None:
            detector = cv2.FaceDetectorYN.create(str(self._model), "", size, self._score, _NMS_OVERLAP,
                                                  _MOST_BOXES)
            self._local.detector = detector
        detector.setInputSize(size)
        rows = detector.detect(image)[1]
        return np.empty((0, 15), np.float32) if rows is None else rows


def choose_face(found: Found, height: int, width: int, rule: str = "main") -> int | None:
    """The number of the face that an image shows; None if there is none.

    The rule is ``largest`` box, ``surest`` score, or ``main``: the largest difference between the area and twice the
    squared distance of the box's centre from that of the image, as in the recipes.
    """
    if not len(found.scores):
        return None
    areas = found.boxes[:, 2] * found.boxes[:, 3]
    away = found.boxes[:, :2] + found.boxes[:, 2:] / 2 - np.array([width, height]) / 2
    by_rule = {"main": areas - 2 * np.square(away).sum(axis=1), "largest": areas, "surest": found.scores}
    return int(np.argmax(by_rule[rule]))
