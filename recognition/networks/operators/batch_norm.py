# SPDX-License-Identifier: Apache-2.0
"""Batch norm as a factor and an offset, which it is once its statistics no longer move."""
from __future__ import annotations

from typing import Any

import numpy as np

EPSILON = 1e-3  # where a graph does not say


def batch_norm_affine(values: Any, gamma: np.ndarray, beta: np.ndarray, mean: np.ndarray,
                      variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Factor and offset, float64 ``(C,)``, of a batch norm with these attributes and moving statistics.

    With gamma, beta, mean and variance of a channel, and what is added to the variance, epsilon:

        BN(x) = f x + (beta - f mean),    f = gamma / sqrt(variance + epsilon)
    """
    factor = (np.ones(len(gamma)) if values.fix_gamma else gamma.astype(np.float64)) / np.sqrt(
        variance.astype(np.float64) + values.eps)
    return factor, beta - factor * mean
