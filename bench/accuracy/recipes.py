# SPDX-License-Identifier: Apache-2.0
"""Runs each recipe of docs/steps.md, docs/margins.md and others on the demo set, and prints its command and its result.

    python -m bench.accuracy.recipes WORK_FOLDER

The commands are small: 100 steps of 64 images on a CPU, with PyTorch, one seed. So a result says that a recipe trains,
not which one is best.
"""
from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench.accuracy.noisy_labels import CONFIG, ROOT
from bench.accuracy.runs import begun, train
from common.rec2image import main as rec2image
from recognition.config.command_line import Parser
from recognition.errors import command

# By name: flags beside those that all have.
RECIPES: dict[str, dict[str, object]] = {
    "plain": {}, "a folder of folders of images": {"dataset": "FOLDER"},
    "two sets, weights": {"dataset": "right,FOLDER", "dataset_weights": "1,0.5"},
    "Partial FC": {"sample_ratio": 0.3}, "AdamW": {"optimizer": "adamw", "lr": 0.001, "wd": 0.05},
    "accumulation": {"per_batch_size": 16, "gradient_acc": 4}, "clipping": {"clip_norm": 5},
    "moving average": {"ema": 0.95}, "label smoothing": {"label_smoothing": 0.1},
    "dropout, drop path": {"dropout": 0.1, "drop_path": 0.05},
    "AdaFace": {"loss": "adaface"}, "MagFace": {"loss": "magface"}, "ElasticFace-Cos+": {"loss": "elastic_cos_plus"},
    "class centres in 16 bits": {"centres_numbers": "bfloat16"},
    "class centres on a disk": {"centres_on": "disk", "sample_ratio": 0.3}, "rate of arcface_torch": {
        "lr_schedule": "polynomial", "lr_power": 1, "warmup": 10},
}


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m bench.accuracy.recipes", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path, metavar="WORK_FOLDER", help="a new folder, for sets and models")
    parser.add_argument("--data", type=Path, help="the demo set, if it is there already (default: made anew)")
    parser.add_argument("--steps", type=int, default=100, help="of 64 images, in each training (default 100)")
    args = parser.parse_args(argv)
    work, data = begun(args)
    images = work / "images"
    rec2image(["--include", str(data), "--output", str(images)])
    (images / "demo.bin").write_bytes((data / "demo.bin").read_bytes())
    text = CONFIG.format(root=str(ROOT), folder=str(work), k=1) + (
        f"dataset.right.dataset_path = {str(data)!r}\nloss.magface.magface_norms = (5.0, 55.0)\n")
    (work / "config.py").write_text(text, encoding="utf-8")
    print("| recipe | flags | loss at the end | accuracy | s |\n| --- | --- | --- | --- | --- |", flush=True)
    for name, flags in RECIPES.items():
        start = time.perf_counter()
        all_flags = {"dataset": "right", "loss": "arcface", "verbose": args.steps, "val_targets": "demo", **flags}
        filled = {key: str(value).replace("FOLDER", str(images)) for key, value in all_flags.items()}
        losses, accuracies = train(work, name.replace(" ", "_"), args.steps, **filled)
        words = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in flags.items())
        print(f"| {name} | `{words or '--loss arcface'}` | {losses[-1]:.2f} | {accuracies[-1][0]:.3f} | "
              f"{time.perf_counter() - start:.0f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
