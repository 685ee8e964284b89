# SPDX-License-Identifier: Apache-2.0
"""Files with five landmarks for each image: eyes, nose, corners of the mouth, the left one of the image first.

A line is ``path x1 y1 ... x5 y5`` with tabs, commas or spaces, and perhaps a detector's score at its end (files of IJB
and, below two lines of heading, of CelebA). Or the file is InsightFace's .lst with a box and landmarks:
``aligned<TAB>path<TAB>label<TAB>left<TAB>top<TAB>right<TAB>bottom<TAB>x1 .. x5<TAB>y1 .. y5``.
"""
from __future__ import annotations

from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from recognition.errors import UserError

POINTS = 5
_EXPECTED = "expected 'path x1 y1 ... x5 y5' or a line of InsightFace's .lst with a box and five landmarks"


class Landmarks(NamedTuple):
    """The names of images, in the order of the file, and their landmarks."""

    names: list[str]
    points: np.ndarray  # float32 (N, 5, 2), x and y in pixels

    def by_name(self) -> dict[str, np.ndarray]:
        return dict(zip(self.names, self.points))


def read_landmarks(path: Path) -> Landmarks:
    """Read a file of landmarks.

    :raises UserError: at the first line that is malformed or names an image a second time.
    """
    names: dict[str, int] = {}
    values = array("f")
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            for number, line in enumerate(file, 1):
                if not line.strip() or (number <= 2 and _is_heading(line)):
                    continue
                name, points = _parse(path, number, line.strip("\r\n"))
                if name in names:
                    raise UserError(f"{path}: line {number}: {name} is in line {names[name]} already, expected once")
                names[name] = number
                values.extend(points)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    if not names:
        raise UserError(f"{path}: found no lines, {_EXPECTED}")
    return Landmarks(list(names), np.frombuffer(values, np.float32).reshape(-1, POINTS, 2).copy())


def write_landmarks(path: Path, names: Iterable[str], points: Iterable[np.ndarray]) -> None:
    """Write ``path<TAB>x1<TAB>y1 ...``, which :func:`read_landmarks` reads."""
    with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
        for name, five in zip(names, points):
            file.write("\t".join([name, *(f"{value:.3f}" for value in np.asarray(five).ravel())]) + "\n")


def _is_heading(line: str) -> bool:
    """True for CelebA's first two lines: the number of images, the names of the columns."""
    fields = line.split()
    return (len(fields) == 1 and fields[0].isdecimal()) or (len(fields) == 2 * POINTS and fields[0].endswith("_x"))


def _parse(path: Path, number: int, line: str) -> tuple[str, list[float]]:
    fields = [field.strip() for field in _split(line)]
    if len(fields) == 7 + 2 * POINTS and fields[0] in ("0", "1"):  # .lst: all x, then all y
        name, numbers = fields[1], [fields[7 + i + side] for i in range(POINTS) for side in (0, POINTS)]
    else:
        name, numbers = fields[0], fields[1 : 1 + 2 * POINTS]
        if len(fields) not in (1 + 2 * POINTS, 2 + 2 * POINTS):
            numbers = []
    try:
        points = [float(text) for text in numbers]
    except ValueError:
        points = []
    if not name or not points or not np.isfinite(points).all():
        raise UserError(f"{path}: line {number}: found {line[:80]!r}, {_EXPECTED}")
    return name, points


def _split(line: str) -> list[str]:
    """Split a line into its fields. A path may contain spaces. If there are twelve fields between spaces, the last one
    may be a score, 0 to 1."""
    for separator in "\t", ",":
        if line.count(separator) >= 2 * POINTS:
            return line.split(separator)
    fields = line.rsplit(None, 2 * POINTS)
    first = fields[0].rsplit(None, 1) if fields else []
    return [*first, *fields[1:]] if len(first) == 2 and _is_number(first[1]) and _is_score(fields[-1]) else fields


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_score(text: str) -> bool:
    return _is_number(text) and 0 <= float(text) <= 1
