# SPDX-License-Identifier: Apache-2.0
"""Measures the search for wrong labels with sub-centres: what common.drop finds, and the gain of training without it.

    python -m bench.accuracy.noisy_labels WORK_FOLDER

Copies the demo set with a share of its labels wrong, trains ArcFace with K sub-centres on it, drops images, and trains
ArcFace on the noisy set and on the cleaned one. Prints precision and recall of the dropped images by threshold, and the
verification of each network, the last and the best of five in its training. WORK_FOLDER keeps everything; the picture
is WORK_FOLDER/cleaned/drop.png.
"""
from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.sets.drop_report import THRESHOLDS
from common.sets.output_folder import new_folder
from common.sets.training_set import write_training_set
from datasets.demo import make_demo
from recognition.config.command_line import Parser
from recognition.data.sets.dataset import open_dataset
from recognition.errors import UserError, command

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
import sys
sys.path.insert(0, {root!r})
from sample_config import *
for name in ("noisy", "cleaned", "right"):
    dataset[name] = edict(dataset.demo, dataset_path={folder!r} + "/" + name)
loss.sub_centres = edict(loss.arcface, loss_K={k})
config.ckpt_embedding = False
default.network = "demo"
"""


def wrong_labels(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """``labels``, int64 (N,) of 0 .. C - 1, with round(share N) of them moved to another class, each as likely."""
    random = np.random.default_rng(seed)
    chosen = random.permutation(len(labels))[: round(share * len(labels))]
    classes = int(labels.max()) + 1
    wrong = labels.copy()
    wrong[chosen] = (labels[chosen] + random.integers(1, classes, len(chosen))) % classes
    return wrong


def make_noisy(data: Path, output: Path, share: float, seed: int) -> np.ndarray:
    """Copy the training set in ``data`` with wrong labels, and its verification sets. Returns the right labels, int64
    (N,), those of records 1, 2, ..., which are saved as ``right.npy``, too."""
    dataset = open_dataset(data)
    labels = dataset.labels()
    given = wrong_labels(labels, share, seed)
    order = np.argsort(given, kind="stable")
    counts = np.bincount(given, minlength=dataset.num_classes)
    if not counts.all():
        raise UserError(f"--share: found {share:g}, which leaves class {counts.argmin()} without an image")
    _write(data, output, counts.tolist(), (dataset.read(i)[1] for i in order), labels[order])
    return labels[order]


def make_right(noisy: Path, output: Path, right: np.ndarray) -> None:
    """Write the set that a perfect drop would leave: the images with right labels."""
    dataset = open_dataset(noisy)
    kept = np.flatnonzero(dataset.labels() == right)
    counts = np.bincount(right[kept], minlength=dataset.num_classes)
    _write(noisy, output, counts[counts > 0].tolist(), (dataset.read(i)[1] for i in kept.tolist()), right[kept])


def _write(source: Path, output: Path, counts: list[int], images: Iterator[bytes], right: np.ndarray) -> None:
    with new_folder(output) as folder:
        write_training_set(folder, counts, images)
        np.save(folder / "right.npy", right)
        for path in source.glob("*.bin"):
            (folder / path.name).write_bytes(path.read_bytes())


def precision_and_recall(dropped: np.ndarray, wrong: np.ndarray) -> tuple[float, float]:
    """The share of wrong labels among the dropped images, and the share of dropped images among the wrong ones.

    Arguments are masks, bool (N,).
    """
    both = int(np.count_nonzero(dropped & wrong))
    return both / max(int(dropped.sum()), 1), both / max(int(wrong.sum()), 1)


def train(work: Path, dataset: str, loss: str, steps: int, seed: int) -> dict[str, Any]:
    """Run train_parall.py; returns its last verification, the best of its five, and the seconds of the run."""
    start = time.perf_counter()
    falls = f"{steps * 2 // 3},{steps * 13 // 15}"
    run("train_parall.py", "--config", work / "config.py", "--dataset", dataset, "--loss", loss, "--devices", "cpu:2",
        "--per-batch-size", 32, "--lr", 0.1, "--lr-steps", falls, "--max-steps", steps, "--verbose",
        max(1, steps // 5), "--ckpt", 1, "--state-every", 0, "--seed", seed, "--models-root", work / "models")
    lines = (work / "models" / f"demo-{loss}-{dataset}" / "history.jsonl").read_text().splitlines()
    verifications = [record for record in map(json.loads, lines) if record["kind"] == "verification"]
    best = max(verifications, key=lambda record: record["accuracy"])
    return {"last": verifications[-1], "best": best, "seconds": time.perf_counter() - start}


def run(*words: object, **variables: str) -> None:
    """Run a command of the project, with variables unless they are set; its last line is the error of one that fails.
    """
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True,
                          env={**variables, **os.environ})
    if done.returncode:
        raise UserError(f"{' '.join(map(str, words[:3]))}: {done.stderr.strip().splitlines()[-1]}")


def print_drops(images: Path, right: np.ndarray, threshold: float) -> None:
    """Print precision and recall by threshold, and those of dropping all images nearest to another sub-centre."""
    with np.load(images) as found:
        angles, labels, nearest = found["angle"], found["identity"], found["sub_centre"]
    wrong = labels != right
    pairs = np.zeros((labels.max() + 1, nearest.max() + 1), np.int64)
    np.add.at(pairs, (labels, nearest), 1)
    rules = {f"{t:g} degrees{' *' if t == threshold else ''}": angles >= t for t in sorted({*THRESHOLDS, threshold})}
    rules["another sub-centre"] = nearest != pairs.argmax(axis=1)[labels]
    print(f"{wrong.sum()} of {len(wrong)} labels are wrong\n\n{'dropped from':20s} {'dropped':>8s} {'precision':>10s} "
          f"{'recall':>8s}")
    for name, dropped in rules.items():
        precision, recall = precision_and_recall(dropped, wrong)
        print(f"{name:20s} {dropped.sum():8d} {precision:10.3f} {recall:8.3f}")


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m bench.accuracy.noisy_labels", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path, metavar="WORK_FOLDER", help="a new folder, for sets and models")
    parser.add_argument("--data", type=Path, help="the demo set, if it is there already (default: made anew)")
    parser.add_argument("--share", type=float, default=0.3, help="of the labels that are made wrong (default 0.3)")
    parser.add_argument("--k", type=int, default=3, help="sub-centres (default 3)")
    parser.add_argument("--threshold", type=float, default=80, help="degrees (default 80)")
    parser.add_argument("--steps", type=int, default=1000, help="of 64 images, in each training (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the wrong labels and of the trainings (default 0)")
    parser.add_argument("--right", action="store_true", help="also train on the images whose labels are right")
    args = parser.parse_args(argv)
    if not 0 < args.share < 1:
        raise UserError(f"--share: found {args.share:g}, expected a number between 0 and 1")
    with new_folder(args.work):
        pass
    work = args.work.resolve()
    data = args.data or make_demo(work / "demo", workers=2).parent
    right = make_noisy(data, work / "noisy", args.share, args.seed)
    (work / "config.py").write_text(CONFIG.format(root=str(ROOT), folder=str(work), k=args.k))

    results = {f"K = {args.k}, noisy": train(work, "noisy", "sub_centres", args.steps, args.seed)}
    run("-m", "common.drop", "--data", work / "noisy", "--model", f"{work}/models/demo-sub_centres-noisy,0", "--k",
        args.k, "--threshold", args.threshold, "--output", work / "cleaned", "--devices", "cpu:2")
    print_drops(work / "cleaned" / "drop-images.npz", right, args.threshold)
    names = ["noisy", "cleaned"]
    if args.right:
        make_right(work / "noisy", work / "right", right)
        names.append("right")
    for name in names:
        results[f"ArcFace, {name}"] = train(work, name, "arcface", args.steps, args.seed)
    print(f"\n{'training':18s} {'accuracy':>9s} {'area':>7s}  {'best: accuracy':>15s} {'area':>7s} {'step':>5s} "
          f"{'s':>5s}")
    for name, found in results.items():
        last, best = found["last"], found["best"]
        print(f"{name:18s} {last['accuracy']:9.4f} {last['auc']:7.4f}  {best['accuracy']:15.4f} {best['auc']:7.4f} "
              f"{best['step']:5d} {found['seconds']:5.0f}")
    print(f"picture: {args.work / 'cleaned' / 'drop.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
