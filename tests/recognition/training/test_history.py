# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

from recognition.training.history import History


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
