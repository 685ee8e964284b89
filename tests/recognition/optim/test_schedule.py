# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import math

import pytest

from recognition.config.options import Config
from recognition.errors import UserError
from recognition.optim.schedule import (
    CosineSchedule,
    PolynomialSchedule,
    StepSchedule,
    WarmUp,
    in_batches,
)
from recognition.training.parts import make_schedule, total_steps


def test_the_rate_falls_to_a_tenth_once_each_step_is_done() -> None:
    schedule = StepSchedule(0.1, (3, 5))
    rates = [schedule(step) for step in range(7)]
    assert rates == pytest.approx([0.1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_no_steps_no_fall() -> None:
    assert StepSchedule(0.05, ())(10**6) == 0.05


def test_polynomial_is_the_public_one() -> None:
    """Numbers of arcface_torch's PolyScheduler: base 0.1, 20 steps of which 4 warm up."""
    schedule = make_schedule(Config(lr=0.1, lr_schedule="polynomial", warmup=4, max_steps=20), 7)
    rates = [0, 0.025, 0.05, 0.075, 0.1, 0.1 * (15 / 16) ** 2, 0.1 * (14 / 16) ** 2]
    assert [schedule(step) for step in range(7)] == pytest.approx(rates)
    assert [schedule(step) for step in (12, 18, 19, 20, 30)] == pytest.approx(
        [0.025, 0.1 * (2 / 16) ** 2, 0.1 / 256, 0, 0])


def test_polynomial_with_another_power_and_without_warm_up() -> None:
    schedule = make_schedule(Config(lr=0.2, lr_schedule="polynomial", lr_power=1, max_steps=8), 7)
    assert [schedule(step) for step in (0, 1, 4, 7, 8)] == pytest.approx([0.2, 0.175, 0.1, 0.025, 0])
    assert PolynomialSchedule(0.2, 0, 8, 3.0)(4) == pytest.approx(0.2 / 8)


def test_cosine_falls_by_half_in_the_middle_between_warm_up_and_end() -> None:
    schedule = make_schedule(Config(lr=0.1, lr_schedule="cosine", warmup=2, max_steps=10), 7)
    assert [schedule(step) for step in (0, 1, 2, 4, 6, 8, 10)] == pytest.approx(
        [0, 0.05, 0.1, 0.05 * (1 + math.sqrt(0.5)), 0.05, 0.05 * (1 - math.sqrt(0.5)), 0])
    assert isinstance(schedule, WarmUp) and isinstance(schedule.after, CosineSchedule)


def test_warm_up_before_steps() -> None:
    schedule = make_schedule(Config(lr=0.1, lr_steps="6,8", warmup="0.5e"), 8)
    assert [schedule(step) for step in range(9)] == pytest.approx(
        [0, 0.025, 0.05, 0.075, 0.1, 0.1, 0.01, 0.01, 0.001])


def test_without_options_the_legacy_steps() -> None:
    assert make_schedule(Config(), 45) == StepSchedule(0.1, (100000, 160000, 220000))


def test_epochs_become_the_batches_that_an_epoch_has() -> None:
    schedule = make_schedule(Config(lr=1, lr_steps="2e,3.5e"), 45)
    assert schedule == StepSchedule(1, (90, 158))  # 157.5 to the even one
    assert [in_batches(span, 45) for span in (7, "1e", "0.1e")] == [7, 45, 4]


def test_the_end_is_the_first_of_two() -> None:
    config = Config(lr_schedule="polynomial", max_steps=100, end_epoch=3)
    assert [total_steps(config, batches) for batches in (30, 40, math.inf)] == [90, 100, 100]
    assert total_steps(Config(), 40) is None
    assert total_steps(dataclasses.replace(config, max_steps=0), 40) == 120
    assert make_schedule(config, 30) == PolynomialSchedule(0.1, 0, 90, 2.0)


@pytest.mark.parametrize("name", ["polynomial", "cosine"])
def test_a_warm_up_to_the_end_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"^warmup: found 2e, 60 batches, but the run ends after 60; expected less$"):
        make_schedule(Config(lr_schedule=name, warmup="2e", end_epoch=2), 30)
    assert make_schedule(Config(lr_steps=(), warmup="2e", max_steps=5), 30)(4) == pytest.approx(0.1 * 4 / 60)
