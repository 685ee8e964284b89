# SPDX-License-Identifier: Apache-2.0
"""The Numba loop of AdamW over class centres, beside those of :mod:`recognition.engines.cpu.kernels`."""
from __future__ import annotations

import numba
import numpy as np

from recognition.engines.cpu.kernels import compiled
from recognition.engines.cpu.tiles import dot
from recognition.head.shard import EPSILON


@numba.njit(error_model="numpy")  # else a check for a divisor of 0 keeps the loop from becoming vector code
def _step_centre(w, m, v, g, along, beta1, beta2, factor, eps, decay):  # type: ignore[no-untyped-def]
    rest1, rest2 = np.float32(1) - beta1, np.float32(1) - beta2
    for d in range(w.shape[0]):
        slope = g[d] - along * w[d]
        m[d] = beta1 * m[d] + rest1 * slope
        v[d] = beta2 * v[d] + rest2 * (slope * slope)
        w[d] -= factor * m[d] / (np.sqrt(v[d]) + eps) + decay * w[d]


@compiled
def update_centres_adamw(centres, first_moment, second_moment, rows, gradient, inverse, normalised, beta1, beta2,
                         factor, eps, decay):  # type: ignore[no-untyped-def]
    """Gradient through the norm and AdamW in one pass over a chunk of the centres; else as ``update_centres``.

    ``second_moment`` (all rows, D); ``factor`` with the learning rate, ``decay`` the rate times the weight decay.
    """
    overflowed = 0
    for i in range(rows.shape[0]):
        r = rows[i]
        w, along = centres[r], np.float32(0)
        if normalised:
            along = dot(gradient[i], w) * inverse[r] * inverse[r]
        _step_centre(w, first_moment[r], second_moment[r], gradient[i], along, beta1, beta2, factor, eps, decay)
        square = dot(w, w)
        if normalised:
            inverse[r] = np.float32(1) / np.sqrt(square + EPSILON)
        overflowed += 0 if square < np.inf else 1
    return overflowed
