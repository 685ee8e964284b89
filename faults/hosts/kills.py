# SPDX-License-Identifier: Apache-2.0
"""Kills runs between two hosts with SIGKILL at random moments, and compares how they end."""
from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from faults.hosts import bed_run
from faults.hosts.bed import Bed, Host
from faults.hosts.trials import running
from faults.reliability import Row
from recognition.training.states.folder import saved_states
from recognition.training.states.state import SavedState

STEPS, EVERY = 200, 10  # of a run; between states and verifications
LATEST_SECONDS = 6.0  # of a kill, after the processes have begun
LIFE_SECONDS = 600.0  # for a start and for the end of a run, on a busy machine
GONE_SECONDS = 45.0  # until nothing runs: a host without launcher ends its processes within 30
SHARE_OF_ALL = 0.25  # of the kills that are of the launcher and all processes at once
KILLS_A_RUN = 12
PROMISE = ("`--restarts`, or `--resume auto` where the launcher died, too, goes on; the end is that of a run that "
           "nothing disturbed, bit for bit: states, checkpoint, losses; nothing is left on either host")


@dataclass
class Tally:
    """The kills of runs with one exchange."""

    tried: int = 0
    of_all: int = 0
    servers: int = 0
    runs: int = 0
    failures: list[str] = field(default_factory=list)


def kills(bed: Bed, number: int, seconds: float, seed: int) -> list[Row]:
    """Kill so many times, or until ``seconds`` are over: a row for each exchange."""
    if not number:
        return []
    random, end = np.random.default_rng(seed), time.monotonic() + seconds
    tallies = {name: Tally() for name in bed_run.ENGINES}
    whole = {name: _undisturbed(bed, name) for name in tallies}
    while sum(tally.tried for tally in tallies.values()) < number and time.monotonic() < end:
        name = min(tallies, key=lambda one: tallies[one].tried)
        tally = tallies[name]
        most = min(KILLS_A_RUN, number - sum(one.tried for one in tallies.values()))
        problem = _one_run(bed, name, f"{name}-{tally.runs}", most, end, random, tally, whole[name])
        tally.runs += 1
        if problem:
            tally.failures.append(problem)
        print(f"{name}: {tally.tried} kills; {problem or 'same bits'}", flush=True)
    return [Row(f"SIGKILL at a random moment between two hosts, {name}", tally.tried, PROMISE,
                tally.tried - len(tally.failures),
                "; ".join([f"{tally.runs} runs compared at their end; {tally.of_all} kills of all processes and the "
                           f"launcher at once" + (f", {tally.servers} of a server or the scheduler" if tally.servers
                                                  else ""), *tally.failures]))
            for name, tally in tallies.items() if tally.tried]


def _start(bed: Bed, engine: str, name: str, launcher: str = "--restarts 1000") -> subprocess.Popen[str]:
    line = bed_run.line(list(bed)[:2], 1, f"--stall-timeout 60 {launcher}",
                        f"--max-steps {STEPS} --frequent {EVERY} --resume auto --models-root ../models/kills/{name}",
                        engine).replace("--verbose 1 ", f"--verbose {EVERY} ")
    return bed["node1"].begin(f"mkdir -p ../models/kills; {line} > ../models/kills/{name}.out 2>&1")


def _undisturbed(bed: Bed, engine: str) -> dict[str, Any]:
    run = _start(bed, engine, f"{engine}-undisturbed", "")
    if run.wait(LIFE_SECONDS):
        raise RuntimeError(f"the undisturbed run failed: {_said(bed, f'{engine}-undisturbed')}")
    return _end(bed, f"{engine}-undisturbed")


def _said(bed: Bed, name: str) -> str:
    return (bed.folder / "shared" / "kills" / f"{name}.out").read_text()[-1500:]


def _end(bed: Bed, name: str) -> dict[str, Any]:
    return end_of(bed.folder / "shared" / "kills" / name)


def end_of(models: Path) -> dict[str, Any]:
    """The numbers that have to be the same at the end of each run: sums of the last states' files and the checkpoint's,
    losses.

    :param models: the folder of checkpoints, with that of one run."""
    (folder,) = models.iterdir()
    found: dict[str, Any] = {path.name: SavedState(path).sums for path in saved_states(folder / "state")}
    found |= {path.name: path.read_text() for path in folder.glob("*.sha256")}
    records = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return {**found, "losses": [record["loss"] for record in records if "loss" in record]}


def _one_run(bed: Bed, engine: str, name: str, most: int, end: float, random: np.random.Generator, tally: Tally,
             wanted: dict[str, Any]) -> str:
    """Run once, through kills, to the end; returns the problem, or ''."""
    run = _start(bed, engine, name)
    for _ in range(most):
        if not _wait_for_moment(bed, run, random) or time.monotonic() > end:
            break
        tally.tried += 1
        if random.random() < SHARE_OF_ALL:
            tally.of_all += 1
            for host, pid, _ in [*_launchers(bed), *_trainers(bed)]:
                host.kill(pid, signal.SIGKILL)
            run.wait(LIFE_SECONDS)
            if left := running(bed, GONE_SECONDS):
                return f"{name}: left {left}"
            run = _start(bed, engine, name)
        else:
            found = _trainers(bed)
            host, pid, variables = found[int(random.integers(len(found)))]
            tally.servers += b"DMLC_ROLE=server" in variables or b"DMLC_ROLE=scheduler" in variables
            host.kill(pid, signal.SIGKILL)
            restarts = time.monotonic() + LIFE_SECONDS
            while run.poll() is None and host.processes().get(pid) and time.monotonic() < restarts:
                time.sleep(0.05)
    try:
        status = run.wait(LIFE_SECONDS)
    except subprocess.TimeoutExpired:
        for host, pid, _ in [*_launchers(bed), *_trainers(bed)]:
            host.kill(pid, signal.SIGKILL)
        return f"{name}: not ended in {LIFE_SECONDS:g} s: {_said(bed, name)!r}"
    if status:
        return f"{name}: status {status}: {_said(bed, name)!r}"
    if left := running(bed, GONE_SECONDS):
        return f"{name}: left {left}"
    found_end = _end(bed, name)
    other = [key for key in {**wanted, **found_end} if wanted.get(key) != found_end.get(key)]
    return f"{name}: other {', '.join(other)}" if other else ""


def _wait_for_moment(bed: Bed, run: subprocess.Popen[str], random: np.random.Generator) -> bool:
    """Wait until the trainers of both hosts are there, and a random time more; False if the run ended before."""
    end, since = time.monotonic() + LIFE_SECONDS, None
    moment = float(random.uniform(0, LATEST_SECONDS))
    while run.poll() is None and time.monotonic() < end:
        if since is None and len({host.name for host, _, _ in _trainers(bed)}) == 2:
            since = time.monotonic()
        if since is not None and time.monotonic() > since + moment and _trainers(bed):
            return True
        time.sleep(0.05)
    return False


def _programs(bed: Bed, word: str) -> Iterator[tuple[Host, int, bytes]]:
    for host in list(bed)[:2]:
        for pid, line in host.processes().items():
            words = line.split()
            if words and Path(words[0]).name.startswith("python") and word in words[:3]:
                try:
                    yield host, pid, Path(f"/proc/{pid}/environ").read_bytes()
                except OSError:  # it has ended
                    continue


def _trainers(bed: Bed) -> list[tuple[Host, int, bytes]]:
    """Workers, servers and scheduler: host, process and environment."""
    return list(_programs(bed, "train_parall.py"))


def _launchers(bed: Bed) -> list[tuple[Host, int, bytes]]:
    return list(_programs(bed, "recognition.launch"))
