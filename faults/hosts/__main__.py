# SPDX-License-Identifier: Apache-2.0
"""Breaks runs between two hosts, which are namespaces of this machine: one dies, hangs, is cut off, is slow, is killed.

    python -m faults.hosts --times 3 --kills 100 --record      # an hour or two; needs root (faults/hosts/bed.py)
    python -m faults.hosts --only power --times 1 --kills 0
"""
from __future__ import annotations

import argparse
import math
import sys

from faults.hosts import bed_run, network_folder
from faults.hosts.bed import Bed
from faults.hosts.faults import FAULTS, try_fault
from faults.hosts.kills import kills
from faults.hosts.namespaces import why_not
from faults.reliability import Row, report


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m faults.hosts", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=3, help="that each fault is tried")
    parser.add_argument("--kills", type=int, default=100, help="of all exchanges together")
    parser.add_argument("--seconds", type=float, default=math.inf, help="after which nothing more is killed")
    parser.add_argument("--only", default="", metavar="TEXT", help="faults whose description holds this")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true", help="write the rows to docs/records/reliability.md")
    options = parser.parse_args()
    if why := why_not():
        parser.error(why)
    rows = []
    with Bed(3) as bed:  # the name of the last leads to itself, which Horovod refuses
        bed_run.set_up(bed)
        for number, fault in enumerate(FAULTS):
            if options.only not in fault.what or not options.times:
                continue
            trials = [try_fault(bed, fault, f"--models-root ../models/fault-{number}-{time_}")
                      for time_ in range(options.times)]
            seconds = [trial.seconds for trial in trials if trial.kept]
            broken = [f"; {trial.said[:400]!r}" for trial in trials if not trial.kept]
            span = f"{min(seconds):.0f} to {max(seconds):.0f} s; nothing left" if seconds else ""
            rows.append(Row(fault.what, options.times, fault.promised, len(seconds), span + "".join(broken[:1])))
            print(rows[-1], flush=True)
        if options.times and options.only in network_folder.ABOUT:
            if lacks := network_folder.why_not():
                print(f"left out: {network_folder.ABOUT}: {lacks}")
            else:
                rows += network_folder.absences(bed, options.times)
        killed = kills(bed, options.kills, options.seconds, options.seed) if options.only in "kills" else []
    status = 0
    for name, found, flags in (("hosts", rows, f"--times {options.times} --kills 0"),
                               ("kills-between-hosts", killed, f"--times 0 --kills {options.kills}")):
        if found:
            status = max(status, report(name, f"python -m faults.hosts {flags} --record", found, options.record))
    return status


if __name__ == "__main__":
    sys.exit(main())
