# SPDX-License-Identifier: Apache-2.0
"""Watches a run of many small steps: memory, threads, open files and logs must not grow.

    python -m faults.long_run                                       # 20,000 steps, two to four minutes
    python -m faults.long_run --record -- --sample-ratio 0.5        # flags of the run; the row goes to docs/records/

It verifies and saves a state every 500 steps, so that their memory must be freed, too. The first tenth of the run,
which allocates and compiles, is left out; of the rest the first half is compared with the second.
"""
from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from faults import small_run
from faults.reliability import Row, harness_parser, report

INTERVAL_SECONDS = 0.5  # between looks at the process
MOST_GROWTH = 1.0  # MB in 1,000 steps; memory that grows more is not level
MORE_FILES = 4  # may be open at the moment of a look: a state or a set is being read or written


class Look(NamedTuple):
    step: int  # of the last speed line
    memory: float  # resident, MB
    threads: int
    files: int


def look(pid: int, history: Path) -> Look | None:
    """A look at the process; None after its end, or before it logs."""
    try:
        lines_of_status = Path(f"/proc/{pid}/status").read_text().splitlines()
        status = dict(line.split(":", 1) for line in lines_of_status if ":" in line)
        files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        with history.open("rb") as lines:
            lines.seek(max(0, history.stat().st_size - 400))
            last = lines.read().decode().splitlines()[-1]
        step = int(last.split('"step": ')[1].split(",")[0])
        return Look(step, int(status["VmRSS"].split()[0]) / 1024, int(status["Threads"]), files)
    except (OSError, KeyError, IndexError, ValueError):
        return None


def watch(folder: Path, steps: int, flags: list[str]) -> tuple[list[Look], str]:
    """Run so many steps; returns the looks at the process, and the problem with the run, if there is one."""
    models = folder / "models"
    with open(folder / "output", "w") as output:
        process = subprocess.Popen(
            small_run.command(folder / "set", models, "--max-steps", str(steps), "--verbose", "500", *flags),
            stdout=output, stderr=output, env=small_run.environment(), cwd=folder)
        looks = []
        while process.poll() is None:
            time.sleep(INTERVAL_SECONDS)
            if found := look(process.pid, models / "small-arcface-small" / "history.jsonl"):
                looks.append(found)
    return looks, "" if process.returncode == 0 else (folder / "output").read_text()[-2000:]


def growth(looks: list[Look]) -> float:
    """The growth in MB in 1,000 steps, from the medians of two halves of the steps."""
    middle = (looks[0].step + looks[-1].step) / 2
    halves = [[at for at in looks if (at.step < middle) == first] for first in (True, False)]
    memory = [statistics.median(at.memory for at in half) for half in halves]
    steps = [statistics.median(at.step for at in half) for half in halves]
    return (memory[1] - memory[0]) / (steps[1] - steps[0]) * 1000


def row(name: str, steps: int, looks: list[Look], error: str) -> Row:
    promised = f"memory grows by less than {MOST_GROWTH:g} MB in 1,000 steps, threads and open files not at all"
    level = [at for at in looks if at.step >= steps / 10]
    if error or len(level) < 10:
        return Row(name, steps, promised, 0, error or "too short to say")
    grown, half = growth(level), len(level) // 2
    threads, files = [at.threads for at in level], [at.files for at in level]
    kept = (grown < MOST_GROWTH and max(threads[half:]) <= max(threads[:half])  # some live for a verification alone
            and max(files[half:]) <= max(files[:half]) + MORE_FILES)
    return Row(name, steps, promised, steps if kept else 0,
               f"{level[0].memory:.0f} MB at step {level[0].step:,}, {level[-1].memory:.0f} MB at step "
               f"{level[-1].step:,}, {grown:+.2f} MB in 1,000 steps; {min(threads)} to {max(threads)} threads, "
               f"{min(files)} to {max(files)} open files")


def main() -> int:
    parser = harness_parser("long_run", __doc__)
    parser.add_argument("--steps", type=int, default=20000)
    parser.add_argument("flags", nargs="*", help="of train_parall.py, behind --")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        small_run.make(Path(folder) / "set")
        name = " ".join([f"{options.steps:,} steps", *options.flags])
        found = row(name, options.steps, *watch(Path(folder), options.steps, options.flags))
    return report("long-runs", " ".join(["python -m faults.long_run --record --", *options.flags]), [found],
                  options.record)


if __name__ == "__main__":
    sys.exit(main())
