# SPDX-License-Identifier: Apache-2.0
"""Checkpoints whose class centres are the dominant sub-centres alone."""
from __future__ import annotations

import filecmp
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from recognition.io.centres import SavedCentres, is_of_centres, rows_at
from recognition.io.checksums import write_bytes
from recognition.io.names import params_file
from recognition.io.params import Pieces, read_arrays, write_arrays

ROWS_AT_ONCE = 1 << 14  # read and written in one go: 32 MB at D = 512


class _Rows(Sequence):
    """Rows of W in pieces of ROWS_AT_ONCE, each read when it is used."""

    def __init__(self, shards: Pieces, rows: np.ndarray) -> None:
        self._shards, self._rows = shards, rows

    def __len__(self) -> int:
        return -(-len(self._rows) // ROWS_AT_ONCE)

    def __getitem__(self, i: int) -> np.ndarray:  # type: ignore[override]  # no slices
        if not 0 <= i < len(self):
            raise IndexError(i)
        return rows_at(self._shards, self._rows[i * ROWS_AT_ONCE : (i + 1) * ROWS_AT_ONCE])


def same_file(path: Path, other: Path) -> bool:
    """True if both files exist and hold the same bytes."""
    return path.is_file() and other.is_file() and filecmp.cmp(path, other, shallow=False)


def save_dominant_model(checkpoint: Path, symbol: Path, centres: SavedCentres, rows: np.ndarray,
                        output: tuple[str, int]) -> None:
    """Write ``checkpoint`` to ``<prefix>-<number>.params``, the ``output``, with some rows of W as ``fc7_weight``.

    :param rows: int64 (C,), one for each class.
    """
    file = read_arrays(checkpoint)
    arrays: dict[str, Pieces] = {
        name: [array] for name, array in zip(file.names, file.arrays) if not is_of_centres(name)}
    arrays["arg:fc7_weight"] = _Rows(centres.centres, rows)
    if not same_file(symbol, target := Path(f"{output[0]}-symbol.json")):
        write_bytes(target, symbol.read_bytes())
    write_arrays(Path(params_file(*output)), arrays)
