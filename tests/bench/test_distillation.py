# SPDX-License-Identifier: Apache-2.0
"""The parts of the measure of teachers: sets of smaller images, numbers of a run, the table."""
from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import pytest

from bench.accuracy import distillation
from common.sets.training_set import write_training_set
from recognition.data.sets.dataset import open_dataset


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two people with two images each."""
    image = bytes(cv2.imencode(".png", np.zeros((112, 112, 3), np.uint8))[1])
    (tmp_path / "data").mkdir()
    write_training_set(tmp_path / "data", [2, 2], iter([image] * 4))
    return tmp_path / "data"


def test_images_are_read_in_the_size_that_is_asked_for(data: Path, tmp_path: Path) -> None:
    for side in (56, 40):  # a second time over the first
        distillation.smaller(data, tmp_path / "smaller", side)
        dataset = open_dataset(tmp_path / "smaller")
        assert len(dataset) == 4 and dataset.num_classes == 2 and dataset.load(0)[1].shape == (side, side, 3)


def write_history(folder: Path, **numbers: float) -> None:
    folder.mkdir(parents=True)
    records = [{"kind": "train", "step": step, "loss": loss, **numbers} for step, loss in ((10, 9), (90, 2), (100, 4))]
    records += [{"kind": "verification", "step": step, "accuracy": step / 200} for step in (50, 100)]
    (folder / "history.jsonl").write_text("\n".join(map(json.dumps, records)))


def test_the_numbers_of_a_run_are_of_its_last_fifth(tmp_path: Path) -> None:
    write_history(tmp_path / "a", teacher_distance=0.5)
    assert distillation.found_in(tmp_path / "a", 100) == (3, 0.5, 0.5)
    write_history(tmp_path / "b")
    loss, distance, _ = distillation.found_in(tmp_path / "b", 100)
    assert loss == 3 and math.isnan(distance)


def test_each_kind_is_trained_for_each_seed_and_has_a_row_of_means(
        data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[tuple[str, int, Mapping[str, object]]] = []

    def train(work: Path, name: str, network: str, steps: int, seed: int, more: Mapping[str, object]) -> Path:
        asked.append((network, seed, more))
        write_history(work / f"{name}-{seed}", **({"teacher_distance": 0.25} if "teacher" in more else {}))
        return work / f"{name}-{seed}"

    monkeypatch.setattr(distillation, "train", train)
    monkeypatch.setattr(distillation, "run", lambda *words, **variables: None)
    assert distillation.main([str(tmp_path / "work"), "--data", str(data), "--steps", "100", "--teacher-steps", "100",
                              "--seeds", "2"]) == 0
    assert [network for network, _, _ in asked] == ["teacher", *["student"] * 10]
    assert {seed for _, seed, _ in asked[1:]} == {0, 1} and sum("centres-from" in more for _, _, more in asked) == 4
    out = capsys.readouterr().out
    assert "| student alone | 3.00 ± 0.00 |  | 0.500 ± 0.000 |" in out
    assert "| checkpoint, weight 10, seed 1 | 3.00 | 0.250 | 0.500 |" in out


def test_too_few_steps_are_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert distillation.main([str(tmp_path / "work"), "--steps", "3"]) == 2
    assert capsys.readouterr().err.startswith("error: --seeds, --steps, --teacher-steps: found 3, 3, 300, expected at")
