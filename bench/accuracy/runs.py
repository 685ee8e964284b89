# SPDX-License-Identifier: Apache-2.0
"""Trainings by train_parall.py in processes of their own, and rows of a table of what they found."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from bench.accuracy.noisy_labels import ROOT
from recognition.errors import UserError

PARTS = 5  # of a run; each ends with a verification


def train(work: Path, name: str, steps: int, **flags: object) -> tuple[np.ndarray, np.ndarray]:
    """Train once on a CPU, with ``work / "config.py"`` and 64 images a step; the learning rate falls twice.

    :returns: mean losses of the parts of the run, (PARTS,), and accuracies of its verifications, (times, targets).
    """
    models = work / name
    common = {"engine": "torch", "network": "demo", "config": work / "config.py", "models-root": models,
              "devices": "cpu", "per-batch-size": 64, "lr": 0.1, "lr-steps": f"{steps * 2 // 3},{steps * 13 // 15}",
              "max-steps": steps, "verbose": steps // PARTS, "frequent": 5, "ckpt": 0, "state-every": 0}
    command = [sys.executable, "train_parall.py",
               *(f"--{key.replace('_', '-')}={value}" for key, value in {**common, **flags}.items())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={"OMP_NUM_THREADS": "1", **os.environ})
    if done.returncode:
        raise UserError(f"train_parall.py: {done.stderr.strip().splitlines()[-1]}")
    (history,) = models.glob("*/history.jsonl")
    records = [json.loads(line) for line in history.read_text(encoding="utf-8").splitlines()]
    losses = [(record["step"], record["loss"]) for record in records if record["kind"] == "train"]
    parts = [[loss for step, loss in losses if part * steps < PARTS * step <= (part + 1) * steps]
             for part in range(PARTS)]
    found = [(record["step"], record["accuracy"]) for record in records if record["kind"] == "verification"]
    times = len({step for step, _ in found})
    return np.array([np.mean(part) for part in parts]), np.array([accuracy for _, accuracy in found]).reshape(times, -1)


def cells(values: np.ndarray, digits: int) -> str:
    """Numbers (N,), or means and standard deviations over runs (runs, N), with commas between them."""
    return ", ".join(f"{np.mean(value):.{digits}f}" + (f" ± {value.std(ddof=1):.{digits}f}" if values.ndim > 1 else "")
                     for value in values.T)
