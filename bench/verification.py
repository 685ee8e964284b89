# SPDX-License-Identifier: Apache-2.0
"""Scoring an LFW-sized set by the legacy protocol: ours against loops over the thresholds, as the old code has them.

    python -m bench.verification --pairs 6000
"""
from __future__ import annotations

import argparse
import time
from typing import Callable

import numpy as np
from sklearn.model_selection import KFold

from common.verification import evaluate


def loops(embeddings: np.ndarray, issame: np.ndarray) -> float:
    """The ten folds with a pass over all pairs for each of the 400 thresholds and 4,000 of the rate at FAR 1e-3."""
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


def fastest(function: Callable[[], object], repeats: int = 5) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.verification", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=6000)
    parser.add_argument("--dim", type=int, default=512)
    options = parser.parse_args()
    random = np.random.RandomState(0)
    issame = np.arange(options.pairs) // 300 % 2 == 0
    first = random.standard_normal((options.pairs, options.dim))
    second = np.where(issame[:, None], first, 0) + random.standard_normal(first.shape)
    embeddings = np.stack([first, second], axis=1).reshape(-1, options.dim).astype(np.float32)
    ours, old = fastest(lambda: evaluate(embeddings, issame)), fastest(lambda: loops(embeddings, issame), 1)
    print(f"{options.pairs} pairs, D = {options.dim}: ours {ours:.3f} s, loops {old:.3f} s, {old / ours:.0f} times; "
          f"accuracy {evaluate(embeddings, issame).mean:.5f} and {loops(embeddings, issame):.5f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
