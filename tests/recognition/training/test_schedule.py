# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from recognition.training.schedule import StepSchedule


def test_the_rate_falls_to_a_tenth_once_each_step_is_done() -> None:
    schedule = StepSchedule(0.1, (3, 5))
    rates = [schedule(step) for step in range(7)]
    assert rates == pytest.approx([0.1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_no_steps_no_fall() -> None:
    assert StepSchedule(0.05, ())(10**6) == 0.05
