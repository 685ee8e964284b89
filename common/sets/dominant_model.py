# SPDX-License-Identifier: Apache-2.0
"""A checkpoint whose class centres are the dominant sub-centres alone."""
from __future__ import annotations

import filecmp
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from recognition.io.centres import SavedCentres, is_of_centres, rows_at
from recognition.io.checksums import write_bytes
from recognition.io.params import Pieces, read_arrays, write_arrays

CHUNK = 1 << 14  # rows read and written at once: 32 MB at D = 512


class _Rows(Sequence):
    """Rows of W in pieces of CHUNK, each read when it is asked for."""

    def __init__(self, shards: Pieces, rows: np.ndarray) -> None:
        self._shards, self._rows = shards, rows

    def __len__(self) -> int:
        return -(-len(self._rows) // CHUNK)

    def __getitem__(self, i: int) -> np.ndarray:  # type: ignore[override]  # no slices
        if not 0 <= i < len(self):
            raise IndexError(i)
        return rows_at(self._shards, self._rows[i * CHUNK : (i + 1) * CHUNK])


def same_file(path: Path, other: Path) -> bool:
    """Whether both files are there and hold the same bytes."""
    return path.is_file() and other.is_file() and filecmp.cmp(path, other, shallow=False)


def save_dominant_model(checkpoint: Path, symbol: Path, centres: SavedCentres, rows: np.ndarray,
                        output: tuple[str, int]) -> None:
    """Write ``checkpoint`` again as ``<prefix>-<number>.params`` of ``output`` with these rows of W as ``fc7_weight``.

    :param rows: int64 (C,), one for each class.
    """
    file = read_arrays(checkpoint)
    arrays: dict[str, Pieces] = {
        name: [array] for name, array in zip(file.names, file.arrays) if not is_of_centres(name)}
    arrays["arg:fc7_weight"] = _Rows(centres.centres, rows)
    prefix, number = output
    if not same_file(symbol, target := Path(f"{prefix}-symbol.json")):
        write_bytes(target, symbol.read_bytes())
    write_arrays(Path(f"{prefix}-{number:04d}.params"), arrays)
