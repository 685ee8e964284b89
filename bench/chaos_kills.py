# SPDX-License-Identifier: Apache-2.0
"""Kills runs with SIGKILL at random moments, many of them inside a checkpoint, and compares how they end."""
from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from dataclasses import dataclass, field

import numpy as np

from bench.chaos_run import Life, Workshop, unfinished
from bench.reliability import Row

PROMISE = ("`--resume auto` goes on; the end is that of a run that nothing disturbed, bit for bit: states, "
           "checkpoints, history; no temporary file is left")
MOST_CHECKPOINTS = 12  # of a life that is killed inside one
INSIDE = 0.7  # of the kills: what is unfinished is watched for
WINDOW = 0.003  # seconds after something unfinished is seen in which the kill comes
LATER = 1.5  # how far moments reach beyond the first state of the first life, in its time


@dataclass
class Kills:
    """What was tried until now, and what came of it."""

    tried: int = 0
    inside: int = 0  # kills that left something unfinished
    worker: int = 0  # kills of one process of several, which launch starts again
    runs: int = 0  # that came to their end and were compared
    most_left: int = 0  # temporary names after a kill, at most
    failures: list[str] = field(default_factory=list)

    def row(self, processes: int) -> Row:
        how = "one process" if processes == 1 else f"{processes} processes under `recognition.launch` with Horovod"
        seen = (f"{self.inside} inside a state or checkpoint; {self.runs} runs compared at their end; after a kill at "
                f"most {self.most_left} temporary names, at the end none")
        if processes > 1:
            seen += f"; {self.worker} of one worker, the others of all processes and the launcher at once"
        return Row(f"SIGKILL at a random moment, {how}", self.tried, PROMISE, self.tried - len(self.failures),
                   "; ".join([seen, *self.failures]))


def kill_runs(workshop: Workshop, kills: int, random: np.random.Generator, tally: Kills,
              seconds: float = math.inf) -> None:
    """Kill so many times, or until so much time is over, and let the last run come to its end."""
    end = time.monotonic() + seconds
    workshop.reference()
    first = _time_to_first_state(workshop)
    goal = tally.tried + kills
    while tally.tried < goal and time.monotonic() < end:
        _one_run(workshop, f"killed-{tally.runs}-{tally.tried}", goal, end, first, random, tally)


def _time_to_first_state(workshop: Workshop) -> int:
    """In rounds of watching, how long it takes."""
    life, rounds = workshop.start("first"), 0
    for _ in life.rounds():
        rounds += 1
        if unfinished(workshop.output("first")):
            break
    life.kill()
    return rounds


def _one_run(workshop: Workshop, name: str, goal: int, end: float, first: int, random: np.random.Generator,
             tally: Kills) -> None:
    """From its start, through kills, to its end; every end that was not ours is a failure."""
    folder, before, life = workshop.output(name), tally.tried, None
    restarts = ["--restarts", "1000"] if workshop.processes > 1 else []
    while True:
        if life is None:
            life = workshop.start(name, "--resume", "auto", launch=restarts)
        over = tally.tried == goal or time.monotonic() > end
        if over or not _wait_for_moment(workshop, life, name, first, random):
            break
        tally.tried += 1
        workers = life.workers()
        if len(workers) == workshop.processes > 1 and random.random() < 0.6:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(random.choice(workers)), signal.SIGKILL)
            tally.worker += 1
            left = unfinished(folder)
            _await_restart(life)
        else:
            life.kill()
            life, left = None, unfinished(folder)
        tally.inside += bool(left)
        tally.most_left = max(tally.most_left, len(left))
    status = life.wait()
    problem = f"status {status}: {' '.join(life.lines)[-300:]}" if status else workshop.difference(name)
    problem = problem or (f"left {unfinished(folder)}" if unfinished(folder) else "")
    tally.runs += 1
    if problem:
        tally.failures.append(f"{name}, after {tally.tried - before} kills: {problem}")
    print(f"{name}: {tally.tried - before} kills, {tally.inside} of {tally.tried} inside; {problem or 'same bits'}",
          flush=True)


def _wait_for_moment(workshop: Workshop, life: Life, name: str, first: int, random: np.random.Generator) -> bool:
    """A kill comes at any time, or soon after something unfinished is seen; False: the run ended before."""
    folder = workshop.output(name)
    if random.random() > INSIDE:
        rounds = int(random.integers(1, int(LATER * first) + 2))
        for _ in life.rounds():
            rounds -= 1
            if not rounds:
                return True
        return False
    wanted, seen = int(random.integers(1, MOST_CHECKPOINTS)), set(unfinished(folder))
    for _ in life.rounds():
        now = set(unfinished(folder))
        wanted -= bool(now - seen)
        seen = now
        if not wanted:
            rounds = int(random.integers(0, int(WINDOW / 0.0005)))
            for _ in life.rounds():
                rounds -= 1
                if rounds < 0:
                    return True
    return False


def _await_restart(life: Life) -> None:
    """Until launch says that it starts again."""
    before = life.err.count("starting again")
    for _ in life.rounds():
        if life.err.count("starting again") > before:
            return
