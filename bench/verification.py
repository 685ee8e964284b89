# SPDX-License-Identifier: Apache-2.0
"""Compares loading, mirroring and scoring a verification set of LFW's size, by our code and by that of the recipes.

    python -m bench.verification [--pairs 6000] [--data FILE.bin] [--repeats 3]

Each loading runs in a process of its own, so that its peak memory is its own. Figures are the least of the repeats.
Without --data a set of JPEG images of about 7 KB is made up.
"""
from __future__ import annotations

import argparse
import json
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable

import numpy as np
from sklearn.model_selection import KFold

from bench.ratios import bench_parser, write_ratios
from recognition.data.images.image import mirror
from recognition.data.verification_set import load_bin, save_bin
from recognition.engines.mxnet.imports import mx
from recognition.evaluation.verification import evaluate


def loops(embeddings: np.ndarray, issame: np.ndarray) -> float:
    """Score ten folds by a pass over all pairs for each of 400 thresholds, and 4,000 of the rate at FAR 1e-3."""
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    distances = np.square(unit[0::2] - unit[1::2]).sum(axis=1)
    accuracies = []
    for train, test in KFold(10).split(distances):
        scores = [np.mean((distances[train] < t) == issame[train]) for t in np.arange(0, 4, 0.01)]
        best = np.arange(0, 4, 0.01)[np.argmax(scores)]
        for t in np.arange(0, 4, 0.01):  # the curve's points of this fold
            np.sum((distances[test] < t) & issame[test])
        for t in np.arange(0, 4, 0.001):
            np.sum((distances[train] < t) & ~issame[train])
        accuracies.append(np.mean((distances[test] < best) == issame[test]))
    return float(np.mean(accuracies))


def recipe_load(path: Path) -> object:
    """Fill two float32 arrays with all images, one of them mirrored, image by image with MXNet's operators."""
    with open(path, "rb") as file:
        encoded, issame = pickle.load(file, encoding="bytes")  # noqa: S301 (the file that main made)
    views = [mx.nd.empty((len(encoded), 3, 112, 112)) for _ in range(2)]
    for i, item in enumerate(encoded):
        image = mx.nd.transpose(mx.image.imdecode(item), axes=(2, 0, 1))
        views[0][i][:] = image
        views[1][i][:] = mx.nd.flip(image, axis=2)
    mx.nd.waitall()
    return views, issame


LOADERS: dict[str, Callable[[Path], object]] = {"ours": load_bin, "recipe": recipe_load}


def memory() -> tuple[float, float]:
    """The memory of this process now and at its peak, in GB."""
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6 * 1.024
    return pages * resource.getpagesize() / 1e9, peak


def load(way: str, path: Path) -> None:
    """Load the set, and print as JSON the seconds and the peak gigabytes above the memory before."""
    mx.nd.waitall()
    before, start = memory()[0], time.perf_counter()
    kept = LOADERS[way](path)
    seconds = time.perf_counter() - start
    now, peak = memory()
    print(json.dumps({"seconds": seconds, "kept": now - before, "peak": peak - before}))
    del kept


def loading(path: Path, repeats: int) -> dict[str, dict[str, float]]:
    """Measure both loaders in turn, each time in a new process."""
    best = {way: {"seconds": np.inf, "kept": np.inf, "peak": np.inf} for way in LOADERS}
    for _ in range(repeats):
        for way, least in best.items():
            command = [sys.executable, "-m", "bench.verification", "--load", way, "--data", str(path)]
            found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
            least.update({key: min(value, found[key]) for key, value in least.items()})
    return best


def fastest(function: Callable[[], object], repeats: int = 5) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def scoring(pairs: int, dim: int) -> tuple[float, float]:
    """The seconds of the statistics by our code and by loops, which must find the same accuracy."""
    random = np.random.RandomState(0)
    issame = np.arange(pairs) // 300 % 2 == 0
    first = random.standard_normal((pairs, dim))
    second = np.where(issame[:, None], 0.5 * first, 0) + random.standard_normal(first.shape)
    embeddings = np.stack([first, second], axis=1).reshape(-1, dim).astype(np.float32)
    ours, theirs = evaluate(embeddings, issame).mean, loops(embeddings, issame)
    if abs(ours - theirs) > 1.5 / pairs:  # a pair at a threshold may fall on either side in float32
        raise AssertionError(f"accuracy {ours}, the loops find {theirs}")
    return fastest(lambda: evaluate(embeddings, issame)), fastest(lambda: loops(embeddings, issame), 1)


def mirroring(pairs: int) -> tuple[float, float]:
    """The seconds to mirror all images, in batches of 128, by our code and by NumPy."""
    batch = np.random.RandomState(0).randint(0, 256, (128, 3, 112, 112)).astype(np.uint8)
    target, batches = np.empty_like(batch), 2 * pairs / len(batch)
    return (batches * fastest(lambda: mirror(batch, target), 20),
            batches * fastest(lambda: np.ascontiguousarray(batch[..., ::-1]), 20))


def made_up_set(path: Path, pairs: int) -> None:
    from bench.input import made_up_jpeg

    chance = np.random.RandomState(0)
    images = [made_up_jpeg(chance) for _ in range(500)]
    save_bin(path, [bytes(bytearray(images[i % 500])) for i in range(2 * pairs)], [i % 2 == 0 for i in range(pairs)])


def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--pairs", type=int, default=6000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--data", type=Path, help="a verification set of your own to load; it is run as a pickle, too")
    parser.add_argument("--load", choices=LOADERS, help=argparse.SUPPRESS)  # what each process of loading() does
    args = parser.parse_args()
    if args.load:
        load(args.load, args.data)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = args.data or Path(folder) / "set.bin"
        if not args.data:
            made_up_set(path, args.pairs)
        loaded = loading(path, args.repeats)
    rows = [("load, seconds", loaded["ours"]["seconds"], loaded["recipe"]["seconds"]),
            ("memory while loading, GB", loaded["ours"]["peak"], loaded["recipe"]["peak"]),
            ("memory kept, GB", loaded["ours"]["kept"], loaded["recipe"]["kept"]),
            ("mirror images, seconds", *mirroring(args.pairs)),
            ("statistics, seconds", *scoring(args.pairs, args.dim))]
    print(f"{args.pairs} pairs, D = {args.dim}; the recipe mirrors while it loads, in its row NumPy does")
    print(f"{'':28s}{'ours':>10s}{'recipe':>10s}{'ratio':>8s}")
    for name, ours, theirs in rows:
        print(f"{name:28s}{ours:10.3f}{theirs:10.3f}{theirs / ours:8.1f}")
    write_ratios(args.json, {name.partition(",")[0]: theirs / ours for name, ours, theirs in rows})


if __name__ == "__main__":
    main()
