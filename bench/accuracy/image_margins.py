# SPDX-License-Identifier: Apache-2.0
"""Measures what margins that depend on the image buy: on wrong labels, and on pictures of low quality.

    python -m bench.accuracy.image_margins WORK_FOLDER

Trains ArcFace, AdaFace, MagFace and ElasticFace with PyTorch, several seeds each, on the demo set with a share of its
labels wrong, and on the demo set with half of its pictures made worse: few pixels, blur, coarse JPEG. Verifies at
the end on the pairs of the demo set, and on the same with half of the pictures made worse. Everything but the margin is
the same. Norms of the demo network's 128 numbers are half of those of 512, so MagFace's limits are halved; runs are
short, so each batch is a tenth of AdaFace's mean.
"""
from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from bench.accuracy.noisy_labels import CONFIG, ROOT
from bench.accuracy.runs import cells, make_sets, train, with_seeds
from common.sets.output_folder import new_folder
from common.sets.training_set import write_training_set
from recognition.data.images.image import MOST_RECORD_PIXELS, decode_rgb
from recognition.data.sets.dataset import open_dataset
from recognition.data.verification_set import load_bin, save_bin
from recognition.errors import command

MARGINS = ("arcface", "adaface", "magface", "elastic_arc_plus")
SETTINGS = """
dataset.worse = edict(dataset.noisy, dataset_path={folder!r} + "/worse")
for name in ("noisy", "worse"):
    dataset[name].val_targets = ["worse", "demo"]
loss.adaface.adaface_share = 0.1
loss.magface.magface_norms = (5.0, 55.0)
"""


def make_worse(encoded: bytes, random: np.random.Generator) -> bytes:
    """A JPEG of the same size, after 12 to 40 pixels a side, a blur, and a quality of 10 to 40."""
    image = decode_rgb(encoded, MOST_RECORD_PIXELS)[..., ::-1]
    side, quality = (int(random.integers(*limits)) for limits in ((12, 41), (10, 41)))
    small = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    large = cv2.GaussianBlur(cv2.resize(small, image.shape[1::-1], interpolation=cv2.INTER_LINEAR), (5, 5), 0)
    return cv2.imencode(".jpg", large, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def half_worse(images: Sequence[bytes], random: np.random.Generator) -> list[bytes]:
    """``images`` with each made worse with the probability 1/2."""
    return [make_worse(image, random) if random.random() < 0.5 else image for image in images]


def write_worse(data: Path, output: Path) -> None:
    """Write the training set in ``data`` with half of its images made worse, and the pairs of ``demo.bin`` likewise."""
    dataset, random = open_dataset(data), np.random.default_rng(0)
    labels = dataset.labels()
    order = np.argsort(labels, kind="stable")
    with new_folder(output) as folder:
        counts = np.bincount(labels, minlength=dataset.num_classes).tolist()
        write_training_set(folder, counts, half_worse([dataset.read(i)[1] for i in order], random))
        pairs = load_bin(data / "demo.bin")
        encoded = [cv2.imencode(".png", image.transpose(1, 2, 0)[..., ::-1])[1].tobytes() for image in pairs.images]
        save_bin(folder / "worse.bin", half_worse(encoded, random), pairs.issame.tolist())


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = with_seeds("python -m bench.accuracy.image_margins", (__doc__ or "").splitlines()[0], argv)
    work, data = make_sets(args)
    write_worse(data, work / "worse")
    for source, name in ((work / "worse", "noisy/worse.bin"), (data, "worse/demo.bin")):
        (work / name).write_bytes((source / Path(name).name).read_bytes())
    text = CONFIG.format(root=str(ROOT), folder=str(work), k=1) + SETTINGS.format(folder=str(work))
    (work / "config.py").write_text(text, encoding="utf-8")
    print(f"{args.steps} steps of 64 images, learning rate {args.lr:g}, {args.seeds} seeds; accuracies at the end\n\n"
          "| set | margin | by seed: pairs made worse; demo pairs | pairs made worse | demo pairs |\n"
          "| --- | --- | --- | --- | --- |", flush=True)
    start = time.perf_counter()
    for dataset, name in (("noisy", f"{args.share:.0%} of labels wrong"), ("worse", "half of the pictures worse")):
        for margin in MARGINS:
            found = np.array([train(work, f"{dataset}-{margin}-{seed}", args.steps, dataset=dataset, loss=margin,
                                    seed=seed, verbose=args.steps, lr=args.lr)[1][-1] for seed in range(args.seeds)])
            columns = name, margin, "; ".join(cells(pairs, 3) for pairs in found.T), *(
                cells(found[:, i : i + 1], 3) for i in (0, 1))
            print(f"| {' | '.join(columns)} |", flush=True)
    print(f"\n{time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
