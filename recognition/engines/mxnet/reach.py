# SPDX-License-Identifier: Apache-2.0
"""How far updates can have carried what learns: a few numbers a step that tell when one may overflow float32.

Such an update is then done so that it can be taken back, which costs a copy; all others cost nothing.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Callable

import numpy as np

from recognition.engines.mxnet.imports import mx

SAFE = 1e15  # of norms; the square of 1.8e19 is no float32 number
GROUP = 100  # arrays that one call looks at


class Reach:
    """A bound of the largest norm of what learns, kept up to date by adding what each update moves at most."""

    def __init__(self, largest_norm: Callable[[], float]) -> None:
        """:param largest_norm: looks at all of it; asked for at first, and whenever the bound has become too large."""
        self._largest_norm, self._bound = largest_norm, np.inf

    def __call__(self, lr: float, gradient: float, wd: float, mu: float) -> bool:
        """Whether an update may overflow; counts it as done.

        :param gradient: no norm of a gradient is larger. AdamW, whose moves have the size of the rate, counts as 1.
        :param mu: of SGD, whose momentum repeats a move ``1 / (1 - mu)`` times in all; 0 for AdamW.
        """
        for bound in (lambda: self._bound, self._largest_norm):
            norm = float(bound())
            self._bound = norm + float(lr) * (max(float(gradient), 1.0) + wd * norm) / (1 - mu)
            if self._bound <= SAFE and gradient <= SAFE:
                return False
        return True


def queued_squares(arrays: Sequence[mx.nd.NDArray]) -> list[mx.nd.NDArray]:
    """Sums of the squares of each of the arrays of one device, once they are computed, GROUP of them in each result.

    35 times as fast as ``multi_all_finite`` on a CPU.
    """
    groups = [arrays[low : low + GROUP] for low in range(0, len(arrays), GROUP)]
    return [mx.nd.multi_sum_sq(*group, num_arrays=len(group)) for group in groups]


def waited(queued: Sequence[mx.nd.NDArray]) -> np.ndarray:
    """The sums of :func:`queued_squares`, float64 (arrays,)."""
    return np.concatenate([part.asnumpy() for part in queued] or [np.zeros(0)]).astype(np.float64)


def all_finite(arrays: Sequence[mx.nd.NDArray], squares: np.ndarray) -> bool:
    """Whether arrays hold no NaN and no Inf. ``squares``: their sums; a sum may be infinite where no number is."""
    return all(bool(np.isfinite(array.asnumpy()).all())
               for array, square in zip(arrays, squares) if not np.isfinite(square))


def overflowed(arrays: Mapping[str, mx.nd.NDArray]) -> list[str]:
    """The names of the arrays whose norms are no longer below the root of float32's largest number."""
    squares = waited(queued_squares(list(arrays.values())))
    return [name for name, square in zip(arrays, squares) if not np.isfinite(square)]
