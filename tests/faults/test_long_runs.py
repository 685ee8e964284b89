# SPDX-License-Identifier: Apache-2.0
"""The harnesses of long runs: a short week around stand-ins, and what is called level."""
from __future__ import annotations

from pathlib import Path

import pytest

from faults.long_run import Look, growth, row
from faults.week import BAD_EVERY, faults
from recognition.optim.schedule import StepSchedule


def test_a_short_week(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Schedule, stop and resume, steps that are left out, states and history, through the real Trainer."""
    assert BAD_EVERY < 24000
    wrong, figures = faults(tmp_path, 24000)
    assert wrong == [], figures
    assert "2 steps that were left out" in figures


def test_a_week_with_a_wrong_schedule_is_not_as_promised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                          capsys: pytest.CaptureFixture[str]) -> None:
    real = StepSchedule.__call__
    monkeypatch.setattr(StepSchedule, "__call__", lambda self, step: real(self, step + (100 < step < 5000)))
    wrong, _ = faults(tmp_path, 8000)
    assert [line.partition(":")[0] for line in wrong] == ["steps of each learning rate"]


def looks(leak: float, threads: int = 8, files: int = 9) -> list[Look]:
    return [Look(step, 300 + leak * step / 1000 + step % 3, threads + (step == 9000) - (step == 15000),
                 files + step % 2) for step in range(100, 20000, 100)]


def test_growth_is_that_of_the_steps_and_not_of_the_noise() -> None:
    assert growth(looks(0)) == pytest.approx(0, abs=0.05)
    assert growth(looks(5)) == pytest.approx(5, abs=0.1)


def test_what_is_level_and_what_is_not() -> None:
    assert row("x", 20000, looks(0.2), "").kept == 20000
    assert row("x", 20000, looks(2), "").kept == 0
    assert row("x", 20000, looks(0)[:-20] + looks(0, threads=20)[-20:], "").kept == 0
    assert row("x", 20000, looks(0)[:-20] + looks(0, files=30)[-20:], "").kept == 0
    assert row("x", 20000, looks(0), "it died").happened == "it died"
    assert row("x", 20000, looks(0)[:5], "").kept == 0
