# SPDX-License-Identifier: Apache-2.0
"""Numba loops over a shard of class centres: each is one pass over memory where NumPy would need several."""
from __future__ import annotations

from typing import Any, Callable

import numba
import numpy as np

# No fastmath: where sums may be reordered and products fused, Numba's code fresh from the compiler and that from its
# cache gave different bits, and a run that goes on must get those of the run that stopped.
EPSILON = np.float32(1e-10)  # under the square root of every norm, as in the legacy L2Normalization


def _compiled(**options: Any) -> Callable[[Any], Any]:
    """``numba.njit`` that keeps what it compiles on disk, if Numba finds a folder that it may write to."""

    def compile_function(function: Any) -> Any:
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # neither __pycache__ nor the user's cache: compiled anew in every run
            return numba.njit(**options)(function)

    return compile_function


@_compiled(parallel=True)
def inverse_norms(centres, rows, inverse):  # type: ignore[no-untyped-def]
    """``inverse[r] = 1 / sqrt(|centres[r]|^2 + 1e-10)`` for r in ``rows``; centres (R, D), inverse (R,), float32."""
    for i in numba.prange(rows.shape[0]):
        r = rows[i]
        total = np.float32(0)
        for d in range(centres.shape[1]):
            total += centres[r, d] * centres[r, d]
        inverse[r] = np.float32(1) / np.sqrt(total + EPSILON)


@_compiled(parallel=True)
def gather_rows(centres, rows, gathered):  # type: ignore[no-untyped-def]
    """``gathered[i] = centres[rows[i]]``."""
    for i in numba.prange(rows.shape[0]):
        gathered[i] = centres[rows[i]]


@_compiled()
def _scale_row(row, inverse, bias, scale):  # type: ignore[no-untyped-def]
    """``row = scale * row * inverse + bias`` in place, and its maximum."""
    highest = np.float32(-np.inf)
    for c in range(row.shape[0]):
        value = scale * row[c] * inverse[c] + bias[c]
        row[c] = value
        highest = max(highest, value)
    return highest


@_compiled()
def _keep_nearest(row, sub_centres):  # type: ignore[no-untyped-def]
    """Leave the largest of each class's sub-centres, -inf at the others: their probability and gradient are 0."""
    for first in range(0, row.shape[0], sub_centres):
        best = first
        for c in range(first + 1, first + sub_centres):
            if row[c] > row[best]:
                best = c
        for c in range(first, first + sub_centres):
            if c != best:
                row[c] = -np.inf


@_compiled()
def _exponentials(row, highest):  # type: ignore[no-untyped-def]
    """``row = exp(row - highest)`` in place, and its sum (blocks in float32, their total in float64)."""
    total = np.float64(0)
    for start in range(0, row.shape[0], 4096):
        part = np.float32(0.0)
        for c in range(start, min(start + 4096, row.shape[0])):
            value = np.exp(row[c] - highest)
            row[c] = value
            part += value
        total += part
    return total


@_compiled(parallel=True)
def row_statistics(logits, inverse, bias, scale, sub_centres, columns, target_logits, statistics):  # type: ignore[no-untyped-def]
    """From similarities to exponentials in place, with the two numbers a row that the other shards need.

    :param logits: (B, R) float32, in: inner products with the centres; out: ``exp(z - max)``.
    :param inverse: (R,) float32, inverse norms of the centres; ``bias``: (R,) float32.
    :param columns: (B,) int64, the column of the row's target, -1 where its class is in another shard.
    :param target_logits: (B,) float32, the logit with margin that replaces the one at ``columns``.
    :param statistics: (B, 2) float64, out: the maximum of z and the sum of ``exp(z - max)``.
    """
    for b in numba.prange(logits.shape[0]):
        row, column = logits[b], columns[b]
        if column >= 0:  # the target's class must not count as one of the others
            first = column - column % sub_centres
            row[first : first + sub_centres] = -np.inf
        highest = _scale_row(row, inverse, bias, scale)
        if sub_centres > 1:
            _keep_nearest(row, sub_centres)
        if column >= 0:
            row[column] = target_logits[b]
            highest = max(highest, target_logits[b])
        statistics[b, 0] = highest
        statistics[b, 1] = _exponentials(row, highest)


@_compiled(parallel=True)
def similarity_gradient(exponentials, inverse, scale, row_factors, columns, target_gradients):  # type: ignore[no-untyped-def]
    """From exponentials to the gradient of the mean loss by the inner products, in place.

    :param exponentials: (B, R) float32, as :func:`row_statistics` leaves them.
    :param row_factors: (B,) float32: ``exp(max_i - log sum exp over all shards) / B``.
    :param target_gradients: (B,) float32: ``(p_y - 1) / B * d z_y / d similarity``.
    """
    for b in numba.prange(exponentials.shape[0]):
        row = exponentials[b]
        factor = row_factors[b] * scale
        for c in range(row.shape[0]):
            row[c] *= factor * inverse[c]
        if columns[b] >= 0:
            row[columns[b]] = target_gradients[b] * inverse[columns[b]]


@_compiled(parallel=True)
def update_centres(centres, momentum, rows, gradient, inverse, normalised, lr, mu, wd):  # type: ignore[no-untyped-def]
    """Gradient through the norm and SGD with momentum in one pass over a chunk of the centres, those of ``rows`` (n,).

    ``gradient`` (n, D) is that by the inner products' centres, already divided by the norms. All float32. The new
    norms are left to :func:`inverse_norms`: a run that loads W must get the same bits as one that made it.
    """
    for i in numba.prange(rows.shape[0]):
        r = rows[i]
        w, m, g = centres[r], momentum[r], gradient[i]
        along = np.float32(0)
        if normalised:
            for d in range(w.shape[0]):
                along += g[d] * w[d]
            along *= inverse[r] * inverse[r]
        decay = wd - along
        for d in range(w.shape[0]):
            m[d] = mu * m[d] - lr * (g[d] + decay * w[d])
            w[d] += m[d]
