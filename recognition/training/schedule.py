# SPDX-License-Identifier: Apache-2.0
"""Learning rates as functions of the step alone, so that a resumed run needs no state of theirs."""
from __future__ import annotations

from typing import NamedTuple, Protocol


class Schedule(Protocol):
    """The learning rate of the batch after ``step`` batches."""

    def __call__(self, step: int) -> float: ...


class StepSchedule(NamedTuple):
    """``base``, times 0.1 once each of ``steps`` (counted in batches) is done: the legacy ``--lr-steps``."""

    base: float
    steps: tuple[int, ...]

    def __call__(self, step: int) -> float:
        """The rate of the batch after ``step`` batches."""
        return float(self.base * 0.1 ** sum(step >= boundary for boundary in self.steps))
