# SPDX-License-Identifier: Apache-2.0
"""The pairs of CFP, as its authors hand them out: ``Protocol/Split/FP`` and ``FF`` have ten folders of ``same.txt`` and
``diff.txt``, whose lines ``i,j`` count from 1 in ``Protocol/Pair_list_F.txt`` and ``Pair_list_P.txt``."""
from __future__ import annotations

from pathlib import Path

import numpy as np

from common.sets.pair_lists import PairList
from common.sets.text_columns import whole_number
from recognition.errors import UserError
from recognition.io.text import read_text

_PARTS = 3  # of a path that count: 001/frontal/01.jpg


def read_cfp(split: Path) -> PairList:
    """Read the pairs in the folder ``FF``, frontal with frontal, or ``FP``, frontal with profile: fold after fold,
    those of one person first. Images are ``001/frontal/01.jpg``, below CFP's ``Data/Images``.

    :raises UserError: if a file is missing or malformed
    """
    place = split.resolve()
    folds = sorted(folder for folder in place.iterdir() if folder.is_dir() and folder.name.isdecimal())
    if place.name not in ("FF", "FP") or not folds:
        raise UserError(f"{split}: found a folder, expected a list of pairs, or CFP's Protocol/Split/FF or FP with "
                        "folders 01, 02, ...")
    first, second = (_images(place.parents[1] / f"Pair_list_{side}.txt") for side in place.name)
    pairs = []
    for fold in folds:
        for kind in ("same", "diff"):
            path = fold / f"{kind}.txt"
            for number, line in _lines(path):
                numbers = [whole_number(part.strip()) for part in line.split(",")]
                if len(numbers) != 2 or numbers[0] not in first or numbers[1] not in second:
                    raise UserError(f"{path}: line {number}: found {line[:80]!r}, expected two numbers of images with "
                                    "a comma between them")
                pairs.append((first[numbers[0]], second[numbers[1]], kind == "same"))
    if not pairs:
        raise UserError(f"{split}: no pairs there")
    return PairList([pair[0] for pair in pairs], [pair[1] for pair in pairs], np.array([pair[2] for pair in pairs]))


def _images(path: Path) -> dict[int | None, str]:
    """The images by their numbers."""
    found: dict[int | None, str] = {}
    for number, line in _lines(path):
        fields = line.split()
        parts = fields[1].split("/")[-_PARTS:] if len(fields) == 2 else []
        if len(parts) < _PARTS or ".." in parts or (key := whole_number(fields[0])) is None:
            raise UserError(f"{path}: line {number}: found {line[:80]!r}, expected 'number ../Data/Images/001/frontal/"
                            "01.jpg'")
        found[key] = "/".join(parts)
    return found


def _lines(path: Path) -> list[tuple[int, str]]:
    """The lines that are not empty, and their numbers."""
    return [(number, line) for number, line in enumerate(read_text(path).splitlines(), 1) if line.strip()]
