# SPDX-License-Identifier: Apache-2.0
"""Numba loops over a shard of class centres, each one pass over W.

The (rows, B) buffer has a row for each centre, so that what a step does with it runs along the batch: sums over classes
are sums of whole vectors, in an order that is written down. Classes are cut into at most MOST_GROUPS ranges. Each range
has its own sums, which are added at the end: the bits do not depend on the number of threads.

B is padded to a multiple of 16 with rows of zeros; their columns of the buffer are never read as results.
"""
from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

from recognition.engines.cpu.tiles import NARROW_COLUMNS, WIDE_COLUMNS, bits_of, dot, float_of, multiply, prefetch
from recognition.engines.sizes import LEAST_ROWS_A_GROUP, MOST_GROUPS
from recognition.head.shard import EPSILON

# No fastmath: where sums may be reordered and products fused, Numba's code fresh from the compiler and that from its
# cache gave different bits, and a run that goes on must get those of the run that stopped.
LOGIT_ROWS, GRADIENT_ROWS = 96, 256  # rows at once: of the logits, of the gradient by x
MINUS_INFINITY = np.float32(-np.inf)


def compiled(function: Any) -> Any:
    """Compile by ``numba.njit``, and keep the result on disk if Numba finds a folder that it may write to.

    Several threads call these functions, each for its own range (Numba's own loops over threads take four times as
    long to compile).
    """
    try:
        return numba.njit(cache=True, nogil=True, no_cfunc_wrapper=True)(function)
    except RuntimeError:  # neither __pycache__ nor the user's cache: compiled anew in every run
        return numba.njit(nogil=True)(function)


# A part of a kernel, put into it before types are found: compiled once, where a function of its own is compiled twice.
inlined = numba.njit(inline="always")


def padded(batch: int) -> int:
    """The number of columns of the buffer for a batch."""
    return -(-batch // NARROW_COLUMNS) * NARROW_COLUMNS


def bounds_of(rows: int, sub_centres: int) -> np.ndarray:
    """The bounds of a shard's groups, int64 (groups + 1,): at whole classes and whole tiles."""
    unit = math.lcm(6, sub_centres)
    groups = min(MOST_GROUPS, max(1, rows // max(unit, LEAST_ROWS_A_GROUP)))
    bounds = np.arange(groups + 1) * (-(-rows // unit)) // groups * unit
    bounds[-1] = rows
    return bounds


def column_blocks(matrix: np.ndarray) -> np.ndarray:
    """Cut a float32 (K, N) into blocks of columns as wide as a tile; a flat array, one block after the other.

    The block that begins at column j begins at element ``j * K``.
    """
    depth, columns = matrix.shape
    blocks, start = np.empty(matrix.size, np.float32), 0
    while start < columns:
        width = _width(columns - start)
        blocks[start * depth : (start + width) * depth] = matrix[:, start : start + width].ravel()
        start += width
    return blocks


@inlined
def _block_width(left):  # type: ignore[no-untyped-def]
    """The width of the next block when ``left`` columns are left."""
    return WIDE_COLUMNS if left >= WIDE_COLUMNS else NARROW_COLUMNS if left >= NARROW_COLUMNS else 1


_width = _block_width.py_func


@inlined
def _at(array):  # type: ignore[no-untyped-def]
    return np.int64(array.ctypes.data)


@inlined
def _exp(x):  # type: ignore[no-untyped-def]
    """e^x for float32 x up to 88: 2^n times a polynomial on +-log(2)/2 (Cephes' expf, relative error 1e-7).

    Below -87 it is 0; NaN stays NaN. Plain operations, so that a loop over it becomes vector code.
    """
    shifted = x * np.float32(1.44269504) + np.float32(12582912)  # 1.5 * 2^23: the low bits hold the nearest integer
    n = shifted - np.float32(12582912)
    r = x - n * np.float32(0.693359375) - n * np.float32(-2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1)
    power = float_of(np.int32((bits_of(shifted) + np.int32(127)) << np.int32(23)))
    return np.float32(0) if x < np.float32(-87) else p * power


@compiled
def inverse_norms(centres, inverse):  # type: ignore[no-untyped-def]
    """Compute ``inverse[r] = 1 / sqrt(|centres[r]|^2 + 1e-10)``; centres (R, D), inverse (R,), float32."""
    for r in range(centres.shape[0]):
        inverse[r] = np.float32(1) / np.sqrt(dot(centres[r], centres[r]) + EPSILON)


@compiled
def similarities_at(x, centres, rows, values):  # type: ignore[no-untyped-def]
    """Compute ``values[i, k] = x[i] . centres[rows[i, k]]``; x (n, D), rows (n, K) int64, values (n, K), float32."""
    for i in range(rows.shape[0]):
        for k in range(rows.shape[1]):
            values[i, k] = dot(x[i], centres[rows[i, k]])


@inlined
def _keep_nearest(logits, sub_centres):  # type: ignore[no-untyped-def]
    """Leave the largest of each class's sub-centres, -inf at the others: their probability and gradient are 0."""
    for first in range(0, logits.shape[0], sub_centres):
        for b in range(logits.shape[1]):
            best = 0
            for k in range(1, sub_centres):
                if logits[first + k, b] > logits[first + best, b]:
                    best = k
            for k in range(sub_centres):
                if k != best:
                    logits[first + k, b] = MINUS_INFINITY


@inlined
def _put_targets(logits, first, sub_centres, columns, target_logits):  # type: ignore[no-untyped-def]
    """Replace the logits of the targets that lie in these rows; their class's other sub-centres become -inf."""
    for b in range(columns.shape[0]):
        row = columns[b] - first
        if 0 <= row < logits.shape[0]:
            for other in range(row - row % sub_centres, row - row % sub_centres + sub_centres):
                logits[other, b] = MINUS_INFINITY
            logits[row, b] = target_logits[b]


@inlined
def _count_in(logits, highest, total, largest, part):  # type: ignore[no-untyped-def]
    """Add logits to the maximum (B,) and the float64 sum of exp(z - maximum) (B,) of each row of the batch."""
    for b in range(highest.shape[0]):  # loops, not slices: they compile in a third of the time
        largest[b] = highest[b]
        part[b] = 0
    for row in range(logits.shape[0]):
        for b in range(logits.shape[1]):
            largest[b] = max(largest[b], logits[row, b])
    for b in range(highest.shape[0]):
        if largest[b] > highest[b]:
            total[b] *= np.exp(np.float64(highest[b]) - np.float64(largest[b]))
        highest[b] = largest[b]
        if largest[b] == MINUS_INFINITY:
            largest[b] = 0  # exp(-inf - 0) is 0, -inf - -inf is not a number
    for row in range(logits.shape[0]):
        for b in range(logits.shape[1]):
            part[b] += _exp(logits[row, b] - largest[b])
    for b in range(highest.shape[0]):
        total[b] += part[b]


@inlined
def _similarities(centres, rows, following, blocks, identity, products):  # type: ignore[no-untyped-def]
    """Compute ``products = centres[rows] X``, X in blocks, and prefetch the rows that come next."""
    dim, batch, at = centres.shape[1], products.shape[1], _at(centres)
    column = 0
    while column < batch:
        width = _block_width(batch - column)
        for i in range(0, len(rows), 6):
            if column == 0:
                for r in following[i : i + 6]:
                    prefetch(at + r * dim * 4, dim * 4)
            multiply(width, min(6, len(rows) - i), at, _at(rows) + 8 * i, dim * 4, 4, _at(blocks) + column * dim * 4,
                     _at(identity), width * 4, _at(products) + (i * batch + column) * 4, batch * 4, dim, 0)
        column += width


@compiled
def logit_statistics(centres, rows, blocks, inverse, bias, scale, sub_centres, ceiling, columns, target_logits, start,
                     stop, identity, logits, scratch, statistics):  # type: ignore[no-untyped-def]
    """Logits of a batch with a group of centres, and the two numbers a row of the batch that the other shards need.

    :param rows: (R,) int64, those of ``centres`` (any, D) float32 that take part.
    :param blocks: :func:`column_blocks` of the transposed batch (D, B).
    :param inverse: (R,) float32, inverse norms of the centres; ``bias``: (R,) float32.
    :param ceiling: a logit above it that is not a target's does not count; inf for none.
    :param columns: (B,) int64, the place in ``rows`` of the target, negative where its class is in another shard.
    :param target_logits: (B,) float32, the logit with margin that replaces the one there.
    :param identity: 0, 1, 2, ..., int64, at least D and B long.
    :param logits: (R, B) float32, out, of the group alone.
    :param start, stop: the group, places in ``rows``.
    :param scratch: (3, B) float32, of this group alone.
    :param statistics: (2, B) float64, out: the maximum of z and the sum of ``exp(z - maximum)``.
    """
    batch = logits.shape[1]
    step = sub_centres * 6 * max(1, LOGIT_ROWS // (6 * sub_centres))
    highest, largest, part, total = scratch[0], scratch[1], scratch[2], statistics[1]
    for b in range(batch):
        highest[b] = MINUS_INFINITY
        total[b] = 0
    for first in range(start, stop, step):
        last = min(first + step, stop)
        z = logits[first:last]
        _similarities(centres, rows[first:last], rows[last : min(last + step, stop)], blocks, identity, z)
        for row in range(last - first):
            factor, shift = scale * inverse[first + row], bias[first + row]
            for b in range(batch):
                z[row, b] = z[row, b] * factor + shift
        if sub_centres > 1:
            _keep_nearest(z, sub_centres)
        if ceiling < np.inf:
            for row in range(last - first):
                for b in range(batch):
                    z[row, b] = MINUS_INFINITY if z[row, b] > ceiling else z[row, b]
        _put_targets(z, first, sub_centres, columns, target_logits)
        _count_in(z, highest, total, largest, part)
    for b in range(batch):
        statistics[0, b] = highest[b]


@compiled
def feature_gradient(centres, rows, inverse, factor, log_sums, columns, target_gradients, start, stop, identity,
                     logits, d_x):  # type: ignore[no-untyped-def]
    """Turn logits into the mean loss's gradient by inner products, in place, and find a group's part of that by x.

    :param factor: the scale over the number of rows that the loss is the mean of.
    :param log_sums: (B,) float32, log of the sum of all exponentials; inf where the batch is padded.
    :param columns: (B,) int64, as for :func:`logit_statistics`.
    :param target_gradients: (B,) float32: ``(p_y - 1) / B * d z_y / d similarity``.
    :param logits: (R, B) float32, in: :func:`logit_statistics`; out: the gradient, divided by the centres' norms.
    :param start, stop: the group, places in ``rows``.
    :param d_x: (B, D) float32, out.
    """
    dim, batch = centres.shape[1], logits.shape[1]
    for b in range(batch):
        for d in range(dim):
            d_x[b, d] = 0
    for first in range(start, stop, GRADIENT_ROWS):
        last = min(first + GRADIENT_ROWS, stop)
        g = logits[first:last]
        for row in range(last - first):
            slope = factor * inverse[first + row]
            for b in range(batch):
                g[row, b] = _exp(g[row, b] - log_sums[b]) * slope
        for b in range(columns.shape[0]):
            if first <= columns[b] < last:
                g[columns[b] - first, b] = target_gradients[b] * inverse[columns[b]]
        column = 0
        while column < dim:
            width = _block_width(dim - column)
            for place in range(last, min(last + GRADIENT_ROWS, stop)):
                prefetch(_at(centres) + (rows[place] * dim + column) * 4, width * 4)
            multiply(width, batch, _at(g), _at(identity), 4, batch * 4, _at(centres) + column * 4,
                     _at(rows) + 8 * first, dim * 4, _at(d_x) + column * 4, dim * 4, last - first, 1)
            column += width


@compiled
def centre_gradients(g, blocks, identity, gradient):  # type: ignore[no-untyped-def]
    """The gradient of the mean loss by centres, before it goes through their norms: ``gradient = g X``.

    :param g: (n, B) float32, rows of what :func:`feature_gradients` leaves; ``gradient``: (n, D) float32, out.
    :param blocks: :func:`column_blocks` of the batch (B, D); ``identity``: at least n and B long.
    """
    count, batch, dim = g.shape[0], g.shape[1], gradient.shape[1]
    column = 0
    while column < dim:
        width = _block_width(dim - column)
        multiply(width, count, _at(g), _at(identity), batch * 4, 4, _at(blocks) + column * batch * 4, _at(identity),
                 width * 4, _at(gradient) + column * 4, dim * 4, batch, 0)
        column += width


@inlined
def _update_centre(w, m, g, inverse, normalised, lr, mu, wd):  # type: ignore[no-untyped-def]
    """One centre's step; returns its squared norm."""
    decay = wd
    if normalised:
        decay = wd - dot(g, w) * inverse * inverse
    for d in range(w.shape[0]):
        m[d] = mu * m[d] - lr * (g[d] + decay * w[d])
        w[d] += m[d]
    return dot(w, w)


@compiled
def update_centres(centres, momentum, rows, gradient, inverse, normalised, lr, mu, wd):  # type: ignore[no-untyped-def]
    """Gradient through the norm and SGD with momentum in one pass over a chunk of the centres, those of ``rows`` (n,).

    ``gradient`` (n, D) is that of :func:`centre_gradients`. If the centres are ``normalised``, ``inverse`` (all rows,)
    gets the new inverse norms, by the same sums as in :func:`inverse_norms`: a run that loads W must get the same bits
    as the run that made it. All float32. Returns the number of centres whose squared norm is not finite now.
    """
    overflowed = 0
    for i in range(rows.shape[0]):
        r = rows[i]
        square = _update_centre(centres[r], momentum[r], gradient[i], inverse[r], normalised, lr, mu, wd)
        if normalised:
            inverse[r] = np.float32(1) / np.sqrt(square + EPSILON)
        overflowed += 0 if square < np.inf else 1
    return overflowed
