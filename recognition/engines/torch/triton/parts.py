# SPDX-License-Identifier: Apache-2.0
"""Parts of the head's kernels: places of centres, products, the logits that count."""
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def columns_of_tile(tile, classes, K: tl.constexpr, PADDED: tl.constexpr, COLUMNS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The columns of a tile: number of the class and row of its centre in the chunk, and which are there."""
    column = tile * COLUMNS + tl.arange(0, COLUMNS)
    number = column // PADDED
    k = column % PADDED
    return number, number * K + k, (number < classes) & (k < K)


@triton.jit
def product(a, b, plus, WIDENED: tl.constexpr):  # type: ignore[no-untyped-def]
    """``a b + plus``, with float32 sums; as float32 if WIDENED, which gives bfloat16 the same exact products."""
    if WIDENED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, plus, input_precision="ieee")


@triton.jit
def logits_of_tile(x, units, inverse, targets, b, number, row, there, at_end, batch, first, scale, ceiling,  # type: ignore[no-untyped-def]
                   dim: tl.constexpr, SCALED: tl.constexpr, FILTERED: tl.constexpr, WIDENED: tl.constexpr,
                   K: tl.constexpr, PADDED: tl.constexpr, BATCH: tl.constexpr, COLUMNS: tl.constexpr,
                   DEPTH: tl.constexpr):
    """The logits (BATCH, COLUMNS) to base 2 of features ``b`` and rows ``row`` of ``units``, -inf where they do not
    count, as at targets; and the factors from inner products to cosines, with SCALED.

    What few tiles need is behind a branch: each operation on all numbers of a tile costs a tenth of its product.

    :param row: a row that can be read, also where a column is not ``there``, as some may be ``at_end``.
    """
    z = tl.zeros((BATCH, COLUMNS), tl.float32)
    d, safe_b = tl.arange(0, DEPTH), tl.minimum(b, batch - 1)
    of_x, of_w = x + safe_b[:, None] * dim + d[None, :], units + row[:, None] * dim + d[None, :]
    for start in range(0, dim, DEPTH):
        if dim % DEPTH == 0:
            features, w = tl.load(of_x + start), tl.load(of_w + start)
        else:
            features = tl.load(of_x + start, mask=(start + d < dim)[None, :], other=0.0)
            w = tl.load(of_w + start, mask=(start + d < dim)[None, :], other=0.0)
        z = product(features, tl.trans(w), z, WIDENED)
    factor = tl.load(inverse + row)  # not read unless SCALED
    z = z * (factor * scale)[None, :] if SCALED else z * scale
    if at_end or K != PADDED:
        z = tl.where(there[None, :], z, float("-inf"))
    if K > 1:
        z = nearest_only(z, BATCH, COLUMNS // PADDED, PADDED)
    if FILTERED:
        z = tl.where(z > ceiling, float("-inf"), z)
    target = tl.load(targets + safe_b) - first
    if tl.max(((target >= tl.min(number, 0)) & (target <= tl.max(number, 0))).to(tl.int32), 0) > 0:
        z = tl.where(number[None, :] == target[:, None], float("-inf"), z)
    return z, factor


@triton.jit
def nearest_only(z, BATCH: tl.constexpr, GROUPS: tl.constexpr, PADDED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Logits (BATCH, GROUPS * PADDED) with -inf at all but the first largest of each group of PADDED columns."""
    groups = tl.reshape(z, (BATCH, GROUPS, PADDED))
    k = tl.arange(0, PADDED)[None, None, :]
    largest = tl.max(groups, 2)
    best = tl.min(tl.where(groups == largest[:, :, None], k, PADDED), 2)
    kept = tl.where(k == best[:, :, None], groups, float("-inf"))
    return tl.reshape(kept, (BATCH, GROUPS * PADDED))


@triton.jit
def unit_vectors(values):  # type: ignore[no-untyped-def]
    """Inverse norms (rows,) of rows (rows, WIDTH), and unit vectors."""
    lengths = tl.div_rn(1.0, tl.sqrt_rn(tl.sum(values * values, 1) + 1e-10))
    return lengths, values * lengths[:, None]
