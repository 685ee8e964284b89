# SPDX-License-Identifier: Apache-2.0
"""Compares the planner's figures with the memory of real processes, and with published figures of other programs.

    OMP_NUM_THREADS=2 python -m bench.plan                       # all three tables
    python -m bench.plan --tables head --classes 200000

``head``: steps of a shard; ``backbone``: steps of a replica. Each row is a process of its own; ``measured`` is the most
memory that it held in three steps, minus what it held with libraries loaded, in MB of 10^6 bytes. The head's kernels
are compiled by then; the backbone's figure contains the memory of oneDNN for its layers (50 to 250 MB with any batch).
``published``: GPU memory of Partial FC's own tables (its README: RTX 2080 Ti, ResNet-50, mixed precision, batches of
1024, 2048 and 4096), the plan for this program, and the plan with the buffers of the published program.
"""
from __future__ import annotations

import argparse
import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, NamedTuple

import numpy as np

from recognition.config.cli import parse_args
from recognition.config.options import Config
from recognition.plan.head_costs import FLOAT, MOMENTS, SHARDS, HeadSize, selected_classes
from recognition.plan.planning import METHODS, PlannedRun, backbone_cost

STEPS, DIM = 3, 512
STATUS = Path("/proc/self/status")


def held(what: str) -> int:
    """The bytes of this process: ``VmRSS`` now, ``VmHWM`` the most since :func:`forget`."""
    found = re.search(rf"{what}:\s+(\d+)", STATUS.read_text())
    return int(found[1]) * 1024 if found else 0


def forget() -> None:
    """Start the count of the peak memory anew (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def head_size(classes: int, batch: int, sub_centres: int, ratio: float, optimizer: str = "sgd") -> HeadSize:
    return HeadSize(classes, selected_classes(classes, ratio, batch, 1) if ratio < 1 else classes, batch, DIM,
                    sub_centres, MOMENTS[optimizer])


def measure_head(kind: str, classes: int, batch: int, sub_centres: int, ratio: float, optimizer: str = "sgd") -> int:
    from recognition.engines.cpu.shard import CpuShard
    from recognition.engines.mxnet.imports import mx
    from recognition.engines.mxnet.shard import MxnetShard
    from recognition.head.margin import Margin
    from recognition.head.sampling import ClassSampler
    from recognition.head.sharded import ShardedHead
    from recognition.optim.adamw import AdamW
    from recognition.processes.communicator import SingleProcess

    def train(classes: int) -> int:
        options: dict[str, Any] = {"normalised": True, "scale": 64.0, "sub_centres": sub_centres}
        shard = (CpuShard(0, classes, DIM, **options) if kind == "cpu" else
                 MxnetShard(mx.cpu(), 0, classes, DIM, **options))
        head, random = ShardedHead([shard], Margin(64), SingleProcess(), sampler=ClassSampler(ratio),
                                   adamw=AdamW() if optimizer == "adamw" else None), np.random
        mx.nd.waitall()
        forget()
        for _ in range(STEPS):
            head.forward_backward(random.standard_normal((batch, DIM)).astype(np.float32),
                                  random.randint(0, classes, batch))
            head.step(0.1)
        mx.nd.waitall()
        return held("VmHWM")

    train(2000)  # compiles, and makes the libraries take their buffers
    before = held("VmRSS")
    return train(classes) - before


def configuration(network: str, batch: int, low: bool, memonger: bool, kind: str) -> Config:
    config = parse_args("train_parall", [f"--network={network}", f"--per-batch-size={batch}"], environ={})
    return dataclasses.replace(config, fp16=low, memonger=memonger, devices=((kind, 0),))


def measure_backbone(network: str, batch: int, low: bool, memonger: bool) -> int:
    from recognition.engines.configured import computing_of
    from recognition.engines.interface import Updating
    from recognition.engines.mxnet.backbone import ReplicatedBackbone
    from recognition.engines.mxnet.imports import mx
    from recognition.engines.mxnet.passes.choose import form_to_train
    from recognition.networks import build_symbol
    from recognition.networks.initialise import initialise
    from recognition.processes.communicator import SingleProcess

    config = configuration(network, batch, low, memonger, "cpu")
    side = config.image_shape[0]
    symbol = build_symbol(config)
    before = held("VmRSS")
    shape = (3, side, side)
    backbone = ReplicatedBackbone(form_to_train(symbol, computing_of(config), shape), *initialise(symbol, shape, 0),
                                  [mx.cpu()], batch, shape, SingleProcess(), updating=Updating(0.9, 5e-4))
    mx.nd.waitall()
    forget()
    images = np.zeros((batch, 3, side, side), np.uint8)
    for _ in range(STEPS):
        backbone.backward(backbone.forward(images))
        backbone.step(0.0)
    mx.nd.waitall()
    return held("VmHWM") - before


MEASURES: dict[str, Callable[..., int]] = {"head": measure_head, "backbone": measure_backbone}


def measured(table: str, **case: Any) -> int:
    command = [sys.executable, "-m", "bench.plan", "--one", json.dumps([table, case])]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def line(cells: list[Any], planned: int, found: int) -> None:
    print("".join(f"{cell!s:>10}" for cell in cells)
          + f"{planned / 1e6:10.0f}{found / 1e6:10.0f}{(planned - found) / 1e6:+10.0f}{planned / found - 1:+8.1%}",
          flush=True)


def head_table(classes: list[int], batch: int, optimizer: str) -> None:
    print(f"head, D = {DIM}, B = {batch}, {optimizer}\n\n" + "".join(f"{title:>10}" for title in (
        "shard", "classes", "K", "ratio", "planned", "measured", "off by")))
    for kind in ("cpu", "gpu"):
        for count in classes:
            for sub_centres in (1, 3):
                for ratio in (1.0, 0.1):
                    planned = sum(SHARDS[kind](head_size(count, batch, sub_centres, ratio, optimizer)).values())
                    line([{"cpu": "CpuShard", "gpu": "MxnetShard"}[kind], count, sub_centres, ratio], planned, measured(
                        "head", kind=kind, classes=count, batch=batch, sub_centres=sub_centres, ratio=ratio,
                        optimizer=optimizer))


def backbone_table(networks: list[str], batches: list[int], low: bool) -> None:
    print("backbone\n\n" + "".join(f"{title:>10}" for title in (
        "network", "batch", "numbers", "memonger", "planned", "measured", "off by")))
    for network in networks:
        for dtype in ("float32", "bfloat16") if low else ("float32",):
            for memonger in (False, True):
                for batch in batches:
                    case: dict[str, Any] = {"network": network, "batch": batch, "low": dtype == "bfloat16",
                                            "memonger": memonger}
                    cost = backbone_cost(configuration(**case, kind="cpu"))
                    line([network, batch, dtype, "yes" if memonger else "no"],
                         sum(cost.memory(MOMENTS["sgd"]).values()), measured("backbone", **case))


class Published(NamedTuple):
    """A row of https://github.com/deepinsight/insightface/tree/master/recognition/partial_fc, "Performance On Million
    Identities". The share of sampled negatives is 0.1, as in that program's presets."""

    devices: int
    classes: int
    batch: int  # of all devices
    ratio: float
    mebibytes: int  # as nvidia-smi counts; on cards that have 11019

    @property
    def bytes(self) -> int:
        return self.mebibytes * 2**20


PUBLISHED = (Published(8, 1_000_000, 1024, 1.0, 10408), Published(8, 1_000_000, 1024, 0.1, 8100),
             Published(64, 10_000_000, 2048, 1.0, 9684), Published(64, 10_000_000, 4096, 0.1, 6722))
# Buffers of the published program, counted in a version of its source (pytorch/partial_fc.py, 2020): the margins'
# logits, their exponentials, and the gradient by the cosines; W and its momentum; for the rows of a step the normalised
# rows, and the gradients by these and by the rows themselves. It is unknown which version made the tables; they were
# known when this count was made. The memory that is not planned is fitted: one number to four rows.
THEIR_LOGITS, THEIR_ROWS = 3, 3


def planned_rows() -> list[tuple[Published, int, int]]:
    """Each published row with the bytes planned for this program, and those for the published program's buffers."""
    rows = []
    for row in PUBLISHED:
        own = row.batch // row.devices
        config = configuration("r50", own, True, False, "gpu")
        run = PlannedRun(row.classes, row.devices, own, config.emb_size, backbone_cost(config), ratio=row.ratio)
        cost, size = METHODS["sampled"].cost(run), run.head(row.ratio)
        backbone = sum(run.backbone.memory(size.moments).values())
        theirs = (2 * size.centres + THEIR_ROWS * size.selected_centres + THEIR_LOGITS * size.logits
                  + 2 * row.batch * DIM * FLOAT)
        rows.append((row, cost.total, theirs + backbone))
    return rows


def not_planned(rows: list[tuple[Published, int, int]]) -> float:
    """The mean memory of published runs beyond the plan for their buffers: CUDA, cuDNN, NCCL, the framework."""
    return float(np.mean([row.bytes - theirs for row, _, theirs in rows]))


RATIOS = (("sampled / full, 8 GPUs", 1, 0), ("sampled / full, 64 GPUs", 3, 2), ("64 / 8 GPUs, full", 2, 0),
          ("64 / 8 GPUs, sampled", 3, 1))


def published_table() -> None:
    rows = planned_rows()
    rest = not_planned(rows)
    print(f"published, in MB of 10^6 bytes; the last two columns with {rest / 1e6:.0f} MB of what is not planned, the "
          "mean difference\n\n" + "".join(f"{title:>14}" for title in (
              "GPUs", "classes", "batch", "ratio", "published", "their buffers", "this program")))
    for row, ours, theirs in rows:
        cells = [*row[:4], *(f"{size / 1e6:.0f}" for size in (row.bytes, theirs + rest, ours + rest))]
        print("".join(f"{cell!s:>14}" for cell in cells))
    print()
    for title, after, before in RATIOS:
        (row, ours, theirs), (row_0, ours_0, theirs_0) = rows[after], rows[before]
        ratios = row.bytes / row_0.bytes, (theirs + rest) / (theirs_0 + rest), (ours + rest) / (ours_0 + rest)
        print(f"{title:>56}" + "".join(f"{ratio:14.2f}" for ratio in ratios))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="*", default=["head", "backbone", "published"],
                        choices=("head", "backbone", "published"))
    parser.add_argument("--classes", type=int, nargs="*", default=[50_000, 200_000])
    parser.add_argument("--batch", type=int, default=64, help="of the head")
    parser.add_argument("--optimizer", default="sgd", choices=MOMENTS, help="of the head")
    parser.add_argument("--networks", nargs="*", default=["y1", "r50"])
    parser.add_argument("--batches", type=int, nargs="*", default=[4, 8], help="of the backbone")
    parser.add_argument("--bfloat16", action="store_true", help="the backbone in bfloat16 as well")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        table, case = options.one
        print(MEASURES[table](**case))
        return
    if "head" in options.tables:
        head_table(options.classes, options.batch, options.optimizer)
    if "backbone" in options.tables:
        backbone_table(options.networks, options.batches, options.bfloat16)
    if "published" in options.tables:
        published_table()


if __name__ == "__main__":
    main()
