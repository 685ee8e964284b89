# SPDX-License-Identifier: Apache-2.0
"""The aligner of all commands: from image files to aligned faces, by landmarks in a file or by a detector."""
from __future__ import annotations

import argparse
import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.faces.alignment import BASE, MODES, align_with_landmarks
from common.faces.face_detector import RULES, FaceDetector, choose_face
from common.faces.landmark_files import read_landmarks
from common.faces.upright import why_no_face, why_not_in
from recognition.data.images.folder_walk import EXTENSIONS
from recognition.data.images.image_files import read_image
from recognition.errors import UserError, naming


class Aligned(NamedTuple):
    """An aligned face, uint8 ``(size, size, 3)`` RGB, and its landmarks, float ``(5, 2)``."""

    image: np.ndarray
    landmarks: np.ndarray  # in the image that it is taken from
    inside: np.ndarray  # in itself


def without_ending(name: str) -> str:
    """The name of an image as VGGFace2's landmarks have it: without the ending, if that is one of images."""
    base, ending = os.path.splitext(name)
    return base if ending.lower() in EXTENSIONS else name


def _plain(name: str) -> str:
    """A name without what says nothing: ``./a\\b.jpg``, as lists of Windows have it, is ``a/b.jpg``."""
    return os.path.normpath(name.replace("\\", "/"))


class Aligner:
    """A callable from an image's name and path to :class:`Aligned`, for any thread."""

    def __init__(self, landmarks: dict[str, np.ndarray] | None = None, detector: FaceDetector | None = None,
                 size: int = BASE, mode: str = "arcface", rule: str = "main") -> None:
        """:param landmarks: by name of the image; other images are given to ``detector``, if there is one."""
        self.landmarks, self.size = landmarks or {}, size
        self._by_name = {_plain(name): points for name, points in self.landmarks.items()}
        stems = Counter(map(without_ending, self._by_name))
        self._by_stem = {stem: points for name, points in self._by_name.items()
                         if stems[(stem := without_ending(name))] == 1}  # CPython 3.9 asks for the parentheses
        self._detector, self._mode, self._rule = detector, mode, rule

    def __call__(self, name: str, path: Path) -> Aligned:
        """Align the face of an image.

        :raises UserError: if the image cannot be read, no face is found, or the landmarks form no upright face
            or are not in the image.
        """
        points = self._find(name, path)
        if points is None and self._detector is None:
            raise UserError(f"{path}: no landmarks of {name!r} in the file")
        _, image = read_image(path)
        if points is None:
            points = self._detected(path, image)
        if wrong := why_no_face(points) or why_not_in(points, *image.shape[:2]):
            raise UserError(f"{path}: {wrong}")
        with naming(path):
            aligned, inside = align_with_landmarks(image, points, self.size, self._mode)
        return Aligned(aligned, points, inside)

    def _find(self, name: str, path: Path) -> np.ndarray | None:
        plain = _plain(name)
        found = (self.landmarks.get(name), self._by_name.get(plain), self._by_stem.get(without_ending(plain)),
                 self.landmarks.get(str(path.absolute())))
        return next((points for points in found if points is not None), None)

    def _detected(self, path: Path, image: np.ndarray) -> np.ndarray:
        assert self._detector is not None
        found = self._detector(image)
        chosen = choose_face(found, image.shape[0], image.shape[1], self._rule)
        if chosen is None:
            raise UserError(f"{path}: no face found")
        return found.landmarks[chosen]


def add_alignment_flags(parser: argparse.ArgumentParser) -> None:
    """Add ``--landmarks``, ``--detector`` and the flags of the detector."""
    add = parser.add_argument
    add("--landmarks", type=Path, metavar="FILE", help="five landmarks an image: lines 'path x1 y1 ... x5 y5', "
        "perhaps with a label, a box or a score, CelebA's or VGGFace2's file, or InsightFace's .lst with a box and "
        "landmarks; its paths count from the folder of images")
    add("--detector", type=Path, metavar="FILE.onnx", help="a YuNet model of OpenCV's model zoo: finds the landmarks "
        "of images that the file of landmarks has not")
    add("--score", type=float, default=0.6, help="the least score of a face that the detector finds (default 0.6)")
    add("--longest-side", type=int, default=640, metavar="PIXELS", help="larger images are given to the detector in "
        "this size (default 640)")
    add("--face", choices=RULES, default="main", help="of several faces the large and central one (main, the "
        "default), the largest, or that with the highest score (surest)")


def open_aligner(args: argparse.Namespace, size: int, mode: str) -> Aligner:
    """The aligner with the settings of the flags.

    :raises UserError: if a flag or a file is not valid
    """
    if mode not in MODES:
        raise UserError(f"--align-mode: found {mode!r}, expected one of {', '.join(MODES)}")
    detector = open_detector(args)
    landmarks = read_landmarks(args.landmarks).by_name() if args.landmarks else None
    return Aligner(landmarks, detector, size, mode, args.face)


def open_detector(args: argparse.Namespace) -> FaceDetector | None:
    """The detector with the settings of the flags, None without ``--detector``.

    :raises UserError: if a flag or the file is not valid
    """
    if not 0 < args.score < 1:
        raise UserError(f"--score: found {args.score:g}, expected a number between 0 and 1")
    if not 32 <= args.longest_side <= 1 << 14:
        raise UserError(f"--longest-side: found {args.longest_side}, expected 32 to {1 << 14}")
    return FaceDetector(args.detector, args.score, args.longest_side) if args.detector else None
