# SPDX-License-Identifier: Apache-2.0
"""The optimiser's step within the head's kernel for updates, and rounding at random."""
from __future__ import annotations

import triton
import triton.language as tl


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
def optimise(values, gradient, at, inside, row, d, first_moment, second_moment, rate, decay, beta1,  # type: ignore[no-untyped-def]
             beta2, move, eps, key, key2, ADAMW: tl.constexpr, ROUNDED: tl.constexpr):
    """The new values of centres (rows, WIDTH) at the places ``at``; their moments are updated.

    :param row: (rows,) their numbers among all classes' rows; ``d``: (WIDTH,).
    """
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
        words = random_words(key, row, d)
        values = rounded(values, words)
        moment = rounded(moment, words >> 16)
    tl.store(first_moment + at, moment.to(first_moment.dtype.element_ty), mask=inside)
    if ADAMW:
        if ROUNDED:
            second = rounded(second, random_words(key2, row, d))
        tl.store(second_moment + at, second.to(second_moment.dtype.element_ty), mask=inside)
    return values
