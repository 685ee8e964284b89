# SPDX-License-Identifier: Apache-2.0
"""Learning rates as functions of the step alone: a resumed run needs no state of them.

An epoch counts as the batches that it has in this run, images // global batch: the last images of an epoch, which fill
no batch, are left out. A run that is resumed with another global batch has other steps from then on.
"""
from __future__ import annotations

import math
from typing import NamedTuple, Protocol


class Schedule(Protocol):
    """The learning rate of the batch after ``step`` batches."""

    def __call__(self, step: int) -> float: ...


class StepSchedule(NamedTuple):
    """``base``, multiplied by 0.1 after each of ``steps`` (in batches): the legacy ``--lr-steps``."""

    base: float
    steps: tuple[int, ...]

    def __call__(self, step: int) -> float:
        """The rate of the batch after ``step`` batches."""
        return float(self.base * 0.1 ** sum(step >= boundary for boundary in self.steps))


class PolynomialSchedule(NamedTuple):
    """``base * (1 - (step - start) / (end - start))^power``; with power 2 it is the PolyScheduler of arcface_torch,
    with power 1 its later PolynomialLRWarmup, whose first batch has the full rate, other than here."""

    base: float
    start: int
    end: int
    power: float = 2.0

    def __call__(self, step: int) -> float:
        return self.base * (1 - _share(step, self.start, self.end)) ** self.power


class CosineSchedule(NamedTuple):
    """``base * (1 + cos(pi (step - start) / (end - start))) / 2`` (arXiv 1608.03983, without restarts)."""

    base: float
    start: int
    end: int

    def __call__(self, step: int) -> float:
        return self.base * (1 + math.cos(math.pi * _share(step, self.start, self.end))) / 2


class WarmUp(NamedTuple):
    """``base * step / batches`` for the first ``batches`` steps, then ``after``. The first batch has the rate 0, as in
    arcface_torch."""

    base: float
    batches: int
    after: Schedule

    def __call__(self, step: int) -> float:
        return self.base * step / self.batches if step < self.batches else self.after(step)


def _share(step: int, start: int, end: int) -> float:
    return min(max((step - start) / (end - start), 0.0), 1.0)


def in_batches(span: int | str, batches_an_epoch: float) -> int:
    """Convert a number of batches, or of epochs such as '2.5e', to batches."""
    return span if isinstance(span, int) else round(float(span[:-1]) * batches_an_epoch)
