# SPDX-License-Identifier: Apache-2.0
"""Measures the gain and the cost of ``memonger``: memory and time of a training step with and without recomputation.

    OMP_NUM_THREADS=2 python -m bench.networks.memonger --batch 8 --networks y1 r50 r100

``maps`` is the memory of MXNet's executor for maps and gradients between layers (counted here, as its own count takes
four bytes for every number). ``peak`` is the most memory that the process held while it trained, minus what it held
after MXNet and the parameters were loaded. Both are in MB. Each case runs in a process of its own. Times are the least
of the repeats, in processor time divided by the threads.
"""
from __future__ import annotations

import argparse
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

from bench.ratios import bench_parser, write_ratios
from recognition.config.options import Config
from recognition.engines.configured import computing_of
from recognition.engines.mxnet.imports import mx
from recognition.engines.mxnet.passes.choose import bound_form
from recognition.engines.mxnet.symbols import to_symbol
from recognition.networks.families import fmobilefacenet, fresnet
from recognition.networks.graph import Graph
from recognition.networks.initialise import initialise
from recognition.networks.maps import maps_memory

THREADS = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
IMAGE = (3, 112, 112)
CASES = ("kept", "memonger", "bfloat16", "bfloat16 and memonger")


def network(name: str) -> Graph:
    if name.startswith("r"):
        return fresnet.get_symbol(num_layers=int(name[1:]))
    return fmobilefacenet.get_symbol()


def held() -> float:
    """The memory of this process in MB."""
    found = re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else 0


def measure(name: str, case: str, batch: int, repeats: int) -> tuple[int, float, float]:
    """The MB for maps, the MB at the peak, and the milliseconds of a step."""
    config = Config(fp16="bfloat16" in case, memonger="memonger" in case)
    graph = bound_form(network(name), computing_of(config), IMAGE)
    parameters, statistics = initialise(graph, IMAGE, 0)
    arguments = {key: mx.nd.array(value) for key, value in parameters.items()}
    arguments["data"] = mx.nd.random.uniform(0, 255, (batch, *IMAGE))
    auxiliary = {key: mx.nd.array(value) for key, value in statistics.items()}
    gradients = {key: mx.nd.zeros_like(value) for key, value in arguments.items() if key != "data"}
    mx.nd.waitall()
    before = held()
    executor = to_symbol(graph).bind(mx.cpu(), arguments, gradients, dict.fromkeys(gradients, "write"), auxiliary)
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        executor.backward(executor.forward(is_train=True))
        mx.nd.waitall()
        best = min(best, (time.process_time() - start) / THREADS)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return maps_memory(graph, IMAGE, batch) // 2**20, peak - before, 1e3 * best


def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--batch", type=int, default=8, help="images a step")
    parser.add_argument("--repeats", type=int, default=3, help="steps; the least time counts")
    parser.add_argument("--networks", nargs="*", default=["y1", "r50", "r100"])
    parser.add_argument("--cases", nargs="*", default=CASES[:2], choices=CASES)
    parser.add_argument("--one", nargs=2, metavar=("NETWORK", "CASE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, case = options.one
        print(*measure(name, case, options.batch, options.repeats))
        return
    print(f"batch {options.batch}, {THREADS} threads, MXNet {mx.__version__}\n")
    print(f"{'network':10}{'case':24}{'maps, MB':>10}{'peak, MB':>10}{'step, ms':>10}")
    ratios = {}
    for name in options.networks:
        found = {}
        for case in options.cases:
            command = [sys.executable, "-m", "bench.networks.memonger", "--one", name, case, "--batch",
                       str(options.batch), "--repeats", str(options.repeats)]
            maps, peak, step = map(float, subprocess.check_output(command, text=True).split()[-3:])
            print(f"{name:10}{case:24}{maps:10.0f}{peak:10.0f}{step:10.0f}", flush=True)
            found[case] = (maps, peak, step)
        for case in set(found) - {"kept"} if "kept" in found else ():
            for what, before, after in zip(("maps", "peak", "step"), found["kept"], found[case]):
                ratios[f"{name} {what}, {case}"] = after / before
    write_ratios(options.json, ratios)


if __name__ == "__main__":
    main()
