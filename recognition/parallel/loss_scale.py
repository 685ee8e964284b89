# SPDX-License-Identifier: Apache-2.0
"""Loss scaling for float16, whose smallest numbers are larger than many gradients (arXiv 1710.03740, section 3.2)."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recognition.mxnet_compat import mx

LEAST = 2.0**-14
RAISE_AFTER = 2000  # steps without an overflow
GROUP = 100  # gradients looked at in one call


class LossScale:
    """The factor of the loss: halved after an overflow, doubled after 2000 steps without one, at most what it began as.

    A step whose gradients overflow is skipped.
    """

    def __init__(self, start: float) -> None:
        self.start = self.value = start
        self._since = 0  # steps since the factor last changed

    def accepts(self, gradients: Sequence[mx.nd.NDArray]) -> bool:
        """Whether all gradients of a step, scaled by ``value``, are finite; the factor moves for the next step."""
        finite = all(_finite(gradients[low : low + GROUP]) for low in range(0, len(gradients), GROUP))
        self._since += 1
        if not finite:
            self.value, self._since = max(self.value / 2, LEAST), 0
        elif self._since == RAISE_AFTER:
            self.value, self._since = min(self.value * 2, self.start), 0
        return finite

    def state(self) -> np.ndarray:
        """What a training state keeps, float64 ``(2,)``."""
        return np.array([self.value, self._since])

    def load(self, state: np.ndarray) -> None:
        self.value, self._since = float(state[0]), int(state[1])


def _finite(arrays: Sequence[mx.nd.NDArray]) -> bool:
    return bool(mx.nd.multi_all_finite(*arrays, num_arrays=len(arrays)).asscalar())
