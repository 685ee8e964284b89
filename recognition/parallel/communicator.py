# SPDX-License-Identifier: Apache-2.0
"""What travels between processes: features, row statistics and gradients, never anything that is C wide."""
from __future__ import annotations

from typing import Protocol

import numpy as np


class Communicator(Protocol):
    """Collectives over host arrays. Every process calls the same ones in the same order with the same shapes."""

    rank: int
    size: int

    def all_gather(self, array: np.ndarray) -> np.ndarray:
        """Stack the arrays (n, ...) of all processes, in the order of ranks, to (size * n, ...)."""

    def all_reduce(self, array: np.ndarray) -> np.ndarray:
        """The sum of the arrays of all processes, of the same shape."""

    def reduce_scatter(self, array: np.ndarray) -> np.ndarray:
        """The sum of the arrays (size * n, ...) of all processes, of which this process gets its (n, ...) rows."""


class SingleProcess:
    """The communicator of a run in one process: everything is here already."""

    rank = 0
    size = 1

    def all_gather(self, array: np.ndarray) -> np.ndarray:
        return array

    def all_reduce(self, array: np.ndarray) -> np.ndarray:
        return array

    def reduce_scatter(self, array: np.ndarray) -> np.ndarray:
        return array
