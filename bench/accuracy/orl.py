# SPDX-License-Identifier: Apache-2.0
"""Measures training on the photographs of the Database of Faces (AT&T Laboratories Cambridge, 1994).

    python -m bench.accuracy.orl FOLDER_OF_FOLDERS

There are 30 people with ten photographs each: 25 for training and 5 others for verification, in two splits. Prints for
each recipe: verification accuracy and area under the ROC curve of each split, and images per second in training.
"""
from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from recognition.data.verification_set import load_bin
from recognition.evaluation.verification import pixel_similarity

ROOT = Path(__file__).resolve().parents[2]
HELD_OUT = {"1": [f"s{i}" for i in range(26, 31)], "2": [f"s{i}" for i in range(1, 6)]}
CONFIG = """
import sys
sys.path.insert(0, {root!r})
from sample_config import *
dataset.orl = edict(dataset_path={data!r}, num_classes=25, image_shape=(112, 112, 3), val_targets=["orl"])
loss.arcface_small = edict(loss.arcface, loss_s=16.0, loss_m2=0.3)
config.data_cutoff, config.data_color = 40, 1
default.network, default.dataset, default.verbose, default.ckpt = "demo", "orl", 200, 1
"""
COMMON = ["--per-batch-size", "16", "--devices", "cpu:2", "--frequent", "5", "--state-every", "0"]


class Stage(NamedTuple):
    """One run of train_parall.py. The next stage starts from its last checkpoint."""

    loss: str
    steps: int
    lr: float
    falls: str  # --lr-steps


RECIPES = {
    "untrained": [Stage("softmax", 1, 1e-12, "1")],
    "softmax": [Stage("softmax", 400, 0.05, "250,350")],
    "ArcFace from nothing (s = 64, m = 0.5)": [Stage("arcface", 400, 0.05, "250,350")],
    "ArcFace from nothing (s = 16, m = 0.3)": [Stage("arcface_small", 400, 0.05, "250,350")],
    "softmax, then ArcFace (s = 64, m = 0.5)": [Stage("softmax", 250, 0.05, "200"),
                                                Stage("arcface", 150, 0.005, "100")],
    "softmax, then ArcFace (s = 16, m = 0.3)": [Stage("softmax", 250, 0.05, "200"),
                                                Stage("arcface_small", 150, 0.01, "100")],
}


def pack(images: Path, split: str, folder: Path) -> Path:
    """Pack the training set of a split, with its verification pairs."""
    names, output = folder / f"held-out-{split}", folder / f"orl-{split}"
    names.write_text("\n".join(HELD_OUT[split]) + "\n")
    subprocess.run([sys.executable, "-m", "common.pack_folder", str(images), str(output), "--held-out", str(names),
                    "--target", "orl", "--fit", "crop"], check=True, cwd=ROOT, capture_output=True)
    return output


def train(data: Path, stages: list[Stage], folder: Path) -> tuple[float, float, float]:
    """Train; returns accuracy and area under the ROC curve of the last verification, and the median images per second.
    """
    folder.mkdir()
    config = folder / "config.py"
    config.write_text(CONFIG.format(root=str(ROOT), data=str(data)))
    speeds: list[float] = []
    pretrained: list[str] = []
    for stage in stages:
        subprocess.run([sys.executable, "train_parall.py", "--config", str(config), "--models-root", str(folder),
                        *COMMON, "--loss", stage.loss, "--lr", str(stage.lr), "--lr-steps", stage.falls, "--max-steps",
                        str(stage.steps), *pretrained], check=True, cwd=ROOT, capture_output=True)
        model = folder / f"demo-{stage.loss}-orl"
        records = [json.loads(line) for line in (model / "history.jsonl").read_text().splitlines()]
        speeds += [record["images_per_second"] for record in records if record["kind"] == "train"]
        pretrained = ["--pretrained", f"{model},0"]
    last = [record for record in records if record["kind"] == "verification"][-1]
    return last["accuracy"], last["auc"], sorted(speeds)[len(speeds) // 2] if speeds else float("nan")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.accuracy.orl", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("images", type=Path, help="folder of s1 .. s30")
    parser.add_argument("--recipes", help="only those whose name holds this text", default="")
    options = parser.parse_args()
    print(f"{'':40s} {'split 1: accuracy, area':>24s} {'split 2: accuracy, area':>24s} {'images/s':>9s}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sets = {split: pack(options.images, split, folder) for split in HELD_OUT}
        pixels = [pixel_similarity(load_bin(data / "orl.bin")) for data in sets.values()]
        cells = "".join(f"{r.mean:15.3f} {r.auc:9.3f}" for r in pixels)
        print(f"{'pixel similarity':40s}{cells}")
        for name, stages in RECIPES.items():
            if options.recipes in name:
                found = [train(data, stages, folder / f"{name}-{split}") for split, data in sets.items()]
                cells = "".join(f"{accuracy:15.3f} {area:9.3f}" for accuracy, area, _ in found)
                print(f"{name:40s}{cells} {found[0][2]:9.0f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
