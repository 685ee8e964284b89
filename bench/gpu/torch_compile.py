# SPDX-License-Identifier: Apache-2.0
"""torch.compile of a network's training pass, beside our CUDA graphs: time of a pass, and start-up.

    python -m bench.gpu.torch_compile r50 --images 128 --device cuda:0

compiles one network and prints a line of JSON. The check starts it as a process of its own, as a compiler can take long
and leaves threads behind. PyTorch's own batch norms are compiled: it cannot look into Triton's kernels of ours, and may
fuse the operators itself.
"""
from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.gpu.networks import SIDE, images_of, made, seconds_a_pass
from bench.gpu.report import Report, Setting
from recognition.engines.torch.imports import torch
from recognition.engines.torch.replica import Replica

ROOT = Path(__file__).resolve().parents[2]
TABLE = "torch.compile beside CUDA graphs: a pass of {}, {} images, ms"
MODES = ("default", "reduce-overhead")
PASSES = 10


def compiled_passes(network: str, count: int, device: torch.device, **options: Any) -> dict[str, float]:
    """Milliseconds of a pass forward and backward, median; seconds of the first one; graphs, breaks between them, and
    CUDA graphs that were not made.

    :param options: of ``torch.compile``.
    """
    graph, start = made(network)
    gpu = device.type == "cuda"
    replica = Replica(graph, *start, device, torch.float16 if gpu else None, SIDE, recompute=False)
    torch.backends.cudnn.benchmark = gpu
    for tensor in (*replica.arguments.values(), *replica.auxiliary.values()):
        torch._dynamo.mark_static_address(tensor)  # else it makes no graph of a pass that writes to them
    compiled: Any = torch.compile(lambda pixels: replica.features_there(pixels, training=True), **options)
    leaves, seconds = list(replica.arguments.values()), []
    for number in range(PASSES + 3 if gpu else 2):
        pixels = torch.from_numpy(images_of(count, number)).to(device)
        began = time.perf_counter()
        torch.compiler.cudagraph_mark_step_begin()  # which its own graphs, of the mode reduce-overhead, ask for
        features = compiled(pixels)
        torch.autograd.grad(features, leaves, torch.zeros_like(features))
        if gpu:
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    seen = torch._dynamo.utils.counters
    return {"ms": 1e3 * float(np.median(seconds[3 if gpu else 1:])), "first": seconds[0],
            "graphs": seen["stats"]["unique_graphs"], "breaks": sum(seen["graph_break"].values()),
            "skipped": seen["inductor"]["cudagraph_skips"]}


def beside_graphs(setting: Setting, report: Report) -> None:
    """Compile r50 in both modes; on CPUs a small network, with Dynamo alone, which has nothing to compile for it."""
    network, count = ("r50", 128) if setting.gpu else ("y1", 2)
    table = TABLE.format(network, count)
    if setting.gpu:
        for by_graphs in (False, True):
            passes, first = seconds_a_pass(network, setting.device, by_graphs, count)
            name = "our CUDA graphs, Triton's batch norms" if by_graphs else "operators, Triton's batch norms"
            report.row(table, {"way": name, "ms": f"{1e3 * passes:.1f}", "first passes, s": f"{first:.1f}"})
            report.measured(name, 1e3 * passes, "ms")
    for mode in MODES if setting.gpu else ("",):
        name = f"torch.compile, {mode or 'no compiler'}"
        how = ["--mode", mode] if mode else ["--backend", "eager"]
        found, why = _in_a_process([network, "--images", str(count), "--device", str(setting.device), *how],
                                   min(150.0, report.left) if setting.gpu else 600.0)
        if not found:
            report.true(name, True, why)
            report.row(table, {"way": name, "ms": why})
            continue
        report.measured(name, found["ms"], f"ms, {found['first']:.1f} s for the first pass, "
                        f"{found['breaks']:g} breaks, {found['skipped']:g} CUDA graphs not made")
        report.row(table, {"way": name, "ms": f"{found['ms']:.1f}", "first passes, s": f"{found['first']:.1f}"})


def _in_a_process(words: list[str], limit: float) -> tuple[dict[str, float], str]:
    """What a process of this file finds, or nothing, and why."""
    try:
        done = subprocess.run([sys.executable, "-m", "bench.gpu.torch_compile", *words], cwd=ROOT, capture_output=True,
                              text=True, timeout=max(1.0, limit), check=False)
    except subprocess.TimeoutExpired:
        return {}, f"not compiled after {limit:.0f} s"
    if done.returncode:
        return {}, " ".join((done.stderr.strip().splitlines() or ["no output"])[-1].split())[:200]
    return json.loads(done.stdout.strip().splitlines()[-1]), ""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.torch_compile", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--mode", help="of torch.compile")
    parser.add_argument("--backend", default="inductor")
    options = parser.parse_args()
    found = compiled_passes(options.network, options.images, torch.device(options.device), backend=options.backend,
                            mode=options.mode)
    print(json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
