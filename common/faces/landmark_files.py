# SPDX-License-Identifier: Apache-2.0
"""Files with five landmarks for each image: eyes, nose, corners of the mouth, the left one of the image first.

A line is ``path x1 y1 ... x5 y5`` with tabs, commas, semicolons or spaces. Other numbers may stand before or behind the
ten: the label of CASIA's, RFW's, MS-Celeb-1M's and Asian-Celeb's lists, a box, a detector's score. Words, and numbers
before a word, are passed over. Which ten are the landmarks is where upright faces come from. The first two lines may be
a heading, as in CelebA's and VGGFace2's files. Or the file is InsightFace's .lst with a box and landmarks:
``aligned<TAB>path<TAB>label<TAB>left<TAB>top<TAB>right<TAB>bottom<TAB>x1 .. x5<TAB>y1 .. y5``.
"""
from __future__ import annotations

import re
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.faces.upright import EXPECTED_ORDER, LEAST_PIXELS, extents, likely_order, upright
from recognition.data.images.folder_walk import EXTENSIONS
from recognition.errors import UserError
from recognition.io.files import reading
from recognition.io.text import open_text

ALIGNED_LANDMARKS = ".landmarks.txt"  # behind the name of a folder of aligned images: landmarks in these
POINTS = 5
_NUMBERS = 2 * POINTS
_MOST_NUMBERS = 24  # in a line, landmarks and others
_LST = 5 + _NUMBERS  # label, box, landmarks
_EXPECTED = "expected 'path x1 y1 ... x5 y5', or a line of InsightFace's .lst with a box and five landmarks"
_ENDINGS = "|".join(re.escape(ending) for ending in sorted(EXTENSIONS))
_PATH = re.compile(rf'^(.*(?:{_ENDINGS}))["\']?(?:\s*[,;]\s*|\s+)(.*)$', re.IGNORECASE)
_SEPARATORS = re.compile(r"\s*[,;]\s*|\s+")
_ENOUGH = 0.5  # of the lines: upright faces, if numbers are read right


class Landmarks(NamedTuple):
    """The names of images, in the order of the file, and their landmarks."""

    names: list[str]
    points: np.ndarray  # float32 (N, 5, 2), x and y in pixels

    def by_name(self) -> dict[str, np.ndarray]:
        return dict(zip(self.names, self.points))


def read_landmarks(path: Path) -> Landmarks:
    """Read a file of landmarks.

    :raises UserError: at the first line that is malformed, has another form than those before it or names an image a
        second time; if it cannot be told which numbers are the landmarks, or if most form upright faces in another
        order alone.
    """
    lines: dict[str, int] = {}
    values, form = array("f"), ""
    with reading(path), open_text(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip() or (number <= 2 and _is_heading(line)):
                continue
            name, numbers, found = _parse(path, number, line.strip("\r\n"))
            if name in lines:
                raise UserError(f"{path}: line {number}: {name} is in line {lines[name]} already, expected once")
            if lines and found != form:
                raise UserError(f"{path}: line {number}: found {found}, and {form} in the lines before; expected "
                                "one form in all lines")
            lines[name], form = number, found
            values.extend(numbers)
    if not lines:
        raise UserError(f"{path}: found no lines, {_EXPECTED}")
    table = np.frombuffer(values, np.float32).reshape(len(lines), -1)
    first = first_column(path, table, list(lines.values()))
    points = table[:, first : first + _NUMBERS].reshape(-1, POINTS, 2).copy()
    if (usual := np.median(extents(points))) < LEAST_PIXELS and points.any():
        raise UserError(f"{path}: most of its faces are within {usual:.2g} pixels, expected landmarks in pixels, not "
                        "in parts of the image's sides")
    return Landmarks(list(lines), points)


def write_landmarks(path: Path, names: Iterable[str], points: Iterable[np.ndarray]) -> None:
    """Write ``path<TAB>x1<TAB>y1 ...``, which :func:`read_landmarks` reads."""
    with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
        for name, five in zip(names, points):
            file.write("\t".join([name, *(f"{value:.3f}" for value in np.asarray(five).ravel())]) + "\n")


def _is_heading(line: str) -> bool:
    """True for the number of images, as in CelebA's file, and for names of columns."""
    fields = _SEPARATORS.split(line.strip())
    return (len(fields) == 1 and fields[0].isdecimal()) or (
        len(fields) >= _NUMBERS and not any(_is_number(field) for field in fields))


def _parse(path: Path, number: int, line: str) -> tuple[str, list[float], str]:
    """The name, the numbers behind it, and the form of the line in words."""
    name, words = _split(line)
    flag = re.match(r"[01]\t", name)
    form = f"{len(words)} numbers behind the path"
    if flag and len(words) == _LST:  # .lst: all x, then all y
        name, form = name[2:].strip(), "a line of InsightFace's .lst"
        words = [words[5 + i + side] for i in range(POINTS) for side in (0, POINTS)]
    elif last := max((i for i, word in enumerate(words, 1) if not _is_number(word)), default=0):
        words, form = words[last:], f"a word and {len(words) - last} numbers behind the path"  # a name may have spaces
    numbers = [float(word) for word in words if _is_number(word)]
    if not name or len(numbers) != len(words) or not _NUMBERS <= len(numbers) <= _MOST_NUMBERS or not np.isfinite(
            numbers).all():
        raise UserError(f"{path}: line {number}: found {line[:80]!r}, {_EXPECTED}")
    return name, numbers, form


def _split(line: str) -> tuple[str, list[str]]:
    """The path, which may contain spaces, and the words behind it. The path ends with the ending of an image, or else
    at the first tab, or before the numbers with which the line ends."""
    line = line.strip()
    if found := _PATH.match(line):
        name, rest = found.groups()
    elif "\t" in line:
        name, _, rest = line.partition("\t")
    else:
        gaps = list(_SEPARATORS.finditer(line))
        words = _SEPARATORS.split(line)
        last = next((i for i in range(len(words) - 1, 0, -1) if not _is_number(words[i])), 0)  # of the path
        name, rest = (line[: gaps[last].start()], line[gaps[last].end() :]) if last < len(gaps) else (line, "")
    return name.strip().strip("\"'"), _SEPARATORS.split(rest.strip()) if rest.strip() else []


def first_column(path: Path, table: np.ndarray, lines: list[int] | None = None) -> int:
    """The column of float ``(N, 10 to 24)`` at which the ten numbers of the landmarks begin.

    :param lines: the numbers of the file's lines, from 1 on without gaps if they are not given
    :raises UserError: if it cannot be told, if it is not the same in all lines, or if most lines form upright faces in
        another order alone
    """
    columns = range(table.shape[1] - _NUMBERS + 1)
    found = np.stack([upright(table[:, i : i + _NUMBERS].reshape(-1, POINTS, 2)) for i in columns])
    parts = found.mean(axis=1)
    first = int(parts.argmax())
    if parts[first] < _ENOUGH:
        return _by_other_signs(path, table, parts[first])
    if (np.delete(parts, first) > parts[first] / 2).any():
        raise UserError(f"{path}: found {table.shape[1]} numbers behind each path, of which several tens form faces; "
                        f"{_EXPECTED}")
    strange = np.flatnonzero(found.any(axis=0) & ~found[first])
    if strange.size:
        line = lines[strange[0]] if lines else strange[0] + 1
        raise UserError(f"{path}: line {line}: its landmarks stand elsewhere than in most lines; expected one form in "
                        "all lines")
    return first


def _by_other_signs(path: Path, table: np.ndarray, part: float) -> int:
    """The first column where few lines, ``part`` of them, form an upright face."""
    columns = table.shape[1]
    orders = [likely_order(table[:, i : i + _NUMBERS]) for i in range(columns - _NUMBERS + 1)]
    order, most = max(orders, key=lambda found: found[1])
    if order and most >= _ENOUGH and most > part:
        raise UserError(f"{path}: {part:.0%} of its {len(table)} lines form upright faces as they stand, {most:.0%} "
                        f"with {order}; {EXPECTED_ORDER}")
    scored = columns == _NUMBERS + 1 and ((table[:, 0] != np.floor(table[:, 0])).any() or (table[:, -1] <= 1).all())
    if columns == _NUMBERS or scored:
        return 0  # a label would be a whole number, and no mouth is at 1
    raise UserError(f"{path}: found {columns} numbers behind each path, and it cannot be told which ten are landmarks: "
                    f"few form upright faces; {_EXPECTED}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
