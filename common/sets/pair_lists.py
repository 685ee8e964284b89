# SPDX-License-Identifier: Apache-2.0
"""Lists of verification pairs: lines of two images and 1 or 0, LFW's pairs.txt, CALFW's and CPLFW's lists."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Optional

import numpy as np

from common.sets.named_images import below, leads_out
from common.sets.text_columns import whole_number
from recognition.data.images.folder_walk import is_image
from recognition.errors import UserError
from recognition.evaluation.verification import FOLDS
from recognition.io.text import read_text

_EXPECTED = "expected 'image image 1' for one identity or 'image image 0' for two, or LFW's pairs.txt"
_LABELS = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "-1": False, "-1.0": False, "false": False}
_Pair = tuple[str, str, bool]
_Row = tuple[int, str, list[list[str]]]  # the number of a line, the line, its fields by each mark that it has
_Parse = Callable[[Sequence[str]], Optional[_Pair]]


class PairList(NamedTuple):
    """P pairs of images, as paths relative to the folder of images; pair p is ``(first[p], second[p])``."""

    first: list[str]
    second: list[str]
    issame: np.ndarray  # bool (P,)


def read_pairs(path: Path, folder: Path | None = None) -> PairList:
    """Read a list of pairs, in its order.

    :param folder: the folder of images: absolute paths that lead into it are made relative; others are refused

    Lines have tabs, commas, semicolons or spaces. They are ``image image issame`` (or ``issame image image``), where
    issame is 1 or 0, 1 or -1, true or false. LFW's pairs.txt has a line ``name n1 n2`` for two images of a person and
    ``name1 n1 name2 n2`` for images of two people, which are ``name/name_0001.jpg``; it begins with ``folds pairs``.
    Tables may have a heading in words. The lists of CALFW and CPLFW have two lines ``image number`` for a pair, with 0
    for two people. Their pairs of both kinds, which stand apart there, are put into ten folds of both.

    :raises UserError: if it cannot be read, at the first malformed line, or if it has no lines
    """
    lines = read_text(path).splitlines()
    rows = [(number, line, _fields(line)) for number, line in enumerate(lines, 1) if line.strip()]
    forms: tuple[_Parse, ...] = (_line, _lfw_line)
    if rows and len(rows[0][2][-1]) <= 2 and all(word.isdecimal() for word in rows[0][2][-1]):
        rows, forms = rows[1:], (_lfw_line,)
    elif rows and _is_heading(rows[0][2][0]):
        rows = rows[1:]
    if not rows:
        raise UserError(f"{path}: no pairs there, {_EXPECTED}")
    found = _of_two_lines(path, rows) if len(forms) > 1 and _has_two_lines(rows) else _one_a_line(path, rows, forms)
    pairs = [_placed(path, row, pair, folder) for row, pair in found]
    first, second, issame = zip(*pairs)
    return PairList(list(first), list(second), np.array(issame, bool))


def _fields(line: str) -> list[list[str]]:
    """The fields between tabs, commas, semicolons or spaces; the names of files may have any of them, too."""
    found = []
    for mark in (*filter(line.__contains__, "\t,;"), None):
        fields = [field.strip().strip('"') for field in line.split(mark)]
        while fields and not fields[-1]:
            fields.pop()
        found.append(fields)
    return found


def _is_heading(fields: Sequence[str]) -> bool:
    """True for words that are neither images nor numbers: the heading of a table."""
    return not any(is_image(field) or "/" in field or whole_number(field) is not None for field in fields)


def _one_a_line(path: Path, rows: Sequence[_Row], forms: Sequence[_Parse]) -> list[tuple[_Row, _Pair]]:
    """The pairs by the first of the forms that all lines have.

    :raises UserError: at the line that the form of the most lines before it does not fit
    """
    farthest = 0
    for parse in forms:
        found = []
        for row in rows:
            pair = next(filter(None, map(parse, row[2])), None)
            if pair is None:
                break
            found.append((row, pair))
        if len(found) == len(rows):
            return found
        farthest = max(farthest, len(found))
    raise _error(path, rows[farthest])


def _has_two_lines(rows: Sequence[_Row]) -> bool:
    return any(len(fields) == 2 and whole_number(fields[1]) is not None for fields in rows[0][2])


def _of_two_lines(path: Path, rows: Sequence[_Row]) -> list[tuple[_Row, _Pair]]:
    """Pairs of two lines ``image number`` each, those of one identity before those of two in each of ten folds."""
    found = []
    for k in range(0, len(rows), 2):
        images = [next((fields for fields in row[2] if len(fields) == 2), ["", ""]) for row in rows[k : k + 2]]
        if len(images) != 2 or images[0][1] != images[1][1] or whole_number(images[0][1]) is None:
            raise UserError(f"{path}: lines {rows[k][0]} and {rows[k][0] + 1}: found {rows[k][1][:80]!r} and not the "
                            "other image of the pair with the same number")
        found.append((rows[k], (images[0][0], images[1][0], images[0][1] != "0")))
    kinds = [[one for one in found if one[1][2] is same] for same in (True, False)]
    return [one for fold in range(FOLDS) for kind in kinds
            for one in kind[len(kind) * fold // FOLDS : len(kind) * (fold + 1) // FOLDS]]


def _placed(path: Path, row: _Row, pair: _Pair, folder: Path | None) -> _Pair:
    """The pair with the names of images as paths below the folder.

    :raises UserError: if one leads out of it
    """
    first, second = (below(folder, name) if folder else name for name in pair[:2])
    for name in (first, second):
        if leads_out(name):
            raise UserError(f"{path}: line {row[0]}: found {name[:80]!r}, expected a path below "
                            f"{folder or 'the folder of images'}")
    return first, second, pair[2]


def _error(path: Path, row: _Row) -> UserError:
    return UserError(f"{path}: line {row[0]}: found {row[1][:80]!r}, {_EXPECTED}")


def _line(fields: Sequence[str]) -> _Pair | None:
    if len(fields) != 3 or not all(fields):
        return None
    if (same := _LABELS.get(fields[2].lower())) is not None:
        return fields[0], fields[1], same
    same = _LABELS.get(fields[0].lower())
    return None if same is None else (fields[1], fields[2], same)


def _lfw_line(fields: Sequence[str]) -> _Pair | None:
    same = len(fields) == 3
    if same:
        fields = [fields[0], fields[1], fields[0], fields[2]]
    numbers = [whole_number(field) for field in fields[1::2]]
    if len(fields) != 4 or None in numbers:
        return None
    first, second = (f"{name}/{name}_{number:04d}.jpg" for name, number in zip(fields[::2], numbers))
    return first, second, same
