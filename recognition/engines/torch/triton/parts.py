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
def logits_of_tile(x, units, inverse, b, row, there, batch, scale, ceiling, dim: tl.constexpr,  # type: ignore[no-untyped-def]
                   SCALED: tl.constexpr, FILTERED: tl.constexpr, WIDENED: tl.constexpr, K: tl.constexpr,
                   PADDED: tl.constexpr, BATCH: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr):
    """The logits (BATCH, COLUMNS) to base 2 of features ``b`` and centres ``row``, -inf where they do not count; and
    the factors from inner products to cosines, with SCALED."""
    z = tl.zeros((BATCH, COLUMNS), tl.float32)
    d = tl.arange(0, DEPTH)
    of_x, of_w = x + b[:, None] * dim + d[None, :], units + row[:, None] * dim + d[None, :]
    for start in range(0, dim, DEPTH):
        if dim % DEPTH == 0:
            features = tl.load(of_x + start, mask=(b < batch)[:, None], other=0.0)
            w = tl.load(of_w + start, mask=there[:, None], other=0.0)
        else:
            features = tl.load(of_x + start, mask=(b < batch)[:, None] & (start + d < dim)[None, :], other=0.0)
            w = tl.load(of_w + start, mask=there[:, None] & (start + d < dim)[None, :], other=0.0)
        z = product(features, tl.trans(w), z, WIDENED)
    z = z * scale
    factor = tl.load(inverse + row, mask=there, other=0.0)  # not read unless SCALED
    if SCALED:
        z = z * factor[None, :]
    z = tl.where(there[None, :], z, float("-inf"))
    if K > 1:
        z = nearest_only(z, BATCH, COLUMNS // PADDED, PADDED)
    if FILTERED:
        z = tl.where(z > ceiling, float("-inf"), z)
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
