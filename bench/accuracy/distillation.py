# SPDX-License-Identifier: Apache-2.0
"""Measures what a small network gains from a teacher: its checkpoint, its stored embeddings, its class centres.

    python -m bench.accuracy.distillation WORK_FOLDER

Trains a teacher on the demo set, and then MobileFaceNets of an eighth of y1's width, for several seeds: alone and with
what is taken over. Everything else is the same. Prints the mean loss of the last fifth of each run, the mean squared
distance from the teacher's embeddings there, and the accuracy of the last verification; means over seeds have standard
deviations. Images are scaled to --side, so that all of it takes minutes. WORK_FOLDER keeps the runs: what it has is not
trained again.
"""
from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bench.accuracy.noisy_labels import ROOT, run
from datasets.demo import make_demo
from recognition.config.command_line import Parser
from recognition.data.records.set_layout import read_property
from recognition.errors import UserError, command

CONFIG = """
import sys
sys.path.insert(0, {root!r})
from sample_config import *
dataset.demo = edict(dataset.demo, dataset_path={data!r}, image_shape=({side}, {side}, 3))
network.teacher = edict(network.demo, net_multiplier=0.5, net_blocks=[1, 2, 3, 1], net_output="FC")
network.student = edict(network.demo, net_multiplier=0.125, net_blocks=[1, 1, 1, 1], net_output="FC")
config.ckpt_embedding = False
"""
TEACHER_SEED = 100
Found = tuple[float, float, float]  # loss, squared distance from the teacher (NaN without one), accuracy


def smaller(data: Path, folder: Path, side: int) -> None:
    """A folder with the files of a set, whose images are read as ``side`` x ``side``."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in (data / "train.rec", data / "train.idx", *data.glob("*.bin")):
        (folder / path.name).unlink(missing_ok=True)
        (folder / path.name).symlink_to(path)
    (folder / "property").write_text(f"{read_property(data / 'property').num_classes},{side},{side}\n")


def train(work: Path, name: str, network: str, steps: int, seed: int, more: Mapping[str, object]) -> Path:
    """Train once, unless the run is there already; returns its folder."""
    flags: dict[str, object] = {
        "config": work / "config.py", "network": network, "loss": "arcface", "dataset": "demo",
        "models-root": work / f"{name}-{seed}", "devices": "cpu", "per-batch-size": 64, "lr": 0.1,
        "lr-steps": f"{steps * 2 // 3},{steps * 13 // 15}", "max-steps": steps, "verbose": steps, "frequent": 5,
        "ckpt": 2, "state-every": 0, "seed": seed, **more}
    folder = work / f"{name}-{seed}" / f"{network}-arcface-demo"
    if not (folder / "model-0000.params").exists():  # the last file of a run
        run("train_parall.py", *(f"--{name}={value}" for name, value in flags.items()), OMP_NUM_THREADS="1")
    return folder


def found_in(folder: Path, steps: int) -> Found:
    """Loss and distance of the last fifth of a run, and its last accuracy."""
    records = [json.loads(line) for line in (folder / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    late = [record for record in records if record["kind"] == "train" and record["step"] > steps * 4 // 5]
    accuracy = [record["accuracy"] for record in records if record["kind"] == "verification"][-1]
    return (float(np.mean([record["loss"] for record in late])),
            float(np.mean([record.get("teacher_distance", np.nan) for record in late])), accuracy)


def print_row(name: str, found: Sequence[Found]) -> None:
    """Print a run, or the mean of several with deviations."""
    columns = np.array(found).T
    cells = [f"{column.mean():.{digits}f}" + (f" ± {column.std(ddof=1):.{digits}f}" if len(column) > 1 else "")
             for column, digits in zip(columns, (2, 3, 3))]
    print(f"| {name} | {' | '.join('' if cell.startswith('nan') else cell for cell in cells)} |", flush=True)


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m bench.accuracy.distillation", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path, metavar="WORK_FOLDER", help="a folder for sets and models")
    parser.add_argument("--data", type=Path, help="the demo set, if it is there already (default: made anew)")
    parser.add_argument("--side", type=int, default=56, help="of images in pixels (default 56)")
    parser.add_argument("--teacher-steps", type=int, default=300, help="of 64 images (default 300)")
    parser.add_argument("--steps", type=int, default=200, help="of 64 images, of each student (default 200)")
    parser.add_argument("--seeds", type=int, default=3, help="students of each kind (default 3)")
    parser.add_argument("--weight", type=float, nargs="+", default=[10], help="--distil-weight (default 10)")
    args = parser.parse_args(argv)
    if min(args.seeds - 1, args.steps // 25, args.teacher_steps // 25) < 1:
        raise UserError(f"--seeds, --steps, --teacher-steps: found {args.seeds}, {args.steps}, {args.teacher_steps}, "
                        "expected at least 2, 25, 25")
    work, start = args.work.resolve(), time.perf_counter()
    data = args.data.resolve() if args.data else make_demo(work / "demo", workers=2).parent
    smaller(data, work / "smaller", args.side)
    (work / "config.py").write_text(CONFIG.format(root=str(ROOT), data=str(work / "smaller"), side=args.side))
    print("| run | loss | squared distance from the teacher | accuracy |\n| --- | --- | --- | --- |", flush=True)
    folder = train(work, "teacher", "teacher", args.teacher_steps, TEACHER_SEED, {})
    print_row("teacher", [found_in(folder, args.teacher_steps)])
    if not (work / "embeddings").exists():
        run("-m", "common.embed_set", "--data", work / "smaller", "--model", f"{folder},0", "--output",
            work / "embeddings", "--devices", "cpu", OMP_NUM_THREADS="1")
    kinds: dict[str, dict[str, object]] = {"student alone": {}}
    for weight in args.weight:
        kinds[f"checkpoint, weight {weight:g}"] = {"teacher": f"{folder},0", "distil-weight": weight}
        kinds[f"embeddings, weight {weight:g}"] = {"teacher": work / "embeddings", "distil-weight": weight}
    kinds["centres, held"] = {"centres-from": f"{folder},0", "fc7-lr-mult": 0}
    kinds[f"centres, held, and checkpoint, weight {args.weight[-1]:g}"] = {
        **kinds["centres, held"], "teacher": f"{folder},0", "distil-weight": args.weight[-1]}
    found: dict[str, list[Found]] = {name: [] for name in kinds}
    for seed in range(args.seeds):  # a table after each seed, so that the first ones show soon
        for name, more in kinds.items():
            short = name.replace(", ", "-").replace(" ", "-")
            found[name].append(found_in(train(work, short, "student", args.steps, seed, more), args.steps))
            print_row(f"{name}, seed {seed}", found[name][-1:])
    for name, runs in found.items():
        print_row(name, runs)
    print(f"\n{time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
