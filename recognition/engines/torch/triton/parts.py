# SPDX-License-Identifier: Apache-2.0
"""Parts of the head's kernels: places of centres, the logits that count, norms, stochastic rounding."""
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
    if SAMPLED:
        row = tl.load(selected + place, mask=there, other=0)
    else:
        row = place.to(tl.int64)
    return number, place, row, there


@triton.jit
def nearest_only(z, GROUPS: tl.constexpr, PADDED: tl.constexpr, BATCH: tl.constexpr):  # type: ignore[no-untyped-def]
    """Logits (GROUPS * PADDED, BATCH) with -inf at all but the first largest of each group of PADDED rows."""
    groups = tl.reshape(z, (GROUPS, PADDED, BATCH))
    k = tl.arange(0, PADDED)[None, :, None]
    largest = tl.max(groups, 1)
    best = tl.min(tl.where(groups == largest[:, None, :], k, PADDED), 1)
    kept = tl.where(k == best[:, None, :], groups, float("-inf"))
    return tl.reshape(kept, (GROUPS * PADDED, BATCH))


@triton.jit
def squared_norms(w):  # type: ignore[no-untyped-def]
    """The squared norms of rows (n, D) float32, float64 (n,), to 1e-7; inf or NaN if a number is.

    Numbers become integers of 24 bits by the row's largest, and integers add to the same bits in any order: a state
    that is loaded, by another kernel, gets the norms of the run that saved it.
    """
    largest = tl.max(tl.abs(w), 1)
    exponent = tl.minimum(tl.maximum(largest.to(tl.int32, bitcast=True) >> 23, 24), 253)
    scale = ((277 - exponent) << 23).to(tl.float32, bitcast=True)  # 2^(150 - exponent): the largest is below 2^24
    sound = tl.sum((tl.abs(w) < float("inf")).to(tl.int32), 1) == w.shape[1]
    whole = tl.where(sound[:, None], w * scale[:, None], 0.0).to(tl.int64)
    unit = ((723 + 2 * exponent).to(tl.int64) << 52).to(tl.float64, bitcast=True)  # 2^(2 * exponent - 300)
    return tl.where(sound, tl.sum(whole * whole, 1).to(tl.float64) * unit, float("nan"))


@triton.jit
def inverse_norms(w):  # type: ignore[no-untyped-def]
    """``1 / sqrt(|w|^2 + 1e-10)`` of rows (n, D) float32: (n,) float32; 0 or NaN where float32 has no squared norm."""
    squares = squared_norms(w)
    inverse = (1.0 / tl.sqrt(squares + 1e-10)).to(tl.float32)
    return tl.where(squares < 3.4028234663852886e38, inverse, 0.0)


@triton.jit
def hashed(words):  # type: ignore[no-untyped-def]
    """The hash of :mod:`recognition.head.rounding` of uint32 words."""
    words = words ^ (words >> 16)
    words = words * 0x7FEB352D
    words = words ^ (words >> 15)
    words = words * 0x846CA68B
    return words ^ (words >> 16)


@triton.jit
def random_words(key, rows, columns):  # type: ignore[no-untyped-def]
    """32 random bits a number: ``rows`` (n,) of all classes' rows, ``columns`` (D,); uint32 (n, D)."""
    of_rows = hashed(rows.to(tl.uint32) ^ key.to(tl.uint32))
    return hashed(of_rows[:, None] + columns.to(tl.uint32)[None, :] * 0x9E3779B9)


@triton.jit
def rounded(values, bits):  # type: ignore[no-untyped-def]
    """Float32 values that bfloat16 holds, rounded by the lower 16 of ``bits``."""
    sums = (values.to(tl.uint32, bitcast=True) + (bits & 0xFFFF)) & 0xFFFF0000
    return tl.where(values == values, sums.to(tl.float32, bitcast=True), values)
