# SPDX-License-Identifier: Apache-2.0
"""Measures the bytes that a process sends in a step, by processes and classes: they do not grow with the classes.

    python -m bench.exchange --processes 1 2 4 --classes 1000 100000
    python -m bench.exchange --whole                       # like train.py, where they do grow

Real processes do the steps of a run, through Horovod or PyTorch, with random features and a flat array for the
backbone's gradients. ``counted`` is the number of the communicator, ``formula`` that of
``recognition.plan.head_costs``, and ``network`` the kernel's count on the loopback interface, divided by the
processes, with headers and the library's own messages.
"""
from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from bench.ratios import bench_parser, write_ratios
from recognition.plan.head_costs import HeadSize, sent_data_parallel, sent_parallel

MARK = "RESULT "


def received_bytes(interface: str) -> int:
    """The bytes received on a network interface since the machine started; 0 without /proc."""
    path = Path("/proc/net/dev")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((int(line.split(":")[1].split()[0]) for line in lines if line.strip().startswith(f"{interface}:")), 0)


def ones(engine: str, size: int) -> Any:
    """An array of the engine's."""
    if engine == "torch":
        from recognition.engines.torch.imports import torch

        return torch.ones(size)
    from recognition.engines.mxnet.imports import mx

    return mx.nd.ones(size)


def work(options: argparse.Namespace) -> None:
    """Do the work of one process: steps of the head and of the exchange of gradients."""
    from recognition.engines.choose import choose_engine
    from recognition.engines.cpu.shard import CpuShard
    from recognition.head.margin import Margin
    from recognition.head.shard import split_classes
    from recognition.head.sharded import ShardedHead
    from recognition.processes.communicator import Communicator, SingleProcess, largest

    with choose_engine(options.engine).communicator("device") as communicator:
        margin = Margin(64, 1, 0.5)
        pair: list[Communicator] = [communicator, SingleProcess()]
        across, replicas = reversed(pair) if options.whole else pair
        start, stop = split_classes(options.classes[0], across.size)[across.rank]
        head = ShardedHead([CpuShard(start, stop, options.dim, normalised=True, scale=margin.s)], margin, across,
                           replicas=replicas)
        gradient, own = ones(options.engine, options.parameters), options.batch // communicator.size
        random = np.random.RandomState(communicator.rank)

        def step() -> None:
            head.forward_backward(random.standard_normal((own, options.dim)).astype(np.float32),
                                  random.randint(0, options.classes[0], own))
            communicator.sum_in_place("gradient", [gradient])
            head.step(0.1)
            if options.engine == "mxnet":
                gradient.wait_to_read()
            largest(communicator, 0)

        step()
        counted, network = communicator.bytes_sent, received_bytes(options.interface)
        for _ in range(options.steps):
            step()
        counted, network = communicator.bytes_sent - counted, received_bytes(options.interface) - network
        largest(communicator, 0)
        if communicator.rank == 0:
            sharing = communicator.size if options.interface == "lo" else 1  # processes
            print(MARK, counted // options.steps, network // options.steps // sharing, flush=True)


def measure(options: argparse.Namespace, processes: int, classes: int) -> tuple[int, int]:
    """The bytes a process and step, counted by the communicator and by the kernel."""
    flags = [f"--{name}={getattr(options, name)}" for name in ("batch", "dim", "parameters", "steps")]
    flags += ["--engine", options.engine]
    flags += ["--whole"] * options.whole
    counted, network = launched(processes, "bench.exchange", f"--classes={classes}", *flags).split()
    return int(counted), int(network)


def launched(processes: int, module: str, *flags: str) -> str:
    """Run a bench with ``--work`` in so many processes; returns what the first one printed behind MARK."""
    run = subprocess.run([sys.executable, "-m", "recognition.launch", "-np", str(processes), "--", sys.executable, "-m",
                          module, "--work", *flags], capture_output=True, text=True)
    found = next((line for line in run.stdout.splitlines() if MARK in line), None)
    if run.returncode or found is None:
        sys.exit(run.stdout + run.stderr)
    return found.partition(MARK)[2]


def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--classes", type=int, nargs="*", default=[1000, 100000])
    parser.add_argument("--batch", type=int, default=64, help="images of all processes")
    parser.add_argument("--dim", type=int, default=512, help="length of an embedding")
    parser.add_argument("--parameters", type=int, default=1000000, help="of the backbone")
    parser.add_argument("--engine", default="mxnet", choices=("mxnet", "torch"))
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--whole", action="store_true", help="each process has all of W, and sums its gradients")
    parser.add_argument("--interface", default="lo", help=argparse.SUPPRESS)  # of a host with one process
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return work(options)
    print(f"batch {options.batch}, dim {options.dim}, {options.parameters} backbone parameters; bytes a process and "
          f"step\n\n{'processes':>10}{'classes':>10}{'counted':>12}{'formula':>12}{'network':>12}")
    ratios = {}
    for processes in options.processes:
        first = 0
        for classes in options.classes:
            counted, network = measure(options, processes, classes)
            own = options.batch // processes
            wanted = sent_parallel(processes, own, options.dim, options.parameters)
            if options.whole:
                size = HeadSize(classes, classes, own, options.dim)
                wanted = sent_data_parallel(processes, own, size, options.parameters)
            print(f"{processes:10}{classes:10}{counted:12}{wanted:12}{network:12}", flush=True)
            first = first or counted
            if processes > 1:
                ratios[f"{processes} processes, {classes} classes"] = counted / first
                ratios[f"{processes} processes, {classes} classes, formula"] = counted / wanted
    write_ratios(options.json, ratios)


if __name__ == "__main__":
    main()
