# SPDX-License-Identifier: Apache-2.0
"""The files of IJB-B and IJB-C in the usual layout: ``loose_crop/`` with images, ``meta/`` with

- ``*_name_5pts_score.txt``: image, five landmarks (x and y), the detector's score;
- ``*_face_tid_mid.txt``: image, template, media (a video's frames share one), the same images in the same order;
- ``*_template_pair_label.txt``: two templates and 1 for one subject, 0 for two;
- ``*_1N_gallery_G1.csv``, ``*_1N_gallery_G2.csv`` (or ``S1``, ``S2``), ``*_1N_probe_mixed.csv``: template, subject,
  and further columns, which are not read.
"""
from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.faces.landmark_files import first_column
from common.faces.upright import upright
from common.sets.text_columns import read_whole_numbers
from recognition.errors import UserError
from recognition.io.text import read_text

_logger = logging.getLogger(__name__)


class Faces(NamedTuple):
    """The N images, in the files' order."""

    names: list[str]
    landmarks: np.ndarray  # float32 (N, 5, 2), x and y in pixels
    scores: np.ndarray  # float32 (N,), the detector's
    templates: np.ndarray  # int64 (N,)
    media: np.ndarray  # int64 (N,)


class Subjects(NamedTuple):
    """The templates of a gallery or of the probes, each once."""

    templates: np.ndarray  # int64 (T,)
    subjects: np.ndarray  # int64 (T,)


def _matching(folder: Path, ending: str) -> list[Path]:
    """Without hidden files: macOS leaves ._NAME beside NAME in archives."""
    return sorted(path for path in folder.glob(f"*{ending}") if not path.name.startswith("."))


def find(folder: Path, ending: str) -> Path:
    """The file of ``folder`` whose name matches ``*ending``.

    :raises UserError: if there are none or several.
    """
    found = _matching(folder, ending)
    if len(found) != 1:
        raise UserError(f"{folder}: found {', '.join(path.name for path in found) or 'no file'} for *{ending}, "
                        "expected one: the folder meta of IJB-B or IJB-C")
    return found[0]


def read_faces(meta: Path) -> Faces:
    """Read images, landmarks, detector scores, templates and media.

    :raises UserError: if a file is missing, malformed, or does not fit the other.
    """
    landmarks, places = find(meta, "_name_5pts_score.txt"), find(meta, "_face_tid_mid.txt")
    names, rows = _read_landmarks(landmarks)
    if first_column(landmarks, rows):
        raise UserError(f"{landmarks}: found the landmarks behind a first number, expected an image's name, ten "
                        "coordinates and a score")
    where = _lines(places)
    if len(where) != len(names):
        raise UserError(f"{places}: found {len(where)} lines, expected {len(names)}, as {landmarks.name} has")
    numbers = np.empty((len(names), 2), np.int64)
    for i, (line, name) in enumerate(zip(where, names)):
        try:
            image, template, media = line.split()
            numbers[i] = int(template), int(media)
            if image != name:
                raise ValueError
        except (ValueError, OverflowError):
            raise _bad_line(places, i, line, f"'{name} TEMPLATE MEDIA', as line {i + 1} of {landmarks.name} is of that "
                            "image") from None
    points = rows[:, :10].reshape(-1, 5, 2)
    if strange := int((~upright(points)).sum()):
        _logger.warning("%s: the landmarks of %d of its %d images form no upright face", landmarks, strange, len(names))
    return Faces(names, points, rows[:, 10], numbers[:, 0], numbers[:, 1])


def _read_landmarks(path: Path) -> tuple[list[str], np.ndarray]:
    lines = _lines(path)
    names, rows = [], np.empty((len(lines), 11), np.float32)
    for i, line in enumerate(lines):
        try:
            name, *numbers = line.split()
            rows[i] = [float(number) for number in numbers] if len(numbers) == 11 else np.nan
            if not np.isfinite(rows[i]).all() or name.startswith("/") or ".." in name.split("/") or "\0" in name:
                raise ValueError
        except ValueError:
            raise _bad_line(path, i, line, "an image's name, ten coordinates and a score") from None
        names.append(name)
    return names, rows


def read_pairs(meta: Path) -> np.ndarray:
    """Read the pairs of templates: template, template, 1 or 0; int64 ``(P, 3)``."""
    path = find(meta, "_template_pair_label.txt")
    pairs = read_whole_numbers(path, 3, "two templates and 1 or 0")
    bad = np.flatnonzero((pairs[:, 2] != 0) & (pairs[:, 2] != 1))
    if bad.size:
        raise _bad_line(path, int(bad[0]), " ".join(map(str, pairs[bad[0]])), "two templates and 1 or 0")
    return pairs


def read_subjects(path: Path) -> Subjects:
    """Read the distinct templates and their subjects, the first two columns of a .csv. A first line without numbers
    there is a header."""
    lines = _lines(path)
    found: dict[int, int] = {}
    for i, line in enumerate(lines):
        fields = line.split(",")
        try:
            template, subject = np.array([int(fields[0]), int(fields[1])], np.int64).tolist()
        except (ValueError, IndexError, OverflowError):
            if i == 0 and len(fields) > 1 and not fields[0].strip().lstrip("-").isdigit():
                continue
            raise _bad_line(path, i, line, "TEMPLATE,SUBJECT,... in numbers") from None
        if found.setdefault(template, subject) != subject:
            raise _bad_line(path, i, line, f"subject {found[template]} for template {template}, as on a line before")
    if not found:
        raise UserError(f"{path}: found no templates, expected lines TEMPLATE,SUBJECT,...")
    return Subjects(np.fromiter(found.keys(), np.int64, len(found)), np.fromiter(found.values(), np.int64, len(found)))


def read_identification(meta: Path) -> tuple[dict[str, Subjects], Subjects] | None:
    """Read the two galleries, by name, and the probes; None if ``meta`` lacks a file of the 1:N protocol: with a line
    in the log, if it has others of them."""
    endings = ("_1N_gallery_[GS]1.csv", "_1N_gallery_[GS]2.csv", "_1N_probe_mixed.csv")
    lacking = [ending for ending in endings if not _matching(meta, ending)]
    if lacking:
        if _matching(meta, "_1N_*.csv"):
            _logger.warning("%s: found no %s: 1:1 alone, without 1:N", meta, ", ".join(f"*{name}" for name in lacking))
        return None
    galleries = {f"gallery {number}": read_subjects(find(meta, ending)) for number, ending in enumerate(endings[:2], 1)}
    return galleries, read_subjects(find(meta, endings[2]))


def _lines(path: Path) -> list[str]:
    lines = read_text(path).rstrip().splitlines()
    if not lines:
        raise UserError(f"{path}: found no lines")
    return lines


def _bad_line(path: Path, index: int, line: str, expected: str) -> UserError:
    return UserError(f"{path}: line {index + 1}: found {line[:80]!r}, expected {expected}")
