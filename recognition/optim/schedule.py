# SPDX-License-Identifier: Apache-2.0
"""Learning rates as functions of the step alone: a resumed run needs no state of them.

An epoch counts as the batches that it has in this run, images // global batch: the last images of an epoch, which fill
no batch, are left out. A run that is resumed with another global batch has other steps from then on.
"""
from __future__ import annotations

import math
from typing import NamedTuple, Protocol

from recognition.config.options import NO_END, Config
from recognition.errors import UserError


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
    """``base * (1 - (step - start) / (end - start))^power``; with power 2 it is the PolyScheduler of arcface_torch."""

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


def make_schedule(config: Config, batches_an_epoch: float) -> Schedule:
    """The schedule of a run.

    :param batches_an_epoch: infinite if unknown, as with triplets.
    :raises UserError: if the rate should fall until the end of the run, and the warm-up is as long as the run.
    """
    warmup, end = in_batches(config.warmup, batches_an_epoch), total_steps(config, batches_an_epoch)
    if config.lr_schedule == "steps":
        after: Schedule = StepSchedule(config.lr, tuple(in_batches(s, batches_an_epoch) for s in config.lr_steps))
    elif end is None or warmup >= end:
        raise UserError(f"warmup: found {config.warmup}, {warmup} batches, but the run ends after {end}; expected less")
    elif config.lr_schedule == "polynomial":
        after = PolynomialSchedule(config.lr, warmup, end, config.lr_power)
    else:
        after = CosineSchedule(config.lr, warmup, end)
    return WarmUp(config.lr, warmup, after) if warmup else after


def in_batches(span: int | str, batches_an_epoch: float) -> int:
    """Convert a number of batches, or of epochs such as '2.5e', to batches."""
    return span if isinstance(span, int) else round(float(span[:-1]) * batches_an_epoch)


def total_steps(config: Config, batches_an_epoch: float) -> int | None:
    """The number of steps of the run; None if it is unknown, as with the legacy default, which never ends."""
    by_epochs = config.end_epoch * batches_an_epoch if config.end_epoch < NO_END else math.inf
    total = min(config.max_steps or math.inf, by_epochs)
    return None if total == math.inf else int(total)
