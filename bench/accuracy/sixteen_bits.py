# SPDX-License-Identifier: Apache-2.0
"""Measures whether class centres of 16 bits train as those of float32 do: the demo set, and one with wrong labels.

    python -m bench.accuracy.sixteen_bits WORK_FOLDER

Trains ArcFace on both sets with PyTorch, for several seeds, with W and its momentum as float32, and as bfloat16 rounded
at random. Everything else is the same: data, order, first values. Prints the mean loss of each fifth of a run and the
verifications, for each run and as means over seeds with their standard deviations. WORK_FOLDER keeps the runs, each
with its ``history.jsonl`` and ``report.html``, which draws its curves.
"""
from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.accuracy.noisy_labels import CONFIG, ROOT, make_noisy
from datasets.demo import make_demo
from recognition.config.command_line import Parser
from recognition.data.sets.dataset import open_dataset
from recognition.errors import UserError, command

NUMBERS = ("float32", "bfloat16")
PARTS = 5  # of a run; each ends with a verification


def train(work: Path, dataset: str, numbers: str, steps: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Train once; returns the mean loss of each part of the run, (PARTS,), and the accuracy at its end, (PARTS,)."""
    models = work / f"{dataset}-{numbers}-{seed}"
    flags: dict[str, object] = {
        "engine": "torch", "centres-numbers": numbers, "network": "demo", "loss": "arcface", "dataset": dataset,
        "config": work / "config.py", "models-root": models, "devices": "cpu", "per-batch-size": 64, "lr": 0.1,
        "lr-steps": f"{steps * 2 // 3},{steps * 13 // 15}", "max-steps": steps, "verbose": steps // PARTS,
        "frequent": 5, "ckpt": 0, "state-every": 0, "seed": seed}
    command = [sys.executable, "train_parall.py", *(f"--{name}={value}" for name, value in flags.items())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={"OMP_NUM_THREADS": "1", **os.environ})
    if done.returncode:
        raise UserError(f"train_parall.py: {done.stderr.strip().splitlines()[-1]}")
    (history,) = models.glob("*/history.jsonl")
    records = [json.loads(line) for line in history.read_text(encoding="utf-8").splitlines()]
    losses = [(record["step"], record["loss"]) for record in records if record["kind"] == "train"]
    parts = [[loss for step, loss in losses if part * steps < PARTS * step <= (part + 1) * steps]
             for part in range(PARTS)]
    return (np.array([np.mean(part) for part in parts]),
            np.array([record["accuracy"] for record in records if record["kind"] == "verification"]))


def print_row(name: str, *columns: np.ndarray) -> None:
    """Print mean losses and accuracies of one run; or, of several runs (runs, PARTS), means and deviations."""
    cells = [[f"{np.mean(value):.{digits}f}" + (f" ± {value.std(ddof=1):.{digits}f}" if values.ndim > 1 else "")
              for value in values.T] for values, digits in zip(columns, (2, 3))]
    print(f"| {name} | {', '.join(cells[0])} | {', '.join(cells[1])} |", flush=True)


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m bench.accuracy.sixteen_bits", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path, metavar="WORK_FOLDER", help="a folder for sets and models")
    parser.add_argument("--data", type=Path, help="the demo set, if it is there already (default: made anew)")
    parser.add_argument("--share", type=float, default=0.3, help="of the labels that are made wrong (default 0.3)")
    parser.add_argument("--steps", type=int, default=200, help="of 64 images, in each training (default 200)")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each kind (default 3)")
    args = parser.parse_args(argv)
    if args.seeds < 2 or args.steps < 5 * PARTS:
        raise UserError(f"--seeds, --steps: found {args.seeds}, {args.steps}, expected at least 2, {5 * PARTS}")
    work = args.work.resolve()
    work.mkdir(parents=True)
    data = args.data.resolve() if args.data else make_demo(work / "demo", workers=2).parent
    make_noisy(data, work / "noisy", args.share, seed=0)
    text = CONFIG.format(root=str(ROOT), folder=str(work), k=1) + f"dataset.right.dataset_path = {str(data)!r}\n"
    (work / "config.py").write_text(text, encoding="utf-8")
    print(f"{open_dataset(data).num_classes} classes, {args.steps} steps of 64 images, learning rate 0.1; loss and "
          f"accuracy by fifths of the run\n\n| run | loss | accuracy |\n| --- | --- | --- |", flush=True)
    start = time.perf_counter()
    for dataset, name in (("right", "demo set"), ("noisy", f"{args.share:.0%} of labels wrong")):
        found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {numbers: [] for numbers in NUMBERS}
        for seed in range(args.seeds):
            for numbers in NUMBERS:
                found[numbers].append(train(work, dataset, numbers, args.steps, seed))
                print_row(f"{name}, {numbers}, seed {seed}", *found[numbers][-1])
        for numbers in NUMBERS:
            losses, accuracies = zip(*found[numbers])
            print_row(f"{name}, {numbers}", np.array(losses), np.array(accuracies))
    print(f"\n{time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
