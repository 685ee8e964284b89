# SPDX-License-Identifier: Apache-2.0
"""Measures the cost of checksums: W is saved with a digest and without, and read again for comparison.

    python -m bench.checksums --gigabytes 4 --repeats 2 --folder FOLDER

Both write the same float32 rows of 512 numbers and force them to disk, in turns; the least time of each counts. States
were written by `np.save` before they had checksums. The digests themselves are timed on memory.
"""
from __future__ import annotations

import hashlib
import os
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Callable

import numpy as np

from bench.ratios import bench_parser, write_ratios
from recognition.io.checksums import sum_of, write_npy

DIM, BLOCK = 512, 1 << 16  # BLOCK rows are random; the others repeat them, which neither a digest nor a disk notices
HASHES = ("sha256", "sha1", "blake2b", "md5")
HASHED_BYTES = 1 << 28


def plain(path: Path, array: np.ndarray) -> None:
    """Write W as states were written before."""
    with open(path, "wb") as file:
        np.save(file, array)
        os.fsync(file.fileno())


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--gigabytes", type=float, default=4, help="of W, of 10^9 bytes")
    parser.add_argument("--repeats", type=int, default=2, help="turns; the least time counts")
    parser.add_argument("--folder", type=Path, help="on the disk to write to; default: the one of temporary files")
    options = parser.parse_args()
    rows = max(1, int(options.gigabytes * 1e9 / DIM / 4))
    block = np.random.default_rng(0).standard_normal((min(BLOCK, rows), DIM), dtype=np.float32)
    centres = np.resize(block, (rows, DIM))
    size = centres.nbytes / 1e9
    print(f"{'digest':12}{'GB/s':>8}")
    for name in HASHES:
        content = centres.data.cast("B")[:HASHED_BYTES]
        took = min(seconds(partial(hashlib.new, name, content)) for _ in range(3))
        print(f"{name:12}{len(content) / 1e9 / took:8.2f}", flush=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "centres-0.npy"
        ways: dict[str, Callable[[], object]] = {
            "np.save": lambda: plain(path, centres), "with sha256": lambda: write_npy(path, centres)}
        times: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(options.repeats):
            for name in list(ways)[:: 1 if turn % 2 else -1]:
                path.unlink(missing_ok=True)
                times[name].append(seconds(ways[name]))
        times["compared with its sum"] = [seconds(lambda: sum_of(path)) for _ in range(options.repeats)]
    ratios = {name: min(found) / min(times["np.save"]) for name, found in times.items()}
    print(f"\n{f'{size:.2f} GB':24}{'seconds':>10}{'GB/s':>8}{'ratio':>8}")
    for name, found in times.items():
        print(f"{name:24}{min(found):10.2f}{size / min(found):8.2f}{ratios[name]:8.2f}")
    write_ratios(options.json, ratios)


if __name__ == "__main__":
    main()
