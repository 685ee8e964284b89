# SPDX-License-Identifier: Apache-2.0
"""The backbone of the PyTorch engine, for ``backbone.py``. It runs in an environment with PyTorch.

    python -m bench.networks.torch_engine y1 16 2 training
    python -m bench.networks.torch_engine r50 16 2 training --bfloat16

The arguments are preset, images, threads, and what to time. It does a step for every line on standard input and prints
its seconds, in processor time divided by the threads.
"""
from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable

import numpy as np

from recognition.config.cli import parse_args
from recognition.engines.choose import choose_engine
from recognition.engines.interface import Computing, Updating
from recognition.engines.torch.imports import torch
from recognition.networks import build_symbol
from recognition.networks.initialise import initialise
from recognition.processes.communicator import SingleProcess
from recognition.training.checkpoints.checkpoint import save_checkpoint

IMAGE = (3, 112, 112)
CPU = (("cpu", 0),)


def make_step(network: str, batch: int, training: bool, bfloat16: bool) -> Callable[[], object]:
    """A step of training, forward and backward, or of inference, on the same random images each time."""
    graph = build_symbol(parse_args("train_parall", ["--config", "sample_config.py", "--network", network]))
    start, engine = initialise(graph, IMAGE, 0), choose_engine("torch")
    images = np.random.default_rng(0).integers(0, 256, (batch, *IMAGE), dtype=np.uint8)
    if training:
        backbone = engine.backbone(graph, start, IMAGE, Computing(CPU, batch, bfloat16), Updating(), SingleProcess())
        return lambda: backbone.backward(backbone.forward(images))
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder) / "model", 1, graph, *start)
        embed = engine.embedder((f"{folder}/model", 1), CPU, batch, IMAGE, bfloat16)
    return lambda: embed(images)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.networks.torch_engine", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network")
    parser.add_argument("batch", type=int)
    parser.add_argument("threads", type=int)
    parser.add_argument("what", choices=("training", "inference"))
    parser.add_argument("--bfloat16", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    step = make_step(options.network, options.batch, options.what == "training", options.bfloat16)
    for _ in sys.stdin:
        start = time.process_time()
        step()
        print((time.process_time() - start) / options.threads, flush=True)


if __name__ == "__main__":
    main()
