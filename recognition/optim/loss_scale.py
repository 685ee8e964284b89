# SPDX-License-Identifier: Apache-2.0
"""Loss scaling for float16: many gradients are smaller than its smallest number (arXiv 1710.03740, section 3.2)."""
from __future__ import annotations

import numpy as np

SMALLEST_SCALE = 2.0**-14
STEPS_BEFORE_RISE = 2000  # steps without an overflow


class LossScale:
    """The factor of the loss. It is halved after an overflow, and doubled after 2000 steps without one up to its first
    value.

    A step whose gradients overflow is left out.
    """

    def __init__(self, start: float) -> None:
        self.start = self.value = start
        self.fell = 0.0  # the factor that the last step overflowed with, if a smaller one was left to try, else 0
        self._since = 0  # steps since the factor last changed

    def count(self, finite: bool) -> None:
        """Choose the factor of the next step. ``finite``: the gradients of this one, scaled by ``value``, were finite.
        """
        self._since += 1
        self.fell = self.value if not finite and self.value > SMALLEST_SCALE else 0.0
        if not finite:
            self.value, self._since = max(self.value / 2, SMALLEST_SCALE), 0
        elif self._since == STEPS_BEFORE_RISE:
            self.value, self._since = min(self.value * 2, self.start), 0

    def state(self) -> np.ndarray:
        """The factor and the steps since it last changed, float64 ``(2,)``, for a training state."""
        return np.array([self.value, self._since])

    def load(self, state: np.ndarray) -> None:
        self.value, self._since = float(state[0]), int(state[1])
