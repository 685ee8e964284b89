# SPDX-License-Identifier: Apache-2.0
"""Identification among many distractors, on random features: MegaFace's protocol in blocks of matrix products.

    python -m bench.million                                          # seconds
    python -m bench.million --distractors 1000000 --probes 3530      # the size of MegaFace
    python -m bench.million --pairs-of 32000                         # all pairs 1:1 of so many images: 512 million
"""
from __future__ import annotations

import argparse
import os
import resource
import time
from collections.abc import Iterator

import numpy as np

from common.all_pairs import evaluate_all_pairs
from common.distractors import search_distractors
from common.embedding import normalised

BLOCK = 8192
PER_PERSON = 44  # FaceScrub's 3,530 probes are of 80 people


def features(count: int, dim: int, seed: int) -> Iterator[np.ndarray]:
    """Random directions in blocks: float32 ``(n, dim)``."""
    random = np.random.default_rng(seed)
    for low in range(0, count, BLOCK):
        yield normalised(random.standard_normal((min(BLOCK, count - low), dim), np.float32))


def people(count: int, dim: int, per_person: int) -> tuple[np.ndarray, np.ndarray]:
    """Features of ``per_person`` images around a direction for each person, and the people's numbers."""
    identities = np.arange(count) // per_person
    random = np.random.default_rng(1)
    rows = random.standard_normal((count, dim), np.float32)
    rows += random.standard_normal((int(identities[-1]) + 1, dim), np.float32)[identities]
    return normalised(rows), identities


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.million", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--distractors", type=int, default=50_000)
    parser.add_argument("--probes", type=int, default=440)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--pairs-of", type=int, default=0, help="all pairs of so many images, in place of distractors")
    options = parser.parse_args()
    before, start = os.getloadavg()[0], time.perf_counter()
    if options.pairs_of:
        rows, identities = people(options.pairs_of, options.dim, 5)
        start = time.perf_counter()
        pairs = evaluate_all_pairs(rows, identities, (1e-6,), "all pairs")
        scores, what = pairs.same_pairs + pairs.different_pairs, f"TAR {pairs.rates[0].tar:.4f} at FAR 1e-6"
    else:
        rows, identities = people(options.probes, options.dim, PER_PERSON)
        found = search_distractors(rows, identities, features(options.distractors, options.dim, 2),
                                   options.distractors, (1e-6,))
        scores = found.different_pairs
        what = f"rank 1 {np.mean(found.ranks == 1):.4f}, TAR {found.rates[0].tar:.4f} at FAR 1e-6"
    seconds = time.perf_counter() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{scores} scores, D = {options.dim}: {seconds:.1f} s, {scores / seconds / 1e6:.0f} million a second, "
          f"{memory:.0f} MiB; {what}; load {before:.1f} before, {os.getloadavg()[0]:.1f} after, "
          f"{os.cpu_count()} processors")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
