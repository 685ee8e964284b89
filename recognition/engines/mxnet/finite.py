# SPDX-License-Identifier: Apache-2.0
"""Checks and norms of many MXNet arrays at once."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from recognition.engines.mxnet.imports import mx

ARRAYS_AT_ONCE = 100  # in one call


def all_finite(*groups: Mapping[str, mx.nd.NDArray]) -> bool:
    """True if the arrays of all groups, each of one device, hold no NaN and no Inf; waits for them.

    Finite sums of squares are proof enough, and 35 times as fast as ``multi_all_finite`` on a CPU; if a sum overflows,
    the numbers of that array are checked one by one. All groups are queued before the first is waited for.
    """
    queued = [_queued_squares(group) for group in groups]
    squares = [_waited(parts) for parts in queued]
    return all(np.isfinite(square) or bool(np.isfinite(array.asnumpy()).all())
               for group, sums in zip(groups, squares) for array, square in zip(group.values(), sums))


def all_usable(arrays: Mapping[str, mx.nd.NDArray]) -> bool:
    """True if the norm of each array is below 1.8e19, so that its square is a float32 number."""
    return bool(np.isfinite(_waited(_queued_squares(arrays))).all())


def norms(arrays: Sequence[mx.nd.NDArray]) -> np.ndarray:
    """The Euclidean norm of each array, float64 (arrays,)."""
    return np.array([np.sqrt(np.square(array.asnumpy(), dtype=np.float64).sum()) for array in arrays])


def _queued_squares(group: Mapping[str, mx.nd.NDArray]) -> list[mx.nd.NDArray]:
    """The sums of the squares of each array, ARRAYS_AT_ONCE of them in each result."""
    arrays = list(group.values())
    parts = [arrays[low : low + ARRAYS_AT_ONCE] for low in range(0, len(arrays), ARRAYS_AT_ONCE)]
    return [mx.nd.multi_sum_sq(*part, num_arrays=len(part)) for part in parts]


def _waited(parts: list[mx.nd.NDArray]) -> np.ndarray:
    """The sums of :func:`_queued_squares`, float32 (arrays,)."""
    return np.concatenate([part.asnumpy() for part in parts] or [np.zeros(0, np.float32)])
