# SPDX-License-Identifier: Apache-2.0
"""Lists of verification pairs: lines of two images and 1 or 0, or LFW's pairs.txt."""
from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.sets.text_columns import whole_number
from recognition.errors import UserError

_EXPECTED = "expected 'image image 1' for one identity or 'image image 0' for two, or LFW's pairs.txt"


class PairList(NamedTuple):
    """P pairs of images, as paths relative to the folder of images; pair p is ``(first[p], second[p])``."""

    first: list[str]
    second: list[str]
    issame: np.ndarray  # bool (P,)


def read_pairs(path: Path) -> PairList:
    """Read a list of pairs, in its order.

    Lines are ``image image issame`` with tabs, commas or spaces. LFW's pairs.txt begins with ``folds pairs``, and has a
    line ``name n1 n2`` for two images of a person and ``name1 n1 name2 n2`` for images of two people; the images are
    ``name/name_0001.jpg``.

    :raises UserError: if it cannot be read, at the first malformed line, or if it has no lines
    """
    try:
        lines = path.read_text("utf-8", "surrogateescape").splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    heading = lines[0].split() if lines else []
    lfw = 1 <= len(heading) <= 2 and all(word.isdecimal() for word in heading)
    parse = _lfw_line if lfw else _line
    found = []
    for number, line in enumerate(lines[1:] if lfw else lines, 2 if lfw else 1):
        if line.strip():
            pair = parse(line)
            if pair is None or _outside(pair[0]) or _outside(pair[1]):
                raise UserError(f"{path}: line {number}: found {line[:80]!r}, {_EXPECTED}")
            found.append(pair)
    if not found:
        raise UserError(f"{path}: no pairs there, {_EXPECTED}")
    first, second, issame = zip(*found)
    return PairList(list(first), list(second), np.array(issame, bool))


def _outside(name: str) -> bool:
    """True for a path that leads out of the folder of images: lists are not trusted."""
    return name.startswith("/") or ".." in name.split("/") or "\0" in name


def _line(line: str) -> tuple[str, str, bool] | None:
    for separator in "\t", ",", None:
        fields = [field.strip() for field in line.split(separator)]
        if len(fields) == 3:
            word = fields[2].lower()
            if word in ("0", "1", "true", "false") and fields[0] and fields[1]:
                return fields[0], fields[1], word in ("1", "true")
            return None
    return None


def _lfw_line(line: str) -> tuple[str, str, bool] | None:
    fields = line.split("\t") if "\t" in line else line.split()
    if len(fields) == 3:
        fields = [fields[0], fields[1], fields[0], fields[2]]
        same = True
    else:
        same = False
    numbers = [whole_number(field) for field in fields[1::2]]
    if len(fields) != 4 or None in numbers:
        return None
    first, second = (f"{name}/{name}_{number:04d}.jpg" for name, number in zip(fields[::2], numbers))
    return first, second, same
