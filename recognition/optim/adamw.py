# SPDX-License-Identifier: Apache-2.0
"""AdamW: Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2), as in PyTorch:

    m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  w -= lr (m^ / (sqrt(v^) + eps) + wd w)

with m^ = m / (1 - b1^t), v^ = v / (1 - b2^t) at the t-th update. The decay is scaled by the scheduled rate, not by the
base rate, and applies to every parameter, like that of SGD.
"""
from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np


class AdamWStep(NamedTuple):
    """The numbers of one update: ``w -= lr * (factor * m / (sqrt(v) + eps) + wd * w)``.

    ``factor`` is ``sqrt(1 - b2^t) / (1 - b1^t)`` and ``eps`` contains the same root: they correct for moments that
    began at zero, so that the loops over parameters need not.
    """

    lr: float
    wd: float
    beta1: float
    beta2: float
    factor: float
    eps: float
    updates: int = 0  # t: centres of 16 bits are rounded by it


class AdamW(NamedTuple):
    """The constants of AdamW, with PyTorch's defaults."""

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def step(self, lr: float, wd: float, updates: int) -> AdamWStep:
        """The numbers of the ``updates``-th update.

        :param updates: t, this update included. It counts the steps of the run, also for a centre that is not drawn in
            each: Partial FC's AdamW counts so.
        """
        beta1, beta2 = (float(np.float32(beta)) for beta in self[:2])  # rounded to float32, as the loops use them
        root = math.sqrt(1 - beta2**updates)
        return AdamWStep(lr, wd, beta1, beta2, root / (1 - beta1**updates), self.eps * root, updates)
