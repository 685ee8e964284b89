# SPDX-License-Identifier: Apache-2.0
"""``training.log``: lines with times and the time left, over all starts of a run."""
from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from recognition.config.options import Config
from recognition.errors import UserError
from recognition.optim.loss_scale import LossScale
from recognition.training.run import train
from recognition.training.watch.text_log import TextLog

STAMP = r"Training: \d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}-"
# As arcface_torch writes it; people's programs read files of such lines.
SPEED = re.compile(STAMP + r"Speed (\d+\.\d\d) samples/sec   Loss (\d+\.\d{4})   LearningRate (\d\.\d{6})   "
                           r"Epoch: (\d+)   Global Step: (\d+)   Required: (\d+\.\d) hours")


def lines(path: Path) -> list[str]:
    found = path.read_text().splitlines()
    assert all(re.match(STAMP, line) for line in found)
    return [re.sub("^" + STAMP, "", line) for line in found]


def test_the_time_left_is_that_of_the_steps_left_at_the_speed_so_far(tmp_path: Path) -> None:
    """100 of 1000 steps in two hours: 18 hours for the 900 that are left; the test itself takes less than 0.05 hours of
    that."""
    path = tmp_path / "training.log"
    log = TextLog(path, 0, 1000, {"lr": 0.1})
    log._began -= 2 * 3600
    log.speed(100, 3, 7.25, 0.02, 1234.567)
    log.close()
    found = SPEED.fullmatch(path.read_text().splitlines()[-1])
    assert found and found.groups() == ("1234.57", "7.2500", "0.020000", "3", "100", "18.0")
    assert lines(path)[:2] == ["start", ": lr                             0.1"]


def test_a_run_that_goes_on_counts_its_own_steps(tmp_path: Path) -> None:
    """From step 500 on, 100 steps in two hours: 8 hours for the 400 that are left. What was there stays."""
    path = tmp_path / "training.log"
    path.write_text("before\n")
    log = TextLog(path, 500, 1000, {})
    log._began -= 2 * 3600
    log.speed(600, 3, 7.25, 0.02, 1.0)
    log.close()
    first, start, speed = path.read_text().splitlines()
    assert first == "before" and start.endswith("-start after step 500") and speed.endswith("Required: 8.0 hours")


def test_the_loss_scale_of_float16_as_it_falls(tmp_path: Path) -> None:
    scale = LossScale(1024)
    log = TextLog(tmp_path / "training.log", 0, 100, {}, scale)
    log.speed(20, 0, 7.25, 0.02, 1.0)
    scale.count(False)
    log.speed(40, 0, 7.25, 0.02, 1.0)
    log.close()
    for line, value in zip(lines(tmp_path / "training.log")[-2:], ("1024", "512")):
        assert f"Global Step: {'20' if value == '1024' else '40'}   Fp16 Grad Scale: {value}   Required: 0.0" in line


def test_a_run_without_an_end_has_no_time_left(tmp_path: Path) -> None:
    log = TextLog(tmp_path / "training.log", 0, None, {})
    log.speed(20, 0, 7.25, 0.02, 1.0)
    log.close()
    assert lines(tmp_path / "training.log")[-1].endswith("Global Step: 20")


def test_what_the_program_logs_meanwhile_is_there(tmp_path: Path) -> None:
    logger = logging.getLogger("recognition.data.somewhere")
    logger.warning("before")
    log = TextLog(tmp_path / "training.log", 0, None, {})
    logger.warning("left out: %s", "two\nlines")
    log.close()
    logger.warning("after")
    assert lines(tmp_path / "training.log") == ["start", "left out: two lines"]


def test_a_full_disk_is_said_in_one_line(tmp_path: Path, full_disk: Callable) -> None:
    log = TextLog(tmp_path / "training.log", 0, None, {})
    with full_disk(10), pytest.raises(UserError, match=r"training.log: cannot be written: File too large"):
        log.line("more")


def test_the_log_of_a_run(engine: str, make: Callable[..., Config]) -> None:
    """Speed lines with what the history has, verifications, what is said; and the same file when the run goes on."""
    options = {"val_targets": "tiny", "verbose": 3, "frequent": 2, "state_every": 3, "ckpt": 2}
    assert train(make(max_steps=3, **options)) == 0
    config = make(max_steps=6, resume="yes", **options)
    assert train(config) == 0
    path = Path(config.output_dir, "training.log")
    found = lines(path)
    assert [line for line in found if line.startswith("start")] == ["start", "start after step 3"]
    assert ": max_steps                      3" in found and ": max_steps                      6" in found
    for step in (3, 6):
        assert any(line.startswith(f"[tiny][{step}]Accuracy-Flip: ") for line in found)
    assert "saving 1" in found and "saving 2" in found
    speeds = [match for line in path.read_text().splitlines() if (match := SPEED.fullmatch(line))]
    assert [match[5] for match in speeds] == ["3", "5"]


def test_a_run_that_starts_anew_keeps_the_log_of_the_one_before_with_its_states(make: Callable[..., Config]) -> None:
    config = make(state_every=3)
    for _ in range(2):
        assert train(config) == 0
    folder = Path(config.output_dir)
    assert lines(folder / "training.log")[0] == lines(folder / "state.1" / "training.log")[0] == "start"
    assert len([line for line in lines(folder / "training.log") if line == "start"]) == 1
