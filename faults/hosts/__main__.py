# SPDX-License-Identifier: Apache-2.0
"""Breaks runs between two hosts, which are namespaces of this machine: one dies, hangs, is cut off, is slow, is killed.

    python -m faults.hosts --times 3 --kills 100 --record      # an hour or two; needs root (faults/hosts/bed.py)
    python -m faults.hosts --only power --times 1 --kills 0
"""
from __future__ import annotations

import contextlib
import json
import math
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from faults.hosts import bed_run, network_folder
from faults.hosts.bed import Bed
from faults.hosts.faults import FAULTS, Fault, try_fault
from faults.hosts.kills import kills
from faults.hosts.namespaces import why_not
from faults.hosts.trials import Trial, row
from faults.reliability import RECORDS, Row, harness_parser, report


def main() -> int:
    parser = harness_parser("hosts", __doc__)
    parser.add_argument("--times", type=int, default=3, help="that each fault is tried")
    parser.add_argument("--at-once", type=int, default=1, metavar="N", help="trials of a fault, in beds of their own")
    parser.add_argument("--kills", type=int, default=100, help="of all exchanges together")
    parser.add_argument("--seconds", type=float, default=math.inf, help="after which nothing more is killed")
    parser.add_argument("--only", default="", metavar="TEXT", help="faults whose description holds this")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if why := why_not():
        parser.error(why)
    faults = [fault for fault in FAULTS if options.only in fault.what] if options.times else []
    rows, away, killed = [], [], []
    with contextlib.ExitStack() as stack:
        # Three hosts each: the name of the last leads to itself, which Horovod refuses.
        beds = [stack.enter_context(Bed(3)) for _ in range(options.at_once)]
        for bed in beds:
            bed_run.set_up(bed)
        pool = stack.enter_context(ThreadPoolExecutor(options.at_once))
        for number, fault in enumerate(faults):
            def share(first: int, fault: Fault = fault, number: int = number) -> list[Trial]:
                return [try_fault(beds[first], fault, f"--models-root ../models/fault-{number}-{time_}")
                        for time_ in range(first, options.times, len(beds))]

            trials = [trial for some in pool.map(share, range(len(beds))) for trial in some]
            rows.append(row(fault.what, fault.promised, trials))
        if options.times and options.only in network_folder.ABOUT:
            if lacks := network_folder.why_not():
                print(f"left out: {network_folder.ABOUT}: {lacks}")
            else:
                away = network_folder.absences(beds[0], options.times)
        if options.only in "kills":
            killed = kills(beds[0], options.kills, options.seconds, options.seed)
    status = 0
    for name, found, flags in (
            ("hosts", rows, f"--times {options.times} --kills 0"),
            ("shared-folder-of-hosts", away, f"--only NFS --times {options.times} --kills 0"),
            ("kills-between-hosts", killed, f"--times 0 --kills {options.kills}")):
        if found and options.only and (RECORDS / "reliability" / f"{name}.json").exists():
            found = beside(json.loads((RECORDS / "reliability" / f"{name}.json").read_text())["rows"], found)
        if found:
            status = max(status, report(name, f"python -m faults.hosts {flags} --record", found, options.record))
    return status


def beside(recorded: list[dict[str, Any]], found: list[Row]) -> list[Row]:
    """The rows that are recorded, with those of the faults that ``--only`` let be tried in their places."""
    new = {one.fault: one for one in found}
    known = [new.pop(one["fault"], Row(**one)) for one in recorded]
    return [*known, *new.values()]


if __name__ == "__main__":
    sys.exit(main())
