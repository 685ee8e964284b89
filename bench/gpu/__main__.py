# SPDX-License-Identifier: Apache-2.0
"""Checks the PyTorch engine on a GPU, in a quarter of an hour, or in a small form on the CPU; from a checkout.

    python -m bench.gpu                              # all, on the first GPU; without one, on the CPU
    python -m bench.gpu --only head networks --output /tmp/found

A check is a line with ``ok`` or ``BAD``; a figure without a limit is ``ok``. Tables beside arcface_torch's end the run.
The folder gets ``log.txt`` with all lines, ``found.json`` with all numbers and ``tables.md``, up to date at any time.
The exit status is 1 if something is bad. A check that cannot run is bad, and the others go on. Whether numbers are
right is checked first, then steps are timed; checks that the limit leaves no time for are named in the last line.
"""
from __future__ import annotations

import argparse
import contextlib
import gc
import math
import os
import platform
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench.gpu import batch_norm, command, demo, fused, heads, networks, torch_compile, updates, where, whole
from bench.gpu.report import Report, Setting
from recognition.engines.torch.imports import torch
from recognition.training.watch.run_record import revision

ROOT = Path(__file__).resolve().parents[2]


class Check(NamedTuple):
    """A check, and the seconds that it takes on a GPU: as measured on an H200, or reckoned."""

    run: Callable[[Setting, Report], None]
    seconds: float


CHECKS = {
    "kernels": Check(fused.kernels_against_float64, 25), "fused": Check(batch_norm.against_float64, 15),
    "updates": Check(updates.against_others, 5), "head": Check(heads.kinds_against_float64, 20),
    "networks": Check(networks.against_float64, 25),
    "16-bits": Check(networks.in_16_bits, 15), "head-states": Check(heads.states_and_bits, 15),
    "network-states": Check(networks.states_and_bits, 10), "graphs": Check(networks.graphs, 60),
    "nccl": Check(command.one_rank, 35), "steps": Check(whole.side_by_side, 115), "where": Check(where.where, 20),
    "kernels-cost": Check(fused.kernels_cost, 30), "run": Check(command.by_the_command, 80),
    "resume": Check(demo.resumed, 85), "demo": Check(demo.run_of_the_demo, 25),
    "network-cost": Check(networks.speed, 40), "fused-cost": Check(batch_norm.cost, 25),
    "fused-cuts": Check(batch_norm.cuts, 25), "head-cost": Check(heads.memory_and_time, 30),
    "compile": Check(torch_compile.beside_graphs, 150),
}


def about(device: torch.device) -> dict[str, str]:
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {os.cpu_count()} processors"
    return {"device": card, "torch": torch.__version__, "cuda": str(torch.version.cuda), "numpy": np.__version__,
            "python": platform.python_version(), "revision": revision(ROOT)}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(CHECKS), default=list(CHECKS), metavar="CHECK",
                        help="with the seconds that each takes on a GPU: "
                             + ", ".join(f"{name} {check.seconds:g}" for name, check in CHECKS.items()))
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu", help="cuda:0 or cpu")
    parser.add_argument("--output", type=Path,
                        help="a folder for log.txt, found.json and tables.md (default: a new one)")
    parser.add_argument("--limit", type=float, default=math.inf, metavar="SECONDS",
                        help="of all checks together; on a GPU none is begun that may not end in time (default: none)")
    parser.add_argument("--arcface-torch", type=Path, metavar="FOLDER",
                        help="its files (iresnet.py, partial_fc_v2.py, losses.py), fetched by you, to compare with")
    options = parser.parse_args()
    folder = options.output or Path(tempfile.mkdtemp(prefix="bench-gpu-"))
    folder.mkdir(parents=True, exist_ok=True)
    device = torch.device(options.device)
    if device.type == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # nothing has imported Triton yet
    report, left_out = Report(folder, about(device), options.limit), list[str]()
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.only:
            if report.left < (CHECKS[name].seconds if device.type == "cuda" else 0):
                left_out.append(name)
                continue
            report.begin(name)
            try:
                CHECKS[name].run(Setting(device, Path(scratch), options.arcface_torch), report)
            except Exception as error:  # the other checks still tell something
                report.true("done", False, f"{type(error).__name__}: {error}")
                report.say(traceback.format_exc())
            gc.collect()
            if device.type == "cuda":
                with contextlib.suppress(RuntimeError):  # after an error of the driver's every call of it fails
                    torch.cuda.empty_cache()
    report.print_tables()
    if device.type == "cpu":
        report.say("on a CPU, times and shares of small sizes mean nothing: the checks show that numbers are right")
    report.say(f"{folder}: {len(report.failed)} bad{': ' if report.failed else ''}{'; '.join(report.failed)}")
    if left_out:
        report.say(f"left out, as the limit of {options.limit:g} s leaves no time: --only {' '.join(left_out)}")
    return int(bool(report.failed))


if __name__ == "__main__":
    sys.exit(main())
