# SPDX-License-Identifier: Apache-2.0
"""Parts of the head's kernels: places of centres, products, the logits that count."""
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rows_of_tile(tile, classes, selected, SAMPLED: tl.constexpr, K: tl.constexpr,  # type: ignore[no-untyped-def]
                 PADDED: tl.constexpr, COLUMNS: tl.constexpr):
    """The columns of a tile: number of the selected class, place among the selected rows, row of W, and which are
    there. A class takes PADDED columns, a power of two, of which the first K are its sub-centres."""
    column = tile * COLUMNS + tl.arange(0, COLUMNS)
    number = column // PADDED
    k = column % PADDED
    there = (number < classes) & (k < K)
    place = number * K + k
    row = tl.load(selected + place, mask=there, other=0) if SAMPLED else place.to(tl.int64)
    return number, place, row, there


@triton.jit
def product(a, b, plus, WIDENED: tl.constexpr):  # type: ignore[no-untyped-def]
    """``a b + plus``, with float32 sums; as float32 if WIDENED, which gives bfloat16 the same exact products."""
    if WIDENED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, plus, input_precision="ieee")


@triton.jit
def nearest_only(z, GROUPS: tl.constexpr, PADDED: tl.constexpr, BATCH: tl.constexpr):  # type: ignore[no-untyped-def]
    """Logits (GROUPS * PADDED, BATCH) with -inf at all but the first largest of each group of PADDED rows."""
    groups = tl.reshape(z, (GROUPS, PADDED, BATCH))
    k = tl.arange(0, PADDED)[None, :, None]
    largest = tl.max(groups, 1)
    best = tl.min(tl.where(groups == largest[:, None, :], k, PADDED), 1)
    kept = tl.where(k == best[:, None, :], groups, float("-inf"))
    return tl.reshape(kept, (GROUPS * PADDED, BATCH))
