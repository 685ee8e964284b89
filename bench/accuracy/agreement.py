# SPDX-License-Identifier: Apache-2.0
"""Compares the end of training with the graph passes and without.

    python -m bench.accuracy.agreement WORK --data datasets/demo --steps 400

Trains the demo network with PReLU on the demo set from the same seed, each run in a process of its own: with the
unmodified graph; the same with sums in another order (one thread instead of two), which shows what float32 alone
explains; with the passes; in bfloat16; and with another seed. Prints the accuracy of the verification at the end, the
mean loss of the last steps, and the distance of the backbone's parameters from the first run's, as a share of their
norm. Training is chaotic: a difference in the last bit grows, so the second row is the measure for the third.
"""
from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from recognition.io.params import read_arrays

CONFIG = """
exec(compile(open({sample!r}).read(), {sample!r}, "exec"))
network.demo.net_act = "prelu"
dataset.demo.dataset_path = {data!r}
"""
CASES: dict[str, tuple[bool, int, tuple[str, ...]]] = {  # with the passes, threads, more flags
    "as it stands": (False, 2, ()),
    "as it stands, one thread": (False, 1, ()),
    "passes": (True, 2, ()),
    "passes, bfloat16": (True, 2, ("--fp16-scale", "1")),
    "passes, another seed": (True, 2, ("--seed", "1")),
}
ROOT = Path(__file__).resolve().parents[2]


def train(passes: bool, argv: list[str]) -> int:
    """Train in this process, like the entry point. Without the passes the graph is bound unmodified."""
    from recognition.config.cli import parse_args
    from recognition.engines.mxnet.passes import choose
    from recognition.training import run

    if not passes:
        choose.bound_form = lambda graph, computing, image_shape: graph
    return run.train(parse_args("train_parall", argv))


def parameters(path: Path) -> dict[str, np.ndarray]:
    file = read_arrays(path)
    return {name: np.asarray(array, np.float64) for name, array in zip(file.names, file.arrays)
            if name.startswith("arg:")}


def distance(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    return float(np.sqrt(sum(((one[name] - other[name]) ** 2).sum() for name in one)))


def run_case(work: Path, name: str, steps: int) -> Path:
    """Train, unless it was done before; returns the folder of the run."""
    passes, threads, flags = CASES[name]
    root = work / name.replace(" ", "_").replace(",", "")
    command = [sys.executable, "-m", "bench.accuracy.agreement", str(work), "--one", "with" if passes else "without",
               "--config", str(work / "config.py"), "--models-root", str(root), "--network", "demo", "--loss",
               "arcface", "--dataset", "demo", "--devices", "cpu", "--per-batch-size", "32", "--lr", "0.05",
               "--max-steps", str(steps), "--verbose", str(steps), "--frequent", "50", "--ckpt", "2",
               "--state-every", "0", *flags]
    folder = root / "demo-arcface-demo"
    if not (folder / "model-0000.params").exists():
        environ = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        subprocess.run(command, check=True, cwd=ROOT, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for the runs; what is there already is not run again")
    parser.add_argument("--data", type=Path, default=Path("datasets/demo"), help="the demo set")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--one", choices=("with", "without"), help=argparse.SUPPRESS)
    options, rest = parser.parse_known_args()
    if options.one:
        return train(options.one == "with", rest)
    options.work.mkdir(parents=True, exist_ok=True)
    (options.work / "config.py").write_text(CONFIG.format(sample=str(ROOT / "sample_config.py"),
                                                          data=str(options.data.resolve())))
    print(f"{options.steps} steps of 32 images\n\n{'':26}{'accuracy':>10}{'loss':>9}{'distance':>10}")
    reference: dict[str, np.ndarray] = {}
    for name in CASES:
        folder = run_case(options.work, name, options.steps)
        history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
        loss = [record["loss"] for record in history if record["kind"] == "train"][-1]
        accuracy = [record["accuracy"] for record in history if record["kind"] == "verification"][-1]
        found = parameters(folder / "model-0000.params")
        reference = reference or found
        moved = distance(reference, {key: np.zeros_like(value) for key, value in reference.items()})
        print(f"{name:26}{accuracy:10.4f}{loss:9.3f}{distance(reference, found) / moved:10.4f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
