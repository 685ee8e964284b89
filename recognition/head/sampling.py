# SPDX-License-Identifier: Apache-2.0
"""The choice of the classes that take part in a step: Partial FC (An et al., 2021, section 3.3).

They are all classes of the global batch (the positives), and each other class with a probability, the ratio. The other
centres keep their values and momentum and do not decay.

A class is chosen by a hash of its number and of the step's key. So a draw does not depend on the cut into shards, needs
no order of classes, and is the same on every device: ``engines/torch`` has its own form. The number of classes varies
by its square root: 1,000,000 of 10,000,000 are 1,000,000 +- 950.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recognition.head.rounding import hashed, key_of

_STREAM = 0x5046  # random bits of its own, apart from those of rounding
CLASSES_AT_ONCE = 1 << 16  # whose hashes a processor's cache holds


@dataclass(frozen=True)
class ClassSampler:
    """A draw of the classes of a step. It is a function of the seed, the labels, the step and the class alone."""

    ratio: float = 1.0
    seed: int = 0

    def key(self, step: int) -> int:
        """The 32-bit key of a step."""
        return key_of(self.seed, step, _STREAM)

    @property
    def threshold(self) -> int:
        """Classes whose hash is below are chosen: ``hashed(number ^ key)``, of 32 bits."""
        return min(round(self.ratio * 2**32), 2**32 - 1)

    def __call__(self, labels: np.ndarray, step: int, start: int, stop: int) -> np.ndarray | None:
        """The classes among ``start .. stop - 1`` for a batch with ``labels`` (B,) int64: ascending int64, one at
        least; None: all."""
        if self.ratio >= 1:
            return None
        chosen, key = np.empty(stop - start, bool), np.uint32(self.key(step))
        for low in range(start, stop, CLASSES_AT_ONCE):
            numbers = np.arange(low, min(low + CLASSES_AT_ONCE, stop), dtype=np.uint32)
            chosen[low - start : low - start + len(numbers)] = hashed(numbers ^ key) < self.threshold
        chosen[labels[(labels >= start) & (labels < stop)] - start] = True
        if len(chosen) and not chosen.any():
            chosen[0] = True
        return np.flatnonzero(chosen) + start
