# SPDX-License-Identifier: Apache-2.0
"""Trainings by train_parall.py in processes of their own, and rows of a table of what they found."""
from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.accuracy.noisy_labels import make_noisy, run
from datasets.demo import make_demo
from recognition.config.command_line import Parser
from recognition.errors import UserError

PARTS = 5  # of a run; each ends with a verification


def with_seeds(prog: str, description: str, argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags of a bench that trains several times on the demo set and on one with wrong labels."""
    parser = Parser(prog=prog, description=description)
    parser.add_argument("work", type=Path, metavar="WORK_FOLDER", help="a folder for sets and models")
    parser.add_argument("--data", type=Path, help="the demo set, if it is there already (default: made anew)")
    parser.add_argument("--share", type=float, default=0.3, help="of the labels that are made wrong (default 0.3)")
    parser.add_argument("--steps", type=int, default=200, help="of 64 images, in each training (default 200)")
    parser.add_argument("--lr", type=float, default=0.1, help="learning rate at the start (default 0.1)")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each kind (default 3)")
    args = parser.parse_args(argv)
    if args.seeds < 2 or args.steps < 5 * PARTS:
        raise UserError(f"--seeds, --steps: found {args.seeds}, {args.steps}, expected at least 2, {5 * PARTS}")
    return args


def make_sets(args: argparse.Namespace) -> tuple[Path, Path]:
    """The new work folder, with the set ``noisy`` in it, and the demo set."""
    work, data = begun(args)
    make_noisy(data, work / "noisy", args.share, seed=0)
    return work, data


def begun(args: argparse.Namespace) -> tuple[Path, Path]:
    """The new work folder of ``args``, and the demo set, which is made there unless it is given."""
    work = args.work.resolve()
    work.mkdir(parents=True)
    return work, args.data.resolve() if args.data else make_demo(work / "demo", workers=2).parent


def train(work: Path, name: str, steps: int, **flags: object) -> tuple[np.ndarray, np.ndarray]:
    """Train once on a CPU, with ``work / "config.py"`` and 64 images a step; the learning rate falls twice.

    :returns: mean losses of the parts of the run, (PARTS,), and accuracies of its verifications, (times, targets).
    """
    models = work / name
    common = {"engine": "torch", "network": "demo", "config": work / "config.py", "models-root": models,
              "devices": "cpu", "per-batch-size": 64, "lr": 0.1, "lr-steps": f"{steps * 2 // 3},{steps * 13 // 15}",
              "max-steps": steps, "verbose": steps // PARTS, "frequent": 5, "ckpt": 0, "state-every": 0}
    run("train_parall.py", *(f"--{key.replace('_', '-')}={value}" for key, value in {**common, **flags}.items()),
        OMP_NUM_THREADS="1")
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
