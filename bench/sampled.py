# SPDX-License-Identifier: Apache-2.0
"""Measures sampled steps of the head: the draw beside the step, and class centres on a disk.

    python -m bench.sampled draw                                    # 10,000,000 classes of few numbers
    python -m bench.sampled disk --classes 2000000 --ratio 0.01 --folder /fast
    python -m bench.sampled disk --classes 2000000 --numbers bfloat16 --folder /fast
    python -m bench.sampled draw --gpu; python -m bench.sampled disk --gpu --batch 512 --folder /fast

``draw``: steps with the sample drawn in them, and with that of the next step drawn beside them, in turn: pairs of the
same process. ``disk``: W and its momentum in files of ``--folder``. Before a step all of both is put out of memory, as
if it were far larger than memory. Each line is a step:

    resident      with its rows in memory
    on demand     with none of its rows in memory: they are read where they are needed
    read          the rows alone, by the threads that read ahead
    read ahead    with its rows in memory, and those of the next step read beside it, until both are done
    write back    the rows that a step changed, by the kernel, which does so beside the next steps

The step is that of the CPU's kernels, with ``--numbers bfloat16`` that of PyTorch on the CPU, with ``--gpu`` that of
PyTorch in chunks on the first GPU. GB are those that the process read or wrote by the kernel's count, memory is that
which no file backs.
"""
from __future__ import annotations

import mmap
import os
import re
import shutil
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Callable

import numpy as np

from bench.ratios import bench_parser, write_ratios
from recognition.engines.choose import choose_engine
from recognition.engines.cpu.shard import CpuShard
from recognition.errors import command
from recognition.head.margin import Margin
from recognition.head.sampling import ClassSampler
from recognition.head.sharded import ShardedHead
from recognition.io.mapped import ReadAhead
from recognition.processes.communicator import SingleProcess

LINES = ("resident", "on demand", "read", "read ahead", "write back")
PAGE_OUT = 21  # MADV_PAGEOUT of Linux 5.4, for which Python has no name


class Batches:
    """Random features and labels by step."""

    def __init__(self, classes: int, batch: int, dim: int) -> None:
        self._classes, self._shape = classes, (batch, dim)

    def __call__(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        random = np.random.default_rng(step)
        return random.standard_normal(self._shape, np.float32), random.integers(0, self._classes, self._shape[0])


def make_head(classes: int, dim: int, ratio: float, numbers: str, gpu: bool, folder: Path | None) -> ShardedHead:
    options: dict[str, Any] = {"normalised": True, "scale": 64.0, "folder": folder}
    if numbers == "float32" and not gpu:
        shard: Any = CpuShard(0, classes, dim, **options)
    else:
        from recognition.engines.torch.imports import torch
        from recognition.engines.torch.shard import TorchShard

        shard = TorchShard(torch.device("cuda" if gpu else "cpu"), 0, classes, dim, on_host=folder is not None,
                           in_16_bits=numbers == "bfloat16", **options)
    return ShardedHead([shard], Margin(), SingleProcess(), sampler=ClassSampler(ratio))


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def step(head: ShardedHead, batches: Batches, ahead: bool) -> None:
    """A step; with ``ahead`` the next sample is drawn, and its rows are read, beside it."""
    now = head.steps
    if ahead:
        head.expect(batches(now + 1)[1])
    head.forward_backward(*batches(now))
    head.step(0.1)


def draw(classes: int, dim: int, batch: int, ratio: float, numbers: str, gpu: bool, pairs: int) -> dict[str, float]:
    """Compare steps that draw their sample with steps whose sample was drawn beside the step before."""
    head, batches = make_head(classes, dim, ratio, numbers, gpu, None), Batches(classes, batch, dim)
    alone = [timed(partial(head.sampler, batches(i)[1], i, 0, classes)) for i in range(3)]
    for _ in range(2):
        step(head, batches, False)
    inside, beside = [], []
    for _ in range(pairs):
        inside.append(timed(lambda: step(head, batches, False)))
        step(head, batches, True)  # the last one that draws for itself
        beside.append(timed(lambda: step(head, batches, True)))
        step(head, batches, False)  # takes what the one before drew
    faster = np.subtract(inside, beside)
    print(f"{classes:,} classes x {dim}, ratio {ratio:g}, B = {batch}: the draw alone {np.median(alone):.3f} s; a step "
          f"with it inside {np.median(inside):.3f} s, beside {np.median(beside):.3f} s; {np.median(faster):.3f} s less "
          f"(of {pairs} pairs: {faster.min():.3f} to {faster.max():.3f})")
    return {"draw beside the step": float(np.median(inside) / np.median(beside))}


class Disk:
    """The mapped files of a head's only shard, and what the process reads and writes."""

    def __init__(self, head: ShardedHead) -> None:
        self.head = head
        shard: Any = head.shards[0]
        rows: Any = shard if isinstance(shard, CpuShard) else shard._rows
        self.files: list[np.ndarray] = rows._on_disk() if isinstance(shard, CpuShard) else rows._files
        self.reader: ReadAhead = rows._read_ahead

    def write_back(self) -> None:
        for array in self.files:
            array.base.flush()  # type: ignore[union-attr]

    def put_out(self) -> None:
        """Have nothing of the files in memory."""
        self.write_back()
        for array in self.files:
            base: Any = array.base
            base.madvise(PAGE_OUT)

    def read(self, labels: np.ndarray) -> None:
        """Read the rows of the coming step."""
        (shard,) = self.head.shards
        shard.expect(self.head.sampler(labels, self.head.steps, shard.start, shard.stop))
        self.reader.wait()


def counted(name: str) -> float:
    """GB that this process has read or written."""
    return int(re.findall(rf"^{name}: (\d+)", Path("/proc/self/io").read_text(), re.MULTILINE)[0]) / 1e9


def anonymous() -> float:
    """GB of memory of this process that no file backs."""
    return int(re.findall(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[0]) * 1024 / 1e9


def disk(classes: int, dim: int, batch: int, ratio: float, numbers: str, gpu: bool, repeats: int,
         folder: Path) -> dict[str, float]:
    """Measure steps with W on a disk, and print the table."""
    start = time.perf_counter()
    head, batches = make_head(classes, dim, ratio, numbers, gpu, folder), Batches(classes, batch, dim)
    files, selected = Disk(head), max(batch, round(ratio * classes))
    size = sum(array.nbytes for array in files.files) / 1e9
    files.put_out()
    print(f"{classes:,} classes x {dim} in {numbers}: {size:.1f} GB, made in {time.perf_counter() - start:.0f} s; "
          f"{selected:,} a step, B = {batch}")
    step(head, batches, False)  # compiles

    found: dict[str, list[tuple[float, float]]] = {name: [] for name in LINES}  # seconds and GB

    def note(name: str, work: Callable[[], object]) -> None:
        before = counted("read_bytes")
        found[name].append((timed(work), counted("read_bytes") - before))

    def read() -> None:
        files.read(batches(head.steps)[1])

    def read_ahead() -> None:
        step(head, batches, True)
        head._expected[head.steps].samples()  # by then its rows are being read
        files.reader.wait()

    for _ in range(repeats):
        files.put_out()
        read()
        before = counted("write_bytes")
        note("resident", lambda: step(head, batches, False))
        seconds = timed(files.write_back)
        found["write back"].append((seconds, counted("write_bytes") - before))  # the kernel counts changed pages
        files.put_out()
        note("on demand", lambda: step(head, batches, False))
        files.put_out()
        note("read", read)
        note("read ahead", read_ahead)
        step(head, batches, False)
    print(f"{'a step':12s}{'seconds':>9s}{'GB':>8s}{'MB/s':>8s}{'rows/s':>12s}")
    median = {name: np.median(pairs, axis=0).tolist() for name, pairs in found.items()}
    for name, (seconds, gb) in median.items():
        print(f"{name:12s}{seconds:9.2f}{gb:8.2f}{1000 * gb / seconds:8.0f}{selected / seconds:12,.0f}")
    print(f"memory {anonymous():.2f} GB; in memory W and its momentum would be {size:.2f} GB more\n", flush=True)
    return {"read ahead": median["on demand"][0] / median["read ahead"][0]}


@command
def main(arguments: Sequence[str] | None = None) -> int:
    parser = bench_parser(__doc__)
    parser.add_argument("what", choices=("draw", "disk"))
    parser.add_argument("--classes", type=int, help="default: 10,000,000 for draw, 200,000 for disk")
    parser.add_argument("--dim", type=int, help="default: 16 for draw, 512 for disk")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--ratio", type=float, default=0.1)
    parser.add_argument("--numbers", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--gpu", action="store_true", help="compute on the first GPU, by PyTorch")
    parser.add_argument("--folder", type=Path, default=Path("."), help="on the disk that is measured")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    if not 0 < options.ratio <= 1:
        parser.error(f"--ratio: found {options.ratio:g}, expected a number above 0, at most 1")
    if not options.folder.is_dir():
        parser.error(f"--folder: {options.folder} is not there")
    if options.gpu:
        choose_engine("torch").check_devices((("gpu", 0),))
    common = options.batch, options.ratio, options.numbers, options.gpu, options.repeats
    if options.what == "draw":
        ratios = draw(options.classes or 10_000_000, options.dim or 16, *common)
    else:
        print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}, disk of "
              f"{shutil.disk_usage(options.folder).total / 1e9:.0f} GB, pages of {mmap.PAGESIZE} bytes")
        ratios = disk(options.classes or 200_000, options.dim or 512, *common, options.folder)
    write_ratios(options.json, ratios)
    return 0


if __name__ == "__main__":
    sys.exit(main())
