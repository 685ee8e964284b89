# SPDX-License-Identifier: Apache-2.0
"""What the head's second pass does with a tile of W once it has the gradient: the optimiser's step, and rounding.

A tile is taken in quarters of its columns: whole tiles of W, of its moments and of the gradient do not fit into
registers together (compiled for 9.0 at 64 x 512: 2.7 KB a thread spilled, in quarters 0.2 KB).
"""
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def halves(tile, ROWS: tl.constexpr, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """The left and the right half of a tile (ROWS, WIDTH)."""
    return tl.split(tl.permute(tl.reshape(tile, (ROWS, 2, WIDTH // 2)), (0, 2, 1)))


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


@triton.jit
def optimise(gradient, start, along, lengths, row, there, centres, first_moment, second_moment,  # type: ignore[no-untyped-def]
             rate, decay, beta1, beta2, move, eps, key, key2, first_row, dim: tl.constexpr, ADAMW: tl.constexpr,
             ROUNDED: tl.constexpr, WIDTH: tl.constexpr):
    """The optimiser's step of WIDTH columns from ``start`` on; returns the sums of the squares of the gradient."""
    d = start + tl.arange(0, WIDTH)
    at = row[:, None] * dim + d[None, :]
    inside = there[:, None] & (d < dim)[None, :]
    values = tl.load(centres + at, mask=inside, other=0.0).to(tl.float32)
    gradient = (gradient - along[:, None] * values) * lengths[:, None]
    square = tl.sum(gradient * gradient, 1)
    moment = tl.load(first_moment + at, mask=inside, other=0.0).to(tl.float32)
    if ADAMW:
        moment = beta1 * moment + (1 - beta1) * gradient
        second = tl.load(second_moment + at, mask=inside, other=0.0).to(tl.float32)
        second = beta2 * second + (1 - beta2) * gradient * gradient
        values = values - (move * moment / (tl.sqrt(second) + eps) + decay * values)
    else:
        moment = beta1 * moment - rate * (gradient + decay * values)
        values = values + moment
    if ROUNDED:
        words = random_words(key, first_row + row, d)
        values = rounded(values, words)
        moment = rounded(moment, words >> 16)
    tl.store(centres + at, values.to(centres.dtype.element_ty), mask=inside)
    tl.store(first_moment + at, moment.to(first_moment.dtype.element_ty), mask=inside)
    if ADAMW:
        if ROUNDED:
            second = rounded(second, random_words(key2, first_row + row, d))
        tl.store(second_moment + at, second.to(second_moment.dtype.element_ty), mask=inside)
    return square
