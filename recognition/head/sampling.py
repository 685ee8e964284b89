# SPDX-License-Identifier: Apache-2.0
"""Which classes of a shard take part in a step: Partial FC (An et al., 2021, section 3.3).

All classes of the global batch that lie in the shard (the positives), and negatives drawn uniformly from its others, up
to a share of the shard. Centres that are not drawn keep their values and momentum and do not decay.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_TAG = 0x5046  # another stream than those of W, order and masks


@dataclass(frozen=True)
class ClassSampler:
    """Draws the classes of a step: a function of the seed, the step and the shard's range alone."""

    ratio: float = 1.0
    seed: int = 0

    def __call__(self, labels: np.ndarray, step: int, start: int, stop: int) -> np.ndarray | None:
        """Ascending classes of ``start .. stop - 1`` for a batch with ``labels`` (B,), int64; None stands for all."""
        positives = np.unique(labels[(labels >= start) & (labels < stop)])
        count = max(round(self.ratio * (stop - start)), len(positives), 1)
        if count >= stop - start:
            return None
        stream = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, _TAG, step, start])))
        others = stop - start - len(positives)
        # Numbers among the negatives, then moved past the positives that lie before them.
        drawn = stream.choice(others, count - len(positives), replace=False, shuffle=False) + start
        drawn += np.searchsorted(positives - np.arange(len(positives)), drawn, side="right")
        return np.sort(np.concatenate([positives, drawn]))
