# SPDX-License-Identifier: Apache-2.0
"""Makes the demo set: pictures of synthetic people, some for training, others for verification.

    python -m datasets.demo --output datasets/demo
"""
from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Callable

import cv2
import numpy as np

from common.sets.output_folder import new_folder
from common.sets.pairs import draw_pairs
from common.sets.training_set import write_training_set
from datasets.face import Face
from datasets.photo import photograph
from recognition.config.command_line import Parser, check_ranges
from recognition.data.records.recordio import PathLike
from recognition.data.verification_set import load_bin, save_bin
from recognition.errors import command
from recognition.evaluation.verification import pixel_similarity
from recognition.progress import progress

JPEG_QUALITY = 95
MAX_WORKERS = 16


def draw_person(identity: int, images: int, seed: int) -> list[bytes]:
    """``images`` JPEGs of one person. They are a function of the arguments alone."""
    face = Face(np.random.default_rng((seed, identity, 0)))
    photographs = [photograph(face, np.random.default_rng((seed, identity, 1 + i))) for i in range(images)]
    return [cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()
            for image in photographs]


def make_demo(output: PathLike, identities: int = 360, held_out: int = 60, images: int = 12, folds: int = 10,
              pairs_per_fold: int = 60, seed: int = 0, workers: int = 1) -> Path:
    """Write the set to the new folder ``output``: ``train.rec``, ``train.idx``, ``property`` and ``demo.bin``.

    Persons 0 .. identities - 1 are the classes; the ``held_out`` ones after them are for verification. Returns the
    ``.bin``.
    """
    pairs = draw_pairs([images] * held_out, folds, pairs_per_fold, seed)
    with new_folder(output) as folder, _mapper(workers) as mapper:
        people = mapper(partial(draw_person, images=images, seed=seed), range(identities + held_out))
        people = progress(people, "drawing", identities + held_out, unit=" people")
        trained = (image for _, person in zip(range(identities), people) for image in person)
        write_training_set(folder, [images] * identities, trained)
        unseen = [image for person in people for image in person]
        save_bin(folder / "demo.bin", [unseen[i] for i in pairs.images.ravel()], pairs.issame.tolist())
    return Path(output) / "demo.bin"


@contextmanager
def _mapper(workers: int) -> Iterator[Callable]:
    """``map`` in this process or over several new ones. They are not forked: that is unsafe in a process with threads.
    """
    if workers == 1:
        yield map
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), cv2.setNumThreads, (1,)) as pool:
        yield partial(pool.map, chunksize=4)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m datasets.demo", description="Draw the demo set.",
                    formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--output", default="datasets/demo", help="a new folder")
    parser.add_argument("--identities", type=int, default=360, help="people to train on")
    parser.add_argument("--held-out", type=int, default=60, help="other people, to verify on")
    parser.add_argument("--images", type=int, default=12, help="images of each")
    parser.add_argument("--folds", type=int, default=10, help="folds of the verification pairs")
    parser.add_argument("--pairs-per-fold", type=int, default=60, help="pairs of one person, and as many of two")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other people")
    args = parser.parse_args(argv)
    check_ranges(args, identities=1, held_out=1, images=1, folds=1, pairs_per_fold=1, seed=0)
    return args


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    start = time.perf_counter()
    target = make_demo(**vars(args), workers=min(os.cpu_count() or 1, MAX_WORKERS))
    print(f"{args.output}: {args.identities} people to train on, {args.held_out} others to verify on, "
          f"{args.images} images of each, drawn in {time.perf_counter() - start:.1f} s")
    pixels = pixel_similarity(load_bin(target), args.folds)
    print(f"{target}: {len(pixels.issame)} pairs in {args.folds} folds; plain pixel similarity reaches an accuracy of "
          f"{pixels.mean:.4f}+-{pixels.std:.4f}, area under the ROC curve {pixels.auc:.4f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
