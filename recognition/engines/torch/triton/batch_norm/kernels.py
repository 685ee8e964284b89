# SPDX-License-Identifier: Apache-2.0
"""The passes of batch norm over a matrix (rows, channels) of float32 or 16 bits, in memory row by row.

Programs: (parts, blocks of channels). A part takes every ``parts``-th tile of ROWS rows and CHANNELS channels, and
keeps sums for each place in a tile; only at its end it adds them up. What parts found, float32 (parts, channels), is
merged in a fixed order by a program for a few channels (PARTS: ``parts`` raised to a power of two). So the same numbers
always give the same bits. Sums are float32. STAGES tiles are on their way to the chip or on it at a time.

The passes that write go through the tiles from the last to the first: these the cache still holds.

- ``moments``: float32 (3, channels): mean, variance with n - 1, 1 / sqrt(variance with n + eps).
- ``gamma``, ``beta``, ``slope``: float32 (channels,); ``slope`` is not read unless ACTIVE (PReLU).
- ``gradients``: float32 (3, channels), of gamma, beta and slope.
"""
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tiles_of(part, parts, rows, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    """How many tiles a part takes."""
    return (tl.cdiv(rows, ROWS) - part + parts - 1) // parts


@triton.jit
def places(channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr):  # type: ignore[no-untyped-def]
    """This program's channels, which of them are there, and the places of a tile's numbers behind its first row."""
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    return c, c < channels, tl.arange(0, ROWS)[:, None] * channels + c[None, :]


@triton.jit
def inside(tile, rows, there, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Which numbers of a tile are there."""
    return (tile * ROWS + tl.arange(0, ROWS) < rows)[:, None] & there[None, :]


@triton.jit
def shifted(moments, gamma, beta, c, there, channels):  # type: ignore[no-untyped-def]
    """Mean, factor and offset of channels: the norm of x is ``(x - mean) * factor + offset``."""
    mean = tl.load(moments + c, mask=there, other=0.0)
    factor = tl.load(gamma + c, mask=there, other=0.0) * tl.load(moments + 2 * channels + c, mask=there, other=0.0)
    return mean, factor, tl.load(beta + c, mask=there, other=0.0)


@triton.jit
def before_activation(d, x, factor, offset, slope, ACTIVE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The gradient of the norm's output from ``d``, that of PReLU's; and PReLU's input where it is negative, else 0.

    :param x: less the mean.
    """
    if ACTIVE:
        z = x * factor[None, :] + offset[None, :]
        d_z = tl.where(z > 0.0, d, d * slope[None, :])
        below = tl.minimum(z, 0.0)
    else:
        d_z = d
        below = d
    return d_z, below


@triton.jit(do_not_specialize=["rows"])
def measure(x, means, squares, rows, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr,  # type: ignore[no-untyped-def]
            STAGES: tl.constexpr):
    """Each part's mean, and sum of squared distances from it: Welford's formula for each place of a tile, then Chan's.

    :param means, squares: out, (parts, channels).
    """
    part, parts = tl.program_id(0), tl.num_programs(0)
    c, there, at = places(channels, ROWS, CHANNELS)
    mean = tl.zeros((ROWS, CHANNELS), tl.float32)
    square = tl.zeros((ROWS, CHANNELS), tl.float32)
    tiles = tiles_of(part, parts, rows, ROWS)
    for number in tl.range(tiles, num_stages=STAGES):
        tile = part + number * parts
        known = inside(tile, rows, there, ROWS)
        values = tl.load(x + (tile * ROWS).to(tl.int64) * channels + at, mask=known, other=0.0).to(tl.float32)
        change = tl.where(known, values - mean, 0.0)
        mean += change * (1.0 / (number + 1))
        square += change * (values - mean)
    last = (part + (tiles - 1) * parts) * ROWS + tl.arange(0, ROWS)  # rows of the last tile, of which some may lack
    counts = tl.where(last < rows, tiles, tiles - 1).to(tl.float32)
    whole = tl.sum(mean * counts[:, None], 0) / tl.sum(counts, 0)
    away = mean - whole[None, :]
    tl.store(means + part * channels + c, whole, mask=there)
    tl.store(squares + part * channels + c, tl.sum(square + away * away * counts[:, None], 0), mask=there)


@triton.jit(do_not_specialize=["rows", "parts"])
def merge_moments(means, squares, moments, rows, channels, parts, eps, ROWS: tl.constexpr,  # type: ignore[no-untyped-def]
                  PARTS: tl.constexpr, CHANNELS: tl.constexpr):
    """``moments`` of all rows from those of the parts, by Chan's formula. The variance with n - 1 of one row is 0."""
    part = tl.arange(0, PARTS)
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    tiles = tiles_of(part, parts, rows, ROWS)
    end = (part + (tiles - 1) * parts + 1) * ROWS  # behind the part's last row
    counts = tl.where(part < parts, tiles * ROWS - tl.maximum(end - rows, 0), 0).to(tl.float32)
    known = (part < parts)[:, None] & (c < channels)[None, :]
    at = part[:, None] * channels + c[None, :]
    mean = tl.load(means + at, mask=known, other=0.0)
    whole = tl.sum(mean * counts[:, None], 0) / rows
    away = mean - whole[None, :]
    square = tl.sum(tl.load(squares + at, mask=known, other=0.0) + away * away * counts[:, None], 0)
    tl.store(moments + c, whole, mask=c < channels)
    tl.store(moments + channels + c, square / tl.maximum(rows - 1, 1), mask=c < channels)
    tl.store(moments + 2 * channels + c, tl.div_rn(1.0, tl.sqrt_rn(square / rows + eps)), mask=c < channels)


@triton.jit(do_not_specialize=["rows"])
def normalise(x, moments, gamma, beta, slope, added, y, rows, channels, ACTIVE: tl.constexpr,  # type: ignore[no-untyped-def]
              ADDED: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr, STAGES: tl.constexpr):
    """``y``, the norm of ``x``, with PReLU if ACTIVE, and with ``added`` (rows, channels) if ADDED."""
    part, parts = tl.program_id(0), tl.num_programs(0)
    c, there, at = places(channels, ROWS, CHANNELS)
    mean, factor, offset = shifted(moments, gamma, beta, c, there, channels)
    if ACTIVE:
        steep = tl.load(slope + c, mask=there, other=0.0)
    for number in tl.range(tiles_of(part, parts, rows, ROWS), num_stages=STAGES):
        tile = tl.cdiv(rows, ROWS) - 1 - part - number * parts
        known = inside(tile, rows, there, ROWS)
        first = (tile * ROWS).to(tl.int64) * channels
        values = tl.load(x + first + at, mask=known, other=0.0).to(tl.float32)
        values = (values - mean[None, :]) * factor[None, :] + offset[None, :]
        if ACTIVE:
            values = tl.where(values > 0.0, values, values * steep[None, :])
        if ADDED:
            values += tl.load(added + first + at, mask=known, other=0.0).to(tl.float32)
        tl.store(y + first + at, values.to(y.dtype.element_ty), mask=known)


@triton.jit(do_not_specialize=["rows"])
def sum_gradients(d_y, x, moments, gamma, beta, slope, sums, rows, channels,  # type: ignore[no-untyped-def]
                  ACTIVE: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr, STAGES: tl.constexpr):
    """Each part's sums over rows, for d_z the gradient of the norm's output: of ``d_z (x - mean)``, of ``d_z``, and
    with ACTIVE of the slope's gradient.

    :param sums: out, (3, parts, channels), the last of which is left alone unless ACTIVE.
    """
    part, parts = tl.program_id(0), tl.num_programs(0)
    c, there, at = places(channels, ROWS, CHANNELS)
    mean, factor, offset = shifted(moments, gamma, beta, c, there, channels)
    steep = tl.load(slope + c, mask=there, other=0.0) if ACTIVE else mean
    by_x = tl.zeros((ROWS, CHANNELS), tl.float32)
    alone = tl.zeros((ROWS, CHANNELS), tl.float32)
    if ACTIVE:
        by_slope = tl.zeros((ROWS, CHANNELS), tl.float32)
    for number in tl.range(tiles_of(part, parts, rows, ROWS), num_stages=STAGES):
        tile = part + number * parts
        known = inside(tile, rows, there, ROWS)
        first = (tile * ROWS).to(tl.int64) * channels
        d = tl.load(d_y + first + at, mask=known, other=0.0).to(tl.float32)
        values = tl.load(x + first + at, mask=known, other=0.0).to(tl.float32) - mean[None, :]
        d_z, below = before_activation(d, values, factor, offset, steep, ACTIVE)
        by_x += d_z * values
        alone += d_z
        if ACTIVE:
            by_slope += d * below
    tl.store(sums + part * channels + c, tl.sum(by_x, 0), mask=there)
    tl.store(sums + (parts + part) * channels + c, tl.sum(alone, 0), mask=there)
    if ACTIVE:
        tl.store(sums + (2 * parts + part) * channels + c, tl.sum(by_slope, 0), mask=there)


@triton.jit(do_not_specialize=["parts"])
def merge_sums(sums, moments, gradients, channels, parts, ACTIVE: tl.constexpr, PARTS: tl.constexpr,  # type: ignore[no-untyped-def]
               CHANNELS: tl.constexpr):
    """``gradients`` from the parts' sums; that of the slope is left alone unless ACTIVE."""
    part = tl.arange(0, PARTS)
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    there = c < channels
    known = (part < parts)[:, None] & there[None, :]
    at = part[:, None] * channels + c[None, :]
    by_x = tl.sum(tl.load(sums + at, mask=known, other=0.0), 0)
    root = tl.load(moments + 2 * channels + c, mask=there, other=0.0)
    tl.store(gradients + c, by_x * root, mask=there)
    for kind in tl.static_range(1, 3 if ACTIVE else 2):
        found = tl.sum(tl.load(sums + kind * parts * channels + at, mask=known, other=0.0), 0)
        tl.store(gradients + kind * channels + c, found, mask=there)


@triton.jit(do_not_specialize=["rows"])
def differentiate(d_y, x, moments, gamma, beta, slope, gradients, added, d_x, rows, channels,  # type: ignore[no-untyped-def]
                  ACTIVE: tl.constexpr, ADDED: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
                  STAGES: tl.constexpr):
    """``d_x``, the gradient of x, with x^ the norm before gamma and beta, and ``added`` (rows, channels) if ADDED:

        gamma / sqrt(variance + eps) * (d_z - mean(d_z) - x^ mean(d_z x^))
    """
    part, parts = tl.program_id(0), tl.num_programs(0)
    c, there, at = places(channels, ROWS, CHANNELS)
    mean, factor, offset = shifted(moments, gamma, beta, c, there, channels)
    steep = tl.load(slope + c, mask=there, other=0.0) if ACTIVE else mean
    root = tl.load(moments + 2 * channels + c, mask=there, other=0.0)
    by_x = tl.load(gradients + c, mask=there, other=0.0) * (-1.0 / rows) * root * factor
    alone = tl.load(gradients + channels + c, mask=there, other=0.0) * (-1.0 / rows) * factor
    for number in tl.range(tiles_of(part, parts, rows, ROWS), num_stages=STAGES):
        tile = tl.cdiv(rows, ROWS) - 1 - part - number * parts
        known = inside(tile, rows, there, ROWS)
        first = (tile * ROWS).to(tl.int64) * channels
        d = tl.load(d_y + first + at, mask=known, other=0.0).to(tl.float32)
        values = tl.load(x + first + at, mask=known, other=0.0).to(tl.float32) - mean[None, :]
        d_z, _ = before_activation(d, values, factor, offset, steep, ACTIVE)
        d_z = d_z * factor[None, :] + values * by_x[None, :] + alone[None, :]
        if ADDED:
            d_z += tl.load(added + first + at, mask=known, other=0.0).to(tl.float32)
        tl.store(d_x + first + at, d_z.to(d_x.dtype.element_ty), mask=known)
