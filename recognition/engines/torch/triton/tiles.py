# SPDX-License-Identifier: Apache-2.0
"""Sizes of the kernels' tiles: a small table, the first that fits into the shared memory of a multiprocessor.

A program holds the sums of its own rows, float32 (own, WIDTH), in registers: 128 KB of 256 KB at 64 x 512. Its own rows
stay in shared memory while the others stream through it, ``stages`` tiles at a time. Larger tiles of own rows read W
(the features, in the second pass) less often from the cache; larger tiles of others wait less. No tile is found by
trial: the bits of a run do not depend on what was fast in it.
"""
from __future__ import annotations

from typing import NamedTuple

WIDEST = 512  # numbers of a feature: the sums of 64 rows of more do not fit into registers


class Tiles(NamedTuple):
    own: int  # rows whose sums a program holds
    others: int  # rows that it reads at a time
    stages: int  # tiles of others on their way
    warps: int


# By WIDTH, the largest first. 16 is the least that tl.dot takes.
TABLE = {
    128: (Tiles(128, 128, 3, 8), Tiles(128, 64, 2, 8), Tiles(64, 32, 2, 4), Tiles(32, 16, 2, 4)),
    256: (Tiles(128, 64, 3, 8), Tiles(64, 64, 2, 8), Tiles(64, 32, 2, 4), Tiles(32, 16, 2, 4)),
    512: (Tiles(64, 64, 2, 8), Tiles(64, 32, 2, 8), Tiles(32, 32, 2, 4), Tiles(32, 16, 2, 4), Tiles(16, 16, 2, 4),
          Tiles(16, 16, 1, 4)),
}


def width_of(dim: int) -> int:
    """The width of a tile: ``dim`` raised to a power of two, at least 16."""
    return max(16, 1 << (dim - 1).bit_length())


def tiles_for(dim: int, number_bytes: int, shared_memory: int) -> Tiles:
    """The tiles for features of ``dim`` numbers of so many bytes each, on a card with so many bytes of shared memory a
    block. The last ones of the table if none fits: the caller's card is older than the kernels are for."""
    width = width_of(dim)
    table = TABLE[min(size for size in TABLE if size >= width)]
    for tiles in table:
        rows = tiles.own + tiles.stages * tiles.others
        if (rows * width + tiles.own * tiles.others) * number_bytes <= shared_memory:
            return tiles
    return table[-1]
