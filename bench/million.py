# SPDX-License-Identifier: Apache-2.0
"""Measures identification and verification with a million distractors, the size of MegaFace, on random features.

    python -m bench.million                                          # seconds: 20,000 distractors, 440 probes
    python -m bench.million --distractors 1000000 --probes 3530      # the size of MegaFace; 2 GB pass by
    python -m bench.million --pairs-of 32000                         # all pairs 1:1 of so many images: 512 million

Each method runs in a process of its own, so that its peak memory is its own. Seconds do not include making features:

    blocks      recognition.evaluation.distractors, as python -m common.megaface runs it
    products    its matrix products and nothing else: a lower bound of its time
    whole       on a share of the distractors: all of them in memory, one product, all scores kept and sorted
    by probe    on a share of the probes: a product of a matrix with a vector and a sort for each, like the devkit

"at full size" is seconds divided by the share. The last column tells if methods with the same input found the same.
"""
from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from bench.ratios import bench_parser, write_ratios
from recognition.evaluation.all_pairs import evaluate_all_pairs
from recognition.evaluation.distractors import BLOCK_BYTES, search_distractors
from recognition.evaluation.embed_images import normalised
from recognition.evaluation.identification import cmc
from recognition.evaluation.rates import tar_at

BLOCK_ROWS = 8192
PER_PERSON = 44  # FaceScrub's 3,530 probes are of 80 people
NOISE = 2.0  # gives mates a cosine of 0.2, which a few of a million distractors reach: neither too easy nor hopeless
FAR = 1e-6


class Features:
    """An iterable of blocks of random directions, float32 ``(n, dim)``, and the seconds spent on making them."""

    def __init__(self, count: int, dim: int, seed: int) -> None:
        self.count, self.dim, self.seconds = count, dim, 0.0
        self._random = np.random.default_rng(seed)

    def __iter__(self) -> Iterator[np.ndarray]:
        for low in range(0, self.count, BLOCK_ROWS):
            start = time.perf_counter()
            block = normalised(self._random.standard_normal((min(BLOCK_ROWS, self.count - low), self.dim), np.float32))
            self.seconds += time.perf_counter() - start
            yield block


def people(count: int, dim: int, per_person: int, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Features of ``per_person`` images around a direction for each person, and the people's numbers."""
    identities = np.arange(count) // per_person
    random = np.random.default_rng(1)
    rows = noise * random.standard_normal((count, dim), np.float32)
    rows += random.standard_normal((int(identities[-1]) + 1, dim), np.float32)[identities]
    return normalised(rows), identities


def blocks(probes: np.ndarray, identities: np.ndarray, features: Features) -> dict[str, Any]:
    found = search_distractors(probes, identities, features, features.count, (FAR,))
    return {"ranks": found.ranks, "tar": found.rates[0].tar}


def products(probes: np.ndarray, identities: np.ndarray, features: Features) -> dict[str, Any]:
    step = BLOCK_BYTES // (4 * len(probes))
    room = np.empty(len(probes) * step, np.float32)
    for block in features:
        for low in range(0, len(block), step):
            part = block[low : low + step]
            np.matmul(probes, part.T, out=room[: len(probes) * len(part)].reshape(len(probes), len(part)))
    return {}


def whole(probes: np.ndarray, identities: np.ndarray, features: Features) -> dict[str, Any]:
    scores = probes @ np.concatenate(list(features)).T
    ranks, same = [], []
    for i, row in enumerate(scores):
        mates = np.flatnonzero(identities == identities[i])
        between = probes[mates[mates != i]] @ probes[i]
        same.append(between)
        ranks.append(1 + len(row) - np.searchsorted(np.sort(row), between))
    return {"ranks": np.concatenate(ranks), "tar": tar_at((FAR,), np.concatenate(same), scores.reshape(-1))[0].tar}


def by_probe(probes: np.ndarray, identities: np.ndarray, features: Features) -> dict[str, Any]:
    gallery, ranks = np.concatenate(list(features)), []
    for i in range(len(probes)):
        mates = np.flatnonzero(identities == identities[i])
        between = probes[mates[mates != i]] @ probes[i]
        ranks.append(1 + len(gallery) - np.searchsorted(np.sort(gallery @ probes[i]), between))
    return {"ranks": np.concatenate(ranks)}


WAYS = {"blocks": blocks, "products": products, "whole": whole, "by probe": by_probe}


def run_way(way: str, distractors: int, probes: int, dim: int) -> dict[str, Any]:
    """Run a method in this process: seconds without those of the features, peak memory in MiB, and the result."""
    rows, identities = people(probes, dim, PER_PERSON, NOISE)
    features, start = Features(distractors, dim, 2), time.perf_counter()
    found = WAYS[way](rows, identities, features)
    seconds = time.perf_counter() - start - features.seconds
    line = {"seconds": seconds, "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    if "ranks" in found:
        line.update(rank1=float(np.mean(found["ranks"] == 1)), cmc=cmc(found["ranks"], 100).tolist())
    return {**line, **({"tar": found["tar"]} if "tar" in found else {})}


def rate(found: dict[str, Any], key: str) -> str:
    return f"{found[key]:.4f}" if key in found else "-"


def compare(options: argparse.Namespace) -> None:
    """Run the methods one after the other and print the table."""
    few, some = max(1000, options.distractors // options.share), max(2 * PER_PERSON, options.probes // options.share)
    few, some = min(few, options.distractors), min(some, options.probes)
    plan = [("blocks", options.distractors, options.probes), ("products", options.distractors, options.probes),
            ("blocks", few, options.probes), ("whole", few, options.probes),
            ("blocks", options.distractors, some), ("by probe", options.distractors, some)]
    print(f"D = {options.dim}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
    print(f"{'way':<10}{'distractors':>12}{'probes':>8}{'seconds':>9}{'at full size':>14}{'GFLOP/s':>9}{'peak MiB':>10}"
          f"{'rank 1':>8}{'TAR':>8}  found")
    before: dict[str, Any] = {}
    ratios = {}
    for way, distractors, probes in plan:
        command = [sys.executable, "-m", "bench.million", "--way", way, "--distractors", str(distractors), "--probes",
                   str(probes), "--dim", str(options.dim)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        work = distractors * probes
        full = found["seconds"] * options.distractors * options.probes / work
        same = ""
        if way in ("whole", "by probe"):
            apart = float(np.abs(np.subtract(found["cmc"], before["cmc"])).max())
            same = "the same" if apart == 0 else f"CMC {apart:.1e} apart"
        print(f"{way:<10}{distractors:>12}{probes:>8}{found['seconds']:>9.1f}{full:>14.1f}"
              f"{2e-9 * options.dim * work / found['seconds']:>9.0f}{found['mib']:>10.0f}"
              f"{rate(found, 'rank1'):>8}{rate(found, 'tar'):>8}  {same}", flush=True)
        if way != "blocks":
            ratios[way] = before["seconds"] / found["seconds"]
        before = found
    write_ratios(options.json, ratios)


def all_pairs(images: int, dim: int) -> None:
    rows, identities = people(images, dim, 5)
    before, start = os.getloadavg()[0], time.perf_counter()
    pairs = evaluate_all_pairs(rows, identities, (FAR,), "all pairs")
    seconds, scores = time.perf_counter() - start, pairs.same_pairs + pairs.different_pairs
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{scores} scores, D = {dim}: {seconds:.1f} s, {scores / seconds / 1e6:.0f} million a second, {memory:.0f} "
          f"MiB; TAR {pairs.rates[0].tar:.4f} at FAR {FAR:g}; load {before:.1f} before, {os.getloadavg()[0]:.1f} "
          f"after, {os.cpu_count()} processors")


def main(arguments: list[str] | None = None) -> int:
    parser = bench_parser(__doc__)
    parser.add_argument("--distractors", type=int, default=20_000)
    parser.add_argument("--probes", type=int, default=440)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--share", type=int, default=20, help="one of so many, for the ways that would take too long")
    parser.add_argument("--way", choices=list(WAYS), help="this one alone, as JSON")
    parser.add_argument("--pairs-of", type=int, default=0, help="all pairs of so many images, in place of distractors")
    options = parser.parse_args(arguments)
    if options.pairs_of:
        all_pairs(options.pairs_of, options.dim)
    elif options.way:
        print(json.dumps(run_way(options.way, options.distractors, options.probes, options.dim)))
    else:
        compare(options)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
