# SPDX-License-Identifier: Apache-2.0
"""Cost of the look at each step's numbers: the backbone's step as it is, with the check, and with copies beside it.

    OMP_NUM_THREADS=2 python -m bench.finite --network y1 --batch 16

``checked`` waits for the gradients and the moving statistics and looks at all of them, as every run does;
``reversible`` copies the moving statistics before the step, too, as runs with --on-nan skip do. The three take turns
within one run, so that they meet the same disturbances; medians of the steps, and of the differences within a turn.
"""
from __future__ import annotations

import contextlib
import io
import statistics
import time

import numpy as np

from bench.ratios import bench_parser, write_ratios
from recognition.config.cli import parse_args
from recognition.engines.choose import choose_engine
from recognition.engines.mxnet.imports import mx
from recognition.networks import build_symbol
from recognition.processes.communicator import SingleProcess
from recognition.training.parts import make_backbone

WAYS = ("plain", "checked", "reversible")


def measure(network: str, batch: int, steps: int) -> dict[str, list[float]]:
    """Seconds of each step, by the way it was done; the first of each, which allocates, is left out."""
    flags = ["--config", "sample_config.py", "--network", network, "--devices", "cpu", "--per-batch-size", str(batch)]
    backbones = {}
    for way in WAYS:
        config = parse_args("train_parall", [*flags, "--on-nan", "skip" if way == "reversible" else "stop"])
        with contextlib.redirect_stdout(io.StringIO()):
            backbones[way] = make_backbone(config, build_symbol(config), choose_engine(), SingleProcess())
    random = np.random.RandomState(0)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(steps + 1):
        images = random.randint(0, 256, (batch, 3, 112, 112), dtype=np.uint8)
        for way in WAYS[number % 3 :] + WAYS[: number % 3]:
            backbone, start = backbones[way], time.perf_counter()
            features = backbone.forward(images)
            backbone.backward(features / features.size)
            if way != "plain" and not backbone.finite():
                raise FloatingPointError(f"{network}: not finite")
            backbone.step(1e-6)
            mx.nd.waitall()
            seconds[way] += [time.perf_counter() - start] if number else []
    return seconds


def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--network", nargs="+", default=["y1"])
    parser.add_argument("--batch", type=int, default=16, help="images a step")
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args()
    print(f"{options.batch} images; seconds a step\n\n{'network':10}" + "".join(f"{way:>12}" for way in WAYS)
          + f"{'check costs':>14}{'copies cost':>13}")
    ratios = {}
    for network in options.network:
        seconds = measure(network, options.batch, options.steps)
        costs = [statistics.median(np.subtract(seconds[way], seconds["plain"])) for way in WAYS[1:]]
        plain = statistics.median(seconds["plain"])
        print(f"{network:10}" + "".join(f"{statistics.median(seconds[way]):12.4f}" for way in WAYS)
              + f"{costs[0] / plain:14.2%}{costs[1] / plain:13.2%}", flush=True)
        ratios.update({f"{network}, {way}": 1 + cost / plain for way, cost in zip(WAYS[1:], costs)})
    write_ratios(options.json, ratios)


if __name__ == "__main__":
    main()
