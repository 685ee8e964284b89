# SPDX-License-Identifier: Apache-2.0
"""Lists of verification pairs: lines of two images and 1 or 0, or LFW's pairs.txt."""
from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.sets.folder_walk import is_image
from common.sets.text_columns import whole_number
from recognition.errors import UserError
from recognition.io.text import read_text

_EXPECTED = "expected 'image image 1' for one identity or 'image image 0' for two, or LFW's pairs.txt"


class PairList(NamedTuple):
    """P pairs of images, as paths relative to the folder of images; pair p is ``(first[p], second[p])``."""

    first: list[str]
    second: list[str]
    issame: np.ndarray  # bool (P,)


def read_pairs(path: Path, folder: Path | None = None) -> PairList:
    """Read a list of pairs, in its order.

    :param folder: the folder of images: absolute paths that lead into it are made relative; others are refused

    Lines are ``image image issame`` with tabs, commas or spaces. LFW's pairs.txt begins with ``folds pairs``, and has a
    line ``name n1 n2`` for two images of a person and ``name1 n1 name2 n2`` for images of two people; the images are
    ``name/name_0001.jpg``.

    :raises UserError: if it cannot be read, at the first malformed line, or if it has no lines
    """
    try:
        lines = read_text(path).splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    heading = lines[0].split() if lines else []
    lfw = 1 <= len(heading) <= 2 and all(word.isdecimal() for word in heading)
    parse = _lfw_line if lfw else _line
    found = []
    for number, line in enumerate(lines[1:] if lfw else lines, 2 if lfw else 1):
        if line.strip():
            pair = parse(line)
            if pair and folder:
                pair = (below(folder, pair[0]), below(folder, pair[1]), pair[2])
            if pair is None or _outside(pair[0]) or _outside(pair[1]):
                raise UserError(f"{path}: line {number}: found {line[:80]!r}, {_EXPECTED}")
            found.append(pair)
    if not found:
        raise UserError(f"{path}: no pairs there, {_EXPECTED}")
    first, second, issame = zip(*found)
    return PairList(list(first), list(second), np.array(issame, bool))


def below(folder: Path, name: str) -> str:
    """An absolute path into the folder as one below it; any other name as it is."""
    for place in (folder.absolute(), folder.resolve()):
        if name.startswith("/") and place in Path(name).parents:
            return str(Path(name).relative_to(place))
    return name


def with_other_endings(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Names of images that are not in ``folder``, and those of the same images under the other ending that is there.
    LFW's lists say .jpg, whatever a tree holds.

    :raises UserError: if several images have that name but for the ending
    """
    found: dict[str, str] = {}
    listed: dict[Path, dict[str, list[str]]] = {}
    for name in names:
        if "\0" in name or os.path.lexists(folder / name):
            continue
        place = (folder / name).parent
        if place not in listed:
            stems = listed[place] = {}
            for other in sorted(os.listdir(place)) if place.is_dir() else ():
                if is_image(other):
                    stems.setdefault(os.path.splitext(other)[0], []).append(other)
        base = os.path.basename(name)
        there = listed[place].get(os.path.splitext(base)[0] if is_image(base) else base, [])
        if len(there) > 1:
            raise UserError(f"{folder / name}: not found, and there are {' and '.join(there[:3])}, expected one image")
        if there:
            found[name] = str(Path(name).with_name(there[0]))
    return found


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
