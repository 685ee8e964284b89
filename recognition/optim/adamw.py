# SPDX-License-Identifier: Apache-2.0
"""AdamW: Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2), as in PyTorch:

    m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  w -= lr (m^ / (sqrt(v^) + eps) + wd w)

with m^ = m / (1 - b1^t), v^ = v / (1 - b2^t) at the t-th update. The decay is a factor of the rate, not of the base
rate, and falls on every parameter, as that of SGD does.
"""
from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np


class AdamWStep(NamedTuple):
    """One update, with the corrections for moments that began at zero taken out of the loops:

    ``w -= lr * (factor * m / (sqrt(v) + eps) + wd * w)``, factor ``sqrt(1 - b2^t) / (1 - b1^t)``, eps with that root.
    """

    lr: float
    wd: float
    beta1: float
    beta2: float
    factor: float
    eps: float


class AdamW(NamedTuple):
    """What stays the same from update to update; PyTorch's defaults."""

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def step(self, lr: float, wd: float, updates: int) -> AdamWStep:
        """:param updates: t, this update included. By the number of steps, not of a centre's own updates, for a centre
            that is not drawn in each: Partial FC's AdamW counts so."""
        beta1, beta2 = (float(np.float32(beta)) for beta in self[:2])  # as the loops have them
        root = math.sqrt(1 - beta2**updates)
        return AdamWStep(lr, wd, beta1, beta2, root / (1 - beta1**updates), self.eps * root)
