# SPDX-License-Identifier: Apache-2.0
"""Compares steps of the backbone in several processes: gradients are summed during the backward pass, or after it.

    python -m bench.overlap --processes 2 --network y1 r18 --batch 8

Both, and a third variant without any exchange, take turns within one run of real processes through Horovod, or
through torch.distributed with ``--engine torch``, so that they meet the same disturbances. A step is forward, backward,
exchange and update with random images. Figures are medians.
"""
from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import time
from typing import Any

import numpy as np

from bench.exchange import MARK, launched
from bench.ratios import bench_parser, write_ratios
from recognition.engines.interface import Engine

VARIANTS = ("overlapped", "afterwards", "none")


def work(engine_name: str, network: str, batch: int, steps: int) -> None:
    """Do the work of one process."""
    from recognition.config.devices import CPU, share_processors

    share_processors(CPU, os.environ)
    from recognition.config.cli import parse_args
    from recognition.engines.choose import choose_engine
    from recognition.engines.interface import Backbone
    from recognition.networks import build_symbol
    from recognition.processes.communicator import Communicator, SingleProcess
    from recognition.training.parts import make_backbone

    config = parse_args("train_parall", ["--config", "sample_config.py", "--network", network, "--devices", "cpu",
                                         "--per-batch-size", str(batch)])

    engine = choose_engine(engine_name)

    def make(communicator: Communicator) -> Backbone:
        with contextlib.redirect_stdout(io.StringIO()):
            return make_backbone(config, build_symbol(config), engine, communicator)

    with engine.communicator("device") as communicator:
        backbones = {way: make(SingleProcess() if way == "none" else communicator) for way in VARIANTS}
        sum_afterwards(backbones["afterwards"], engine)
        random = np.random.RandomState(communicator.rank)
        seconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
        for number in range(steps + 1):
            images = random.randint(0, 256, (batch, 3, 112, 112), dtype=np.uint8)
            for variant, backbone in backbones.items():
                communicator.all_reduce(np.zeros(1, np.float32))  # a barrier: all begin together
                start = time.perf_counter()
                features = backbone.forward(images)
                backbone.backward(features / features.size)
                backbone.step(0.01)
                engine.profiler().wait()
                seconds[variant] += [time.perf_counter() - start] if number else []
        if communicator.rank == 0:
            medians = {variant: statistics.median(values) for variant, values in seconds.items()}
            print(MARK + json.dumps(medians), flush=True)


def sum_afterwards(backbone: Any, engine: Engine) -> None:
    """Change the insides of a backbone so that gradients are summed once all are there."""
    if engine.name == "torch":
        backbone.replicas[0].ready = backbone._early = None
        return
    reduce = backbone._reduce_gradients

    def wait_first() -> None:
        engine.profiler().wait()
        reduce()

    backbone._reduce_gradients = wait_first


def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--engine", choices=("mxnet", "torch"), default="mxnet")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--network", nargs="+", default=["y1", "r18"])
    parser.add_argument("--batch", type=int, default=8, help="images a process")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return work(options.engine, options.network[0], options.batch, options.steps)
    print(f"{options.processes} processes, {options.batch} images each; seconds a step\n\n{'network':10}"
          + "".join(f"{variant:>14}" for variant in VARIANTS) + f"{'saved':>9}")
    ratios = {}
    for network in options.network:
        times = json.loads(launched(options.processes, "bench.overlap", "--engine", options.engine, "--network",
                                    network, "--batch", str(options.batch), "--steps", str(options.steps)))
        saved = 1 - times["overlapped"] / times["afterwards"]
        cells = "".join(f"{times[variant]:14.3f}" for variant in VARIANTS)
        print(f"{network:10}{cells}{saved:9.1%}", flush=True)
        ratios.update({f"{network}, {variant}": times["overlapped"] / times[variant] for variant in VARIANTS[1:]})
    write_ratios(options.json, ratios)


if __name__ == "__main__":
    main()
