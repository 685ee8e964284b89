# SPDX-License-Identifier: Apache-2.0
"""Compares a step of our head with the legacy method: time, peak memory, GFLOP/s and their share of the machine's peak.

    python -m bench.head                                   # the table
    python -m bench.head --classes 200000 --ratio 0.1      # a row of one's own
    python -m bench.head --classes 100000 --optimizer adamw
    python -m bench.head --classes 100000 --way torch      # PyTorch's shard, on CPUs

Every row is a process of its own, so that its peak memory is its own. The legacy method is written here for the bench:
MXNet autograd over a one-hot margin, as in the public recipes, with a gradient of W of full size. A step is forward,
backward and update with momentum, ArcFace, float32. GFLOP/s counts the three matrix products (6 B C D) alone; the peak
is that of NumPy's product of 4096 x 4096 matrices in the same process.
"""
from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import subprocess
import sys
import time
from functools import partial
from typing import Any, Callable, NamedTuple

import numpy as np

from bench.ratios import bench_parser, write_ratios


class Row(NamedTuple):
    """One line of the table."""

    way: str
    classes: int
    ratio: float = 1.0
    dim: int = 512
    sub_centres: int = 1
    shards: int = 1
    batch: int = 64
    optimizer: str = "sgd"


ROWS = [Row("ours", 200_000), Row("torch", 200_000), Row("old", 200_000), Row("ours", 200_000, 0.1),
        Row("ours", 200_000, shards=2), Row("ours", 200_000, sub_centres=3), Row("ours", 200_000, optimizer="adamw"),
        Row("ours", 1_000_000), Row("old", 1_000_000), Row("ours", 1_000_000, 0.1),
        Row("ours", 10_000_000, dim=128), Row("ours", 10_000_000, 0.1, dim=128)]


def shard_of(way: str) -> Callable[..., Any]:
    """The kind of shard on CPUs."""
    if way == "ours":
        from recognition.engines.cpu.shard import CpuShard
        return CpuShard
    from recognition.engines.torch.imports import torch
    from recognition.engines.torch.shard import TorchShard
    torch.set_num_threads(os.cpu_count() or 1)
    return partial(TorchShard, torch.device("cpu"))


def ours(way: str, classes: int, batch: int, dim: int, sub_centres: int, ratio: float, shards: int,
         optimizer: str) -> Callable[..., None]:
    from recognition.head.margin import Margin
    from recognition.head.sampling import ClassSampler
    from recognition.head.shard import split_classes
    from recognition.head.sharded import ShardedHead
    from recognition.optim.adamw import AdamW
    from recognition.processes.communicator import SingleProcess

    kind = shard_of(way)
    cut = [kind(start, stop, dim, normalised=True, scale=64, sub_centres=sub_centres)
           for start, stop in split_classes(classes, shards)]
    head = ShardedHead(cut, Margin(64, 1, 0.5), SingleProcess(), sampler=ClassSampler(ratio),
                       adamw=AdamW() if optimizer == "adamw" else None)

    def step(features: np.ndarray, labels: np.ndarray) -> None:
        head.forward_backward(features, labels)
        head.step(0.001 if optimizer == "adamw" else 0.1)

    return step


def old(classes: int, batch: int, dim: int, sub_centres: int, ratio: float, shards: int,
        optimizer: str) -> Callable[..., None]:
    from recognition.engines.mxnet.imports import mx

    w = mx.nd.random.normal(0, 0.01, (classes, dim))
    w.attach_grad()
    momentum = mx.nd.zeros_like(w)

    def step(features: np.ndarray, labels: np.ndarray) -> None:
        x, y = mx.nd.array(features), mx.nd.array(labels)
        x.attach_grad()
        with mx.autograd.record():
            unit_x, unit_w = (mx.nd.L2Normalization(a, mode="instance") for a in (x, w))
            z = 64 * mx.nd.FullyConnected(unit_x, unit_w, no_bias=True, num_hidden=classes)
            target = mx.nd.pick(z, y)
            shifted = mx.nd.cos(mx.nd.arccos(target / 64) + 0.5) * 64
            z = z + mx.nd.broadcast_mul(mx.nd.one_hot(y, classes), (shifted - target).expand_dims(1))
            loss = -mx.nd.log(mx.nd.pick(mx.nd.softmax(z), y))
        loss.backward()
        mx.nd.sgd_mom_update(w, w.grad, momentum, out=w, lr=0.1, wd=5e-4, momentum=0.9, rescale_grad=1 / batch)
        x.grad.asnumpy()
        mx.nd.waitall()

    return step


def measure(way: str, repeats: int, **size: Any) -> dict[str, float]:
    """The median and the least seconds of a step, the peak bytes of this process, and the peak of matrix products in
    GFLOP/s."""
    random = np.random.RandomState(0)
    a = random.standard_normal((4096, 4096)).astype(np.float32)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - start)
    peak = 2 * 4096**3 / min(seconds) / 1e9
    del a
    step = old(**size) if way == "old" else ours(way, **size)
    seconds = []
    for _ in range(repeats + 1):  # the first compiles and allocates
        x = random.standard_normal((size["batch"], size["dim"])).astype(np.float32)
        labels = random.randint(0, size["classes"], size["batch"])
        start = time.perf_counter()
        step(x, labels)
        seconds.append(time.perf_counter() - start)
    return {"seconds": float(np.median(seconds[1:])), "least": min(seconds[1:]), "peak": peak,
            "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0}


def compare(found: dict[Row, dict[str, float]]) -> dict[str, float]:
    """The ratios of the legacy method's least seconds and peak memory to those of our rows with as many classes."""
    old = {row.classes: figures for row, figures in found.items() if row.way == "old"}
    ratios = {}
    for row, figures in found.items():
        if row.way != "old" and row.classes in old:
            differs = [f"{key.replace('_', '-')} {value}" for key, value in row._asdict().items()
                       if key != "classes" and value != Row._field_defaults.get(key, "ours")]
            name = ", ".join([f"{row.classes} classes", *differs])
            ratios[name] = old[row.classes]["least"] / figures["least"]
            ratios[f"{name}, memory"] = old[row.classes]["memory"] / figures["memory"]
    return ratios


def main() -> int:
    parser = bench_parser((__doc__ or "").splitlines()[0])
    for flag, default in (("batch", 64), ("dim", 512), ("sub-centres", 1), ("shards", 1), ("repeats", 5)):
        parser.add_argument(f"--{flag}", type=int, default=default)
    parser.add_argument("--classes", type=int, help="one row instead of the table")
    parser.add_argument("--ratio", type=float, default=1.0)
    parser.add_argument("--way", choices=("ours", "torch", "old"), default="ours")
    parser.add_argument("--optimizer", choices=("sgd", "adamw"), default="sgd", help="of ours; the old way has SGD")
    parser.add_argument("--most", type=int, default=10**9, help="leave out rows of more classes from the table")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = vars(parser.parse_args())
    if options["measure"]:
        print(json.dumps(measure(options["way"], options["repeats"],
                                 **{name: options[name] for name in Row._fields if name != "way"})))
        return 0
    rows = [Row(*(options[name] for name in Row._fields))] if options["classes"] else ROWS
    print(f"{os.cpu_count()} processors, {options['repeats']} steps a row, median and least\n")
    print(f"{'way':5s}{'classes':>11s}{'D':>5s}{'K':>3s}{'shards':>7s}{'B':>4s}{'ratio':>6s} {'update':6s}"
          f"{'seconds':>9s}{'least':>8s}{'peak GB':>9s}{'GFLOP/s':>9s}{'of peak':>9s}")
    results: dict[Row, dict[str, float]] = {}
    for row in rows:
        if row.classes > options["most"] or (row.way == "torch" and not importlib.util.find_spec("torch")):
            continue
        command = [sys.executable, "-m", "bench.head", "--measure", "--repeats", str(options["repeats"])]
        command += [word for key, value in row._asdict().items()
                    for word in (f"--{key.replace('_', '-')}", str(value))]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        results[row] = found
        rate = 6 * row.batch * row.classes * row.ratio * row.sub_centres * row.dim / found["seconds"] / 1e9
        print(f"{row.way:5s}{row.classes:11,d}{row.dim:5d}{row.sub_centres:3d}{row.shards:7d}{row.batch:4d}"
              f"{row.ratio:6.2f} {row.optimizer:6s}{found['seconds']:9.3f}{found['least']:8.3f}"
              f"{found['memory'] / 1e9:9.2f}{rate:9.0f}{rate / found['peak']:9.0%}", flush=True)
    write_ratios(options["json"], compare(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
