# SPDX-License-Identifier: Apache-2.0
"""The choice of the classes of a shard that take part in a step: Partial FC (An et al., 2021, section 3.3).

They are all classes of the global batch that lie in the shard (the positives), and negatives drawn uniformly from its
other classes, up to a share of the shard. The other centres keep their values and momentum and do not decay.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_STREAM = 0x5046  # a random stream of its own, apart from those of W, order and masks


@dataclass(frozen=True)
class ClassSampler:
    """A draw of the classes of a step. It is a function of the seed, the labels, the step and the shard's range alone.
    """

    ratio: float = 1.0
    seed: int = 0

    def __call__(self, labels: np.ndarray, step: int, start: int, stop: int) -> np.ndarray | None:
        """The classes among ``start .. stop - 1`` for a batch with ``labels`` (B,) int64: ascending int64, or None for
        all of them."""
        positives = np.unique(labels[(labels >= start) & (labels < stop)])
        count = max(round(self.ratio * (stop - start)), len(positives), 1)
        if count >= stop - start:
            return None
        stream = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, _STREAM, step, start])))
        others = stop - start - len(positives)
        # Draw numbers among the negatives, then add the number of positives that lie before each.
        drawn = stream.choice(others, count - len(positives), replace=False, shuffle=False) + start
        drawn += np.searchsorted(positives - np.arange(len(positives)), drawn, side="right")
        return np.sort(np.concatenate([positives, drawn]))
