# SPDX-License-Identifier: Apache-2.0
"""Breaks small runs on purpose and compares their ends: the long form of tests/faults/test_chaos.py (`make chaos`).

    python -m faults.chaos --record
    python -m faults.chaos kills --kills 30 --folder F; python -m faults.chaos kills --kills 30 --folder F

A later command continues the work in the folder: the second command above makes it 60 kills. The faults are kills (of
one process), processes (kills of one or both of two), disk, handles, clock and damage; --engine is for the first two.
With --record the results go to the table of docs/records/reliability.md.
"""
from __future__ import annotations

import argparse
import json
import math
import signal
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Callable

import numpy as np

from faults.chaos_damage import damage
from faults.chaos_faults import clock, disk, handles, read_only
from faults.chaos_kills import Kills, kill_runs
from faults.chaos_run import Workshop
from faults.reliability import Row, harness_parser, report

KILLS, STEPS, TRIALS = 50, 240, 10  # kills of one process, and of several: 100 in all
COMMAND = "make chaos"
Fault = Callable[[Path, argparse.Namespace], "list[Row]"]


def kills(folder: Path, options: argparse.Namespace, processes: int = 1) -> list[Row]:
    """Add so many kills to those of the folder's tally."""
    tally_file = folder / "tally.json"
    tally = Kills(**json.loads(tally_file.read_text())) if tally_file.exists() else Kills()
    random = np.random.default_rng([options.seed, processes, tally.tried])
    workshop = Workshop(folder, options.steps, processes, options.engine)
    try:
        kill_runs(workshop, options.kills, random, tally, options.seconds)
    finally:
        tally_file.write_text(json.dumps(asdict(tally)))
    return [tally.row(processes, options.engine)]


FAULTS: dict[str, Fault] = {
    "kills": kills,
    "processes": lambda folder, options: kills(folder, options, processes=2),
    "disk": lambda folder, options: [*disk(folder / "full", options.seed, options.trials),
                                     *read_only(folder / "read-only", options.seed, options.trials)],
    "handles": lambda folder, options: handles(folder, options.seed, options.trials),
    "clock": lambda folder, options: clock(folder, options.seed, options.trials),
    "damage": lambda folder, options: damage(folder, options.seed, 30 * options.trials, options.trials),
}


def main() -> int:
    parser = harness_parser("chaos", __doc__)
    parser.add_argument("faults", nargs="*", help=f"of {', '.join(FAULTS)}; default: all")
    parser.add_argument("--kills", type=int, default=KILLS, help="of one process, and of several")
    parser.add_argument("--seconds", type=float, default=math.inf, help="after which nothing more is killed")
    parser.add_argument("--trials", type=int, default=TRIALS, help="of each other fault; 30 times as many of damage")
    parser.add_argument("--steps", type=int, default=STEPS, help="of a run that is killed")
    parser.add_argument("--engine", default="mxnet", choices=("mxnet", "torch"), help="of runs that are killed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the runs go, and stay; default: removed at the end")
    options = parser.parse_args()
    if unknown := set(options.faults) - set(FAULTS):
        parser.error(f"faults: found {', '.join(sorted(unknown))}, expected some of {', '.join(FAULTS)}")
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # saves tallies, unmounts file systems
    with tempfile.TemporaryDirectory() as scratch:
        status = 0
        for name in options.faults or FAULTS:
            rows = FAULTS[name]((options.folder or Path(scratch)) / name, options)
            title, command = (name, COMMAND) if options.engine == "mxnet" else (
                f"{name}-with-pytorch", f"python -m faults.chaos {name} --engine {options.engine} --record")
            status = max(status, report(title, command, rows, options.record))
    return status


if __name__ == "__main__":
    sys.exit(main())
