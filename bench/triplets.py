# SPDX-License-Identifier: Apache-2.0
"""Measures the choice of triplets from a bag, time and memory, beside the legacy loops over anchors and pairs.

    OMP_NUM_THREADS=2 python -m bench.triplets --bags 1800 3600 7200 --repeats 3

Embeddings are random vectors around the centres of identities of five images. They are spread so far that nearly every
positive pair has negatives to choose from, which takes the most time. Each time is the least of the repeats. The legacy
code took the distances from one anchor after the other and looked for the negatives of one pair after the other;
``--loops 0`` leaves this column out.
"""
from __future__ import annotations

import functools
import os
import time
import tracemalloc
from typing import Callable

import numpy as np

from bench.ratios import bench_parser, write_ratios
from recognition.data.triplet_choice import choose_triplets, positive_pairs

EACH, ALPHA = 5, 0.3


def make_bag(size: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (size, dim) float32 and labels (size,), with the images of an identity side by side."""
    random = np.random.RandomState(0)
    labels = np.repeat(np.arange(-(-size // EACH)), EACH)[:size]
    centres = random.standard_normal((labels[-1] + 1, dim))
    return (centres[labels] + 2 * random.standard_normal((size, dim))).astype(np.float32), labels


def by_loops(embeddings: np.ndarray, labels: np.ndarray) -> int:
    """The number of triplets, found pair after pair."""
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    random, count, last = np.random.RandomState(0), 0, -1
    for a, p in zip(*positive_pairs(labels)):
        if a != last:
            distances, last = np.square(unit[a] - unit).sum(axis=1), a
        near = np.square(unit[a] - unit[p]).sum()
        found = np.flatnonzero((distances > near) & (distances < near + ALPHA) & (labels != labels[a]))
        if len(found):
            random.choice(found)
            count += 1
    return count


def least(action: Callable[[], object], repeats: int) -> float:
    """The time of the fastest of some runs, in seconds."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def peak_memory(action: Callable[[], object]) -> int:
    """The peak memory of an action, in bytes."""
    tracemalloc.start()
    action()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--bags", type=int, nargs="*", default=[1800, 3600, 7200], help="images in a bag")
    parser.add_argument("--dim", type=int, default=512, help="length of an embedding")
    parser.add_argument("--repeats", type=int, default=3, help="runs of which the shortest counts")
    parser.add_argument("--loops", type=int, default=1, help="runs of the legacy way")
    options = parser.parse_args()
    print(f"dim {options.dim}, alpha {ALPHA}, {os.environ.get('OMP_NUM_THREADS', os.cpu_count())} threads\n")
    print(f"{'bag':>8}{'pairs':>8}{'triplets':>10}{'seconds':>10}{'MB':>8}{'loops, s':>10}")
    ratios = {}
    for size in options.bags:
        embeddings, labels = make_bag(size, options.dim)
        choose = functools.partial(choose_triplets, embeddings, labels, ALPHA, 0.0, (0,))
        triplets, seconds = len(choose()), least(choose, options.repeats)
        loops = [least(functools.partial(by_loops, embeddings, labels), options.loops)] if options.loops else []
        print(f"{size:8}{len(positive_pairs(labels)[0]):8}{triplets:10}{seconds:10.2f}{peak_memory(choose) / 1e6:8.0f}"
              + "".join(f"{value:10.1f}" for value in loops), flush=True)
        ratios.update({f"bag of {size}": value / seconds for value in loops})
    write_ratios(options.json, ratios)


if __name__ == "__main__":
    main()
