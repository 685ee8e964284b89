# SPDX-License-Identifier: Apache-2.0
"""Size, FLOPs and latency of networks, in one table.

    python -m common.flops_counter --network all
    python -m common.flops_counter --network r50 r100 y1 --config config.py
    python -m common.flops_counter --model models/r50-arcface-emore/model,1 --batch-size 1 32 --json table.json

Size is that of the parameters and moving statistics in float32. FLOPs are those of one image, a multiply-add as 2: of
convolutions and fully connected layers, as the public recipes count, and of all operators. Latency is the median time
of a batch, without mirrors, on --devices, with random parameters for --network; --no-latency leaves it out.
"""
from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from common.embedding.model_flags import add_engine_flag, files_of
from recognition.config.cli import find_pretrained, parse_args
from recognition.config.command_line import Parser
from recognition.config.presets import open_config
from recognition.engines.configured import build_network, with_own_size
from recognition.errors import UserError, command
from recognition.evaluation.trained_backbone import load_backbone
from recognition.io.files import require_new, write_whole
from recognition.networks import first_weights
from recognition.networks.flops import count_flops, short
from recognition.networks.graph import Graph
from recognition.networks.initialise import initialise
from recognition.networks.shapes import infer_shapes
from recognition.networks.symbol_file import read_network
from recognition.training.checkpoints.checkpoint import save_checkpoint


def measure(prefix: str, number: int, options: argparse.Namespace) -> dict[str, float]:
    """The median milliseconds of a batch of each size, after two batches that warm up."""
    side, found = options.image_size, {}
    for size in options.batch_size:
        backbone = load_backbone(f"{prefix},{number}", options.devices, size, (side, side), engine=options.engine)
        images = np.random.RandomState(0).randint(0, 256, (size, side, side, 3)).astype(np.uint8)
        times = []
        for _ in range(options.repeats + 2):
            start = time.perf_counter()
            backbone.embed(images, flip=False, unit=False)
            times.append(1000 * (time.perf_counter() - start))
        found[str(size)] = statistics.median(times[2:])
    return found


def row(name: str, graph: Graph, prefix: str, number: int, options: argparse.Namespace) -> dict[str, Any]:
    shape = (3, options.image_size, options.image_size)
    shapes, flops = infer_shapes(graph, shape), count_flops(graph, shape)
    numbers = sum(math.prod(size) for size in (*shapes.arguments.values(), *shapes.auxiliary.values()))
    return {"network": name, "embedding": shapes.output[1], "parameters": flops.parameters, "bytes": 4 * numbers,
            "flops": flops.products, "operations": flops.operations, "not_counted": list(flops.unknown),
            "milliseconds": {} if options.no_latency else measure(prefix, number, options)}


def preset_row(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """The row of a network preset, with its first values in a temporary checkpoint."""
    flags = ["--network", name, *(["--config", str(options.config)] if options.config else [])]
    config = with_own_size(parse_args("train_parall", flags))
    graph, side = build_network(config), options.image_size
    with tempfile.TemporaryDirectory() as folder:
        if not options.no_latency:
            values = initialise(graph, (3, side, side), 0, first_weights(config.net_name))
            save_checkpoint(Path(folder, "model"), 1, graph, *values)
        return row(name, graph, f"{folder}/model", 1, options)


def model_row(text: str, options: argparse.Namespace) -> dict[str, Any]:
    prefix, number = find_pretrained(text, 1, "--model")
    return row(f"{prefix},{number}", read_network(Path(f"{prefix}-symbol.json")), prefix, number, options)


def table(rows: list[dict[str, Any]], batches: list[int]) -> str:
    width = max(len("network"), *(len(found["network"]) for found in rows))
    timed = "".join(f"  {f'ms, batch {size}':>13}" for size in batches)
    lines = [f"{'network':<{width}}  embedding  parameters       MB   FLOPs  all operators{timed}"]
    for found in rows:
        times = "".join(f"  {found['milliseconds'][str(size)]:>13.1f}" for size in batches)
        missing = f"  not counted: {', '.join(found['not_counted'])}" if found["not_counted"] else ""
        lines.append(f"{found['network']:<{width}}  {found['embedding']:>9}  {short(found['parameters']):>10}  "
                     f"{found['bytes'] / 1e6:>7.1f}  {short(found['flops']):>6}  {short(found['operations']):>13}"
                     f"{times}{missing}")
    return "\n".join(lines)


@command
def main(arguments: list[str] | None = None) -> int:
    flags = Parser(prog="python -m common.flops_counter", description=__doc__)
    flags.add_argument("--network", nargs="+", default=[], metavar="NAME", help="network presets; all: each there is")
    flags.add_argument("--model", nargs="+", default=[], metavar="PREFIX,EPOCH", help="checkpoints")
    flags.add_argument("--config", type=Path, help="where the presets are (default: config.py, else sample_config.py)")
    flags.add_argument("--batch-size", nargs="+", type=int, default=[1],
                       help="images a batch, several sizes (default 1)")
    flags.add_argument("--repeats", type=int, default=10, help="batches timed (default 10)")
    flags.add_argument("--devices", default="cpu", help="cpu, gpu, gpu:1 (default cpu)")
    add_engine_flag(flags)
    flags.add_argument("--image-size", type=int, default=112, help="side of the images (default 112)")
    flags.add_argument("--no-latency", action="store_true", help="time nothing")
    flags.add_argument("--json", type=Path, metavar="FILE", help="write the table there, too")
    flags.add_overwrite()
    options = flags.parse_args(arguments)
    if not (options.network or options.model):
        raise UserError("found neither --network nor --model, expected at least one")
    if min(*options.batch_size, options.repeats) < 1:
        raise UserError("--batch-size, --repeats: found a number below 1")
    models = [find_pretrained(text, 1, "--model") for text in options.model]
    require_new([options.json], [options.config, *(path for model in models for path in files_of(model))],
                options.overwrite)
    presets = options.network
    if presets == ["all"]:
        presets = list(open_config(str(options.config or "")).presets("network"))
    rows = [preset_row(name, options) for name in presets]
    rows += [model_row(text, options) for text in options.model]
    print(table(rows, [] if options.no_latency else options.batch_size))
    if options.json:
        write_whole(options.json, json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
