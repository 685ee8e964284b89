# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from recognition.errors import UserError
from recognition.training.watch.history import History
from recognition.training.watch.log import TrainingLog


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_a_run_that_goes_on_drops_what_came_after_its_state_and_a_line_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    history = History(path, 0)
    for step in (20, 40, 60):
        history.write("train", step, loss=1.5)
    history.close()
    path.write_text(path.read_text() + '{"kind": "train", "st')
    again = History(path, 40)
    again.write("train", 50, loss=1.0)
    again.close()
    assert steps(path) == [20, 40, 50]


def test_a_run_from_nothing_starts_a_new_history(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text('{"kind": "train", "step": 20}\n')
    History(path, 0).close()
    assert path.read_text() == ""


@pytest.mark.parametrize("line", ["{}", "[]", "7", "null", '"step"', '{"step": "20"}', '{"step": null}', "\0\0\0",
                                  "[" * 100_000])
def test_a_line_that_is_no_record_ends_what_is_kept(tmp_path: Path, line: str) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text('{"kind": "train", "step": 20}\n' + line + '\n{"kind": "train", "step": 30}\n')
    History(path, 40).close()
    assert steps(path) == [20]


def test_a_last_line_without_its_end_is_not_written_on(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text('{"kind": "train", "step": 20}\n{"kind": "train", "step": 30}')
    history = History(path, 40)
    history.write("train", 50)
    history.close()
    assert steps(path) == [20, 50]


def test_a_full_disk_is_one_line_that_names_the_file(tmp_path: Path, full_disk: Callable) -> None:
    path = tmp_path / "history.jsonl"
    history = History(path, 0)
    history.write("train", 20)
    with full_disk(100):
        with pytest.raises(UserError, match=r"history\.jsonl: cannot be written: File too large"):
            history.write("train", 40, text="x" * 200)
        with pytest.raises(UserError, match=r"history\.jsonl: cannot be written: File too large"):
            history.close()
    History(path, 40).close()
    assert steps(path) == [20]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"history\.jsonl: cannot be written: "):
        History(tmp_path / "file" / "history.jsonl", 40)


def test_the_file_stays_below_its_size_and_tells_the_whole_run(tmp_path: Path) -> None:
    path, most = tmp_path / "history.jsonl", 20000
    history = History(path, 0, most)
    for step in range(1, 5001):
        history.write("train", step, loss=1.5)
        if step % 100 == 0:
            for target in ("lfw", "agedb_30"):
                history.write("verification", step, target=target, accuracy=0.9)
        assert path.stat().st_size <= most
    history.close()
    records = [json.loads(line) for line in path.read_text().splitlines()]
    trained = [record["step"] for record in records if record["kind"] == "train"]
    assert trained == sorted(set(trained)) and (trained[0], trained[-1]) == (1, 5000)
    gaps = [after - before for before, after in zip(trained, trained[1:])]
    assert gaps == sorted(gaps, reverse=True) and gaps[-1] == 1  # the older, the farther apart
    for target in ("lfw", "agedb_30"):
        found = [record["step"] for record in records if record.get("target") == target]
        assert found == sorted(set(found)) and (found[0], found[-1]) == (100, 5000)
    again = History(path, 2500, most)
    again.write("train", 2501, loss=1.0)
    again.close()
    assert steps(path)[-1] == 2501 and path.stat().st_size <= most


def test_epochs_too_short_for_a_speed_line_have_their_records(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Five batches an epoch, a line each 8: none on the console, as in the recipes. The history has the means of each
    epoch, and of the part of one in which the run ends; where the length is not known, of ten batches and the first of
    an epoch. Epochs of 21 batches have the records of their speed lines alone."""
    def run(length: int, steps: int, known: float) -> list[dict]:
        path = tmp_path / "history.jsonl"
        log = TrainingLog(History(path, 0), 8, 4, steps, 0, batches_an_epoch=known)
        for step in range(steps):
            log.batch(step + 1, step // length, step % length, float(step), 0.5, 0.1)
        log.close()
        return [json.loads(line) for line in path.read_text().splitlines()]

    with caplog.at_level("INFO"):
        found = run(5, 12, 5)
        assert [(record["step"], record["epoch"], record["loss"]) for record in found] == [
            (5, 0, 2.0), (10, 1, 7.0), (12, 2, 10.5)]
        assert [record["step"] for record in run(8, 16, 8)] == [8, 16]
        assert [record["step"] for record in run(1, 3, 1)] == [1, 2, 3]
        found = run(5, 30, math.inf)
        assert "Speed" not in caplog.text
        assert [(record["step"], record["epoch"], record["loss"]) for record in found] == [(11, 2, 5.0), (21, 4, 15.5)]
        assert all(record["kind"] == "train" and record["images_per_second"] > 0 for record in found)
        found = run(21, 63, 21)
    assert [record["step"] for record in found] == [9, 17, 30, 38, 51, 59] and caplog.text.count("Speed") == 6
