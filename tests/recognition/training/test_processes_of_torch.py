# SPDX-License-Identifier: Apache-2.0
"""Whole runs of several processes with PyTorch against one of one process, with as many replicas in all."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from recognition.training.states.state import SavedState, saved_states

pytest.importorskip("torch")

ROOT = Path(__file__).resolve().parents[3]
CONFIG = """
exec(compile(open({sample!r}).read(), {sample!r}, "exec"))
network.tiny = edict(net_name="fmobilefacenet", emb_size=16, net_multiplier=0.25, net_output="GDC")
network.tiny.net_blocks = [1, 1, 1, 1]  # without dropout, whose masks belong to a rank
dataset.tiny = edict(dataset_path={data!r}, num_classes=11, image_shape=(112, 112, 3), val_targets=["tiny"])
default.network, default.dataset = "tiny", "tiny"
config.count_flops = False
"""
FLAGS = ["--engine", "torch", "--per-batch-size", "3", "--lr", "0.01", "--frequent", "2", "--verbose", "100"]
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node"]
LAUNCH = ["recognition.launch", "-np"]


class Run(NamedTuple):
    arrays: dict[str, np.ndarray]  # of the last state, W joined
    loss: float  # of the history
    out: str


@pytest.fixture(scope="module")
def folder(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    (folder / "config.py").write_text(CONFIG.format(sample=str(ROOT / "sample_config.py"), data=str(tiny_set)))
    return folder


def start(folder: Path, name: str, launcher: list[str], *flags: str, entry: str = "train_parall",
          **variables: str) -> subprocess.Popen:
    command = [sys.executable, *(["-m", *launcher] if launcher else []),
               *([sys.executable] if "--" in launcher else []), str(ROOT / f"{entry}.py")]
    return subprocess.Popen([*command, "--config", str(folder / "config.py"), "--models-root", str(folder / name),
                             *FLAGS, *flags], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, "OMP_NUM_THREADS": "1", **variables})


def finished(process: subprocess.Popen, status: int = 0) -> tuple[str, str]:
    out, err = process.communicate(timeout=240)
    assert process.returncode == status, out + err
    return out, err


def run(folder: Path, name: str, launcher: list[str], *flags: str, steps: int = 4, entry: str = "train_parall") -> Run:
    out, _ = finished(start(folder, name, launcher, *flags, "--max-steps", str(steps), entry=entry))
    below = folder / name / "tiny-arcface-tiny"
    saved = SavedState(saved_states(below / "state")[-1])
    assert saved.progress.step == steps
    backbone = saved.backbone()
    losses = [json.loads(line) for line in (below / "history.jsonl").open()]
    arrays = {**backbone.parameters, **{f"momentum {name}": array for name, array in backbone.momentum.items()},
              **saved.rows(0, 11, 1)._asdict()}
    return Run(arrays, [line["loss"] for line in losses if line["kind"] == "train"][-1], out)


def assert_close(found: Run, wanted: Run) -> None:
    """Sums over replicas are taken in another order: 1e-6 a step, which ArcFace's s = 64 and batch norm amplify."""
    assert found.loss == pytest.approx(wanted.loss, rel=1e-4)
    assert found.arrays.keys() == wanted.arrays.keys()
    for name, array in wanted.arrays.items():
        atol = 2e-4 * np.abs(array).max(initial=0)
        np.testing.assert_allclose(found.arrays[name], array, rtol=0, atol=atol, err_msg=name)


def test_one_two_and_four_processes_end_with_the_same_centres(folder: Path) -> None:
    """1 x 4, 2 x 2 and 4 x 1 processes and replicas; what two saved goes on in one and in four."""
    one = run(folder, "one", [], "--devices", "cpu:4")
    two = run(folder, "two", [*TORCHRUN, "2"], "--devices", "cpu:2")
    assert_close(two, one)
    assert two.out.count("Accuracy-Highest") == one.out.count("Accuracy-Highest") == 1  # one process speaks for all
    four = run(folder, "four", [*LAUNCH, "4", "--"], "--devices", "cpu")
    assert_close(four, one)
    on = run(folder, "two", [], "--devices", "cpu:4", "--resume", steps=5)
    assert "going on after step 4" in on.out
    on_by_four = run(folder, "four", [*LAUNCH, "4", "--"], "--devices", "cpu", "--resume", steps=5)
    assert_close(on_by_four, on)
