# SPDX-License-Identifier: Apache-2.0
"""Measures whether class centres of 16 bits train as those of float32 do: the demo set, and one with wrong labels.

    python -m bench.accuracy.sixteen_bits WORK_FOLDER

Trains ArcFace on both sets with PyTorch, for several seeds, with W and its momentum as float32, and as bfloat16 rounded
at random. Everything else is the same: data, order, first values. Prints the mean loss of each fifth of a run and the
verifications, for each run and as means over seeds with their standard deviations. WORK_FOLDER keeps the runs, each
with its ``history.jsonl`` and ``report.html``, which draws its curves.
"""
from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import numpy as np

from bench.accuracy.noisy_labels import CONFIG, ROOT
from bench.accuracy.runs import cells, make_sets, train, with_seeds
from recognition.data.sets.dataset import open_dataset
from recognition.errors import command

NUMBERS = ("float32", "bfloat16")


def print_row(name: str, *columns: np.ndarray) -> None:
    """Print mean losses and accuracies of one run; or, of several runs (runs, PARTS), means and deviations."""
    print(f"| {name} | {cells(columns[0], 2)} | {cells(columns[1], 3)} |", flush=True)


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = with_seeds("python -m bench.accuracy.sixteen_bits", (__doc__ or "").splitlines()[0], argv)
    work, data = make_sets(args)
    text = CONFIG.format(root=str(ROOT), folder=str(work), k=1) + f"dataset.right.dataset_path = {str(data)!r}\n"
    (work / "config.py").write_text(text, encoding="utf-8")
    print(f"{open_dataset(data).num_classes} classes, {args.steps} steps of 64 images, learning rate {args.lr:g}; loss "
          f"and accuracy by fifths of the run\n\n| run | loss | accuracy |\n| --- | --- | --- |", flush=True)
    start = time.perf_counter()
    for dataset, name in (("right", "demo set"), ("noisy", f"{args.share:.0%} of labels wrong")):
        found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {numbers: [] for numbers in NUMBERS}
        for seed in range(args.seeds):
            for numbers in NUMBERS:
                losses, accuracies = train(work, f"{dataset}-{numbers}-{seed}", args.steps, loss="arcface",
                                           dataset=dataset, seed=seed, centres_numbers=numbers, lr=args.lr)
                found[numbers].append((losses, accuracies[:, 0]))
                print_row(f"{name}, {numbers}, seed {seed}", *found[numbers][-1])
        for numbers in NUMBERS:
            print_row(f"{name}, {numbers}", *map(np.array, zip(*found[numbers])))
    print(f"\n{time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
