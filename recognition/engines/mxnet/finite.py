# SPDX-License-Identifier: Apache-2.0
"""A look at many MXNet arrays at once: are all of their numbers finite?"""
from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from recognition.engines.mxnet.imports import mx

ARRAYS_AT_ONCE = 100  # that one call sums up


def all_finite(*groups: Mapping[str, mx.nd.NDArray]) -> bool:
    """Whether the arrays of all groups, each of one device, hold no NaN and no Inf, once they are computed.

    Sums of squares, 35 times as fast as ``multi_all_finite`` on a CPU, tell nearly always; an array whose sum overflows
    is looked at number by number. All groups are queued before the first is waited for.
    """
    queued = [(arrays := list(group.values()), _queued_squares(arrays)) for group in groups]
    squares = [(arrays, np.concatenate([part.asnumpy() for part in parts] or [np.zeros(0)]))
               for arrays, parts in queued]
    return all(np.isfinite(square) or bool(np.isfinite(array.asnumpy()).all())
               for arrays, sums in squares for array, square in zip(arrays, sums))


def _queued_squares(arrays: list[mx.nd.NDArray]) -> list[mx.nd.NDArray]:
    """The sums of the squares of each array, ARRAYS_AT_ONCE of them in each result."""
    groups = [arrays[low : low + ARRAYS_AT_ONCE] for low in range(0, len(arrays), ARRAYS_AT_ONCE)]
    return [mx.nd.multi_sum_sq(*group, num_arrays=len(group)) for group in groups]
