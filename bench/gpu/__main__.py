# SPDX-License-Identifier: Apache-2.0
"""Checks the PyTorch engine on a GPU, or in a small form on the CPU, from a checkout and within eight minutes.

    python -m bench.gpu                              # all, on the first GPU; without one, on the CPU
    python -m bench.gpu --only head networks --output /tmp/found

A check is a line with ``ok`` or ``BAD``; a figure without a limit is ``ok``. The folder gets ``log.txt`` with all lines
and ``found.json`` with all numbers, both up to date after each line. The exit status is 1 if something is bad. A check
that cannot run is bad, and the others go on. Nothing is begun that the limit leaves no time for.
"""
from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import traceback
from pathlib import Path

import numpy as np

from bench.gpu import batch_norm, demo, fused, heads, networks, whole
from bench.gpu.report import Report, Setting
from recognition.engines.torch.imports import torch
from recognition.training.watch.run_record import revision

ROOT = Path(__file__).resolve().parents[2]
CHECKS = {
    "head": heads.kinds_against_float64, "head-states": heads.states_and_bits, "head-cost": heads.memory_and_time,
    "kernels": fused.kernels_against_float64, "kernels-cost": fused.kernels_cost,
    "networks": networks.against_float64, "network-states": networks.states_and_bits, "16-bits": networks.in_16_bits,
    "graphs": networks.graphs, "fused": batch_norm.against_float64, "fused-cost": batch_norm.cost,
    "fused-cuts": batch_norm.cuts, "demo": demo.run_of_the_demo, "network-cost": networks.speed,
    "resume": demo.resumed, "steps": whole.side_by_side, "where": whole.where,
}
NEEDED = 20  # seconds that a check is not begun without


def about(device: torch.device) -> dict[str, str]:
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {os.cpu_count()} processors"
    return {"device": card, "torch": torch.__version__, "cuda": str(torch.version.cuda), "numpy": np.__version__,
            "python": platform.python_version(), "revision": revision(ROOT)}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(CHECKS), default=list(CHECKS), metavar="CHECK",
                        help=", ".join(CHECKS))
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu", help="cuda:0 or cpu")
    parser.add_argument("--output", type=Path, help="a folder for log.txt and found.json (default: a new one)")
    parser.add_argument("--limit", type=float, default=480, metavar="SECONDS")
    parser.add_argument("--arcface-torch", type=Path, metavar="FOLDER",
                        help="its files (iresnet.py, partial_fc_v2.py, losses.py), fetched by you, to compare with")
    options = parser.parse_args()
    folder = options.output or Path(tempfile.mkdtemp(prefix="bench-gpu-"))
    folder.mkdir(parents=True, exist_ok=True)
    device = torch.device(options.device)
    report = Report(folder, about(device))
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.only:
            report.begin(name)
            if report.seconds > options.limit - NEEDED:
                report.true("begun", False, f"no: {options.limit:g} s are over")
                continue
            try:
                CHECKS[name](Setting(device, Path(scratch), options.arcface_torch), report)
            except Exception as error:  # the other checks still tell something
                report.true("done", False, f"{type(error).__name__}: {error}")
                report.say(traceback.format_exc())
            if device.type == "cuda":
                torch.cuda.empty_cache()
    report.say(f"{folder}: {len(report.failed)} bad{': ' if report.failed else ''}{'; '.join(report.failed)}")
    return int(bool(report.failed))


if __name__ == "__main__":
    sys.exit(main())
