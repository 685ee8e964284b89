# SPDX-License-Identifier: Apache-2.0
"""The shell scripts with names that people know: which command they run, shown by an interpreter that prints it."""
from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


@pytest.fixture
def run(tmp_path):
    shown = tmp_path / "shown"
    shown.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    shown.chmod(0o755)

    def start(script: str, *arguments: str) -> tuple[int, list[str], str]:
        done = subprocess.run([SCRIPTS / script, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False,
                              env={**os.environ, "PYTHON": str(shown)})
        return done.returncode, done.stdout.splitlines(), done.stderr

    return start


def test_distributed_training(run, tmp_path):
    status, words, _ = run("run_distribute_train.sh", "2", "emore", "--network", "r50")
    assert status == 0
    assert words == ["-m", "recognition.launch", "-np", "2", "--", str(tmp_path / "shown"), "-u", "train_parall.py",
                     "--dataset", "emore", "--network", "r50"]


def test_distributed_training_on_a_folder_beside_the_caller(run, tmp_path):
    (tmp_path / "set").mkdir()
    assert run("run_distribute_train.sh", "1", "set")[1][-2:] == ["--dataset", str(tmp_path / "set")]


@pytest.mark.parametrize("arguments", [(), ("2",), ("two", "emore"), ("0", "emore"), ("2", "--network")])
def test_distributed_training_without_its_words(run, arguments):
    status, _, said = run("run_distribute_train.sh", *arguments)
    assert status == 2
    assert said.count("\n") == 1
    assert "expected" in said


def test_evaluation(run, tmp_path):
    folder = tmp_path / "sets and more"
    folder.mkdir()
    for name in ("lfw.bin", "cfp_fp.bin", "train.rec"):
        (folder / name).touch()
    common = ["-m", "common.verification", "--model", str(tmp_path / "models/model,1"), "--data", str(folder),
              "--targets"]
    assert run("run_eval.sh", str(folder / "lfw.bin"), "models/model,1") == (0, [*common, "lfw"], "")
    assert run("run_eval.sh", "sets and more", "models/model,1", "--json", "x") == (
        0, [*common, "cfp_fp,lfw", "--json", "x"], "")
    for bad in ("nowhere", str(folder / "train.rec"), str(tmp_path)):
        assert run("run_eval.sh", bad, "models/model,1") == (
            2, [], f"error: {bad}: found no verification set, expected FOLDER/TARGET.bin or a folder of such files\n")
    assert run("run_eval.sh", "a.bin")[0] == 2
