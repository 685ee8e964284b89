# SPDX-License-Identifier: Apache-2.0
"""Loss scaling for float16, whose smallest numbers are larger than many gradients (arXiv 1710.03740, section 3.2)."""
from __future__ import annotations

import numpy as np

LEAST = 2.0**-14
RAISE_AFTER = 2000  # steps without an overflow


class LossScale:
    """The factor of the loss: halved after an overflow, doubled after 2000 steps without one, at most what it began as.

    A step whose gradients overflow is left out.
    """

    def __init__(self, start: float) -> None:
        self.start = self.value = start
        self.fell = 0.0  # the factor that the last step overflowed with, if a smaller one was left to try, else 0
        self._since = 0  # steps since the factor last changed

    def count(self, finite: bool) -> None:
        """After a step, by whether its gradients, scaled by ``value``, were finite: the factor for the next step."""
        self._since += 1
        self.fell = self.value if not finite and self.value > LEAST else 0.0
        if not finite:
            self.value, self._since = max(self.value / 2, LEAST), 0
        elif self._since == RAISE_AFTER:
            self.value, self._since = min(self.value * 2, self.start), 0

    def state(self) -> np.ndarray:
        """What a training state keeps, float64 ``(2,)``."""
        return np.array([self.value, self._since])

    def load(self, state: np.ndarray) -> None:
        self.value, self._since = float(state[0]), int(state[1])
