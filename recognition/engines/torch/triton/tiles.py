# SPDX-License-Identifier: Apache-2.0
"""Sizes of the kernels' tiles: a small table, the first that fits into the shared memory of a multiprocessor.

No tile is found by trial: the bits of a run do not depend on what was fast in it.
"""
from __future__ import annotations

from typing import NamedTuple


class Tiles(NamedTuple):
    batch: int  # rows of the batch
    columns: int  # classes
    depth: int  # numbers of a feature that a product takes at a time
    stages: int  # tiles of them on their way
    warps: int


# The best first, as measured by bench.gpu on a card of 9.0. 16 is the least that tl.dot takes.
TABLE = (Tiles(64, 128, 64, 3, 4), Tiles(64, 64, 64, 3, 4), Tiles(64, 64, 32, 3, 4), Tiles(32, 32, 16, 2, 4))
UPDATE_NUMBERS = 4096  # of W that a program of the update holds, in 4 warps


def width_of(dim: int) -> int:
    """The width of a row: ``dim`` raised to a power of two, at least 16."""
    return max(16, 1 << (dim - 1).bit_length())


def rows_of_update(dim: int) -> int:
    """How many rows of W a program of the update holds."""
    return max(1, UPDATE_NUMBERS // width_of(dim))


def tiles_for(number_bytes: int, shared_memory: int) -> Tiles:
    """The tiles for numbers of so many bytes, on a card with so many bytes of shared memory a block. The last ones of
    the table if none fits: the caller's card is older than the kernels are for."""
    for tiles in TABLE:
        if (tiles.batch + tiles.columns) * tiles.depth * tiles.stages * number_bytes <= shared_memory:
            return tiles
    return TABLE[-1]
