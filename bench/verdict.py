# SPDX-License-Identifier: Apache-2.0
"""Gain of updating W before the verdict on a step, or beside the next step, instead of after the verdict.

    python -m bench.verdict --network y1 --batch 32 --classes 100000

``before`` updates W while the backbone's backward pass runs, and so before the step's numbers were looked at;
``after`` is what every run does; ``beside`` updates W in a thread while the next step's forward pass runs. The three
take turns of five steps within one run, the first of which is left out, so that they meet the same disturbances.
"""
from __future__ import annotations

import contextlib
import io
import statistics
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from bench.ratios import bench_parser, write_ratios
from recognition.config.cli import parse_args
from recognition.engines.choose import choose_engine
from recognition.networks import build_symbol
from recognition.processes.communicator import SingleProcess
from recognition.training.parts import make_backbone, make_head

WAYS = ("before", "after", "beside")
TURN = 5  # steps


def measure(network: str, batch: int, classes: int, turns: int) -> dict[str, list[float]]:
    """Seconds of each step, by the way it was done."""
    flags = ["--config", "sample_config.py", "--network", network, "--devices", "cpu", "--per-batch-size", str(batch)]
    config, one = parse_args("train_parall", flags), SingleProcess()
    with contextlib.redirect_stdout(io.StringIO()):
        backbone = make_backbone(config, build_symbol(config), choose_engine(), one)
    head, random, lr = make_head(config, classes, choose_engine(), one), np.random.RandomState(0), 1e-3
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    pending: Future[Any] | None = None
    with ThreadPoolExecutor(1) as pool:
        for step in range((turns + 1) * len(WAYS) * TURN):
            way = WAYS[step // TURN % len(WAYS)]
            images = random.randint(0, 256, (batch, 3, 112, 112), dtype=np.uint8)
            labels, start = random.randint(0, classes, batch), time.perf_counter()
            features = backbone.forward(images)
            if pending:
                pending.result()
            pending = None
            backbone.backward(head.forward_backward(features, labels).d_features)
            if way == "before":
                head.step(lr)
            backbone.finite()
            if way == "after":
                head.step(lr)
            elif way == "beside":
                pending = pool.submit(head.step, lr)
            backbone.step(lr)
            if step >= len(WAYS) * TURN and step % TURN:
                seconds[way].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--network", default="y1")
    parser.add_argument("--batch", type=int, default=32, help="images a step")
    parser.add_argument("--classes", type=int, default=100_000)
    parser.add_argument("--turns", type=int, default=7, help="of five steps, for each way")
    options = parser.parse_args()
    seconds = measure(options.network, options.batch, options.classes, options.turns)
    medians = {way: statistics.median(seconds[way]) for way in WAYS}
    print(f"{options.network}, {options.batch} images, {options.classes:,} identities\n")
    print(f"{'W updated':10}{'seconds a step':>16}"
          f"{'to after':>10}")
    for way in WAYS:
        print(f"{way:10}{medians[way]:16.4f}{medians[way] / medians['after'] - 1:10.1%}")
    write_ratios(options.json, {f"W {way}": medians[way] / medians["after"] for way in WAYS if way != "after"})


if __name__ == "__main__":
    main()
