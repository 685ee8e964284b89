# SPDX-License-Identifier: Apache-2.0
"""Kills runs with SIGKILL at random moments, many of them inside a checkpoint, and compares how they end."""
from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from faults.chaos_life import Life
from faults.chaos_run import Standing, Workshop, unfinished
from faults.reliability import Row
from recognition.training.states.folder import saved_states

PROMISE = ("`--resume auto` goes on; the end is that of a run that nothing disturbed, bit for bit: states, "
           "checkpoints, history; no temporary file, no damaged state and no process is left")
STATE, CHECKPOINT = "state", "checkpoint"  # the things that are saved
MOST_SAVES = 4  # a kill inside a save comes in one of the first so many saves of a state or checkpoint
INSIDE, OF_STATES = 0.75, 0.6  # share of the kills that should come inside a save, and share of states among these
WINDOW = 2.0  # the kill comes within so many times the duration of an undisturbed save, from the save's start
PAUSE_SECONDS = 0.005  # without unfinished files between two saves
WATCHED_SAVES = 24  # measured
LATEST = 1.5  # other kills come within so many times the time to the first save


@dataclass
class Kills:
    """The tally of kills until now, and their results."""

    tried: int = 0
    inside: int = 0  # kills that left something unfinished
    worker: int = 0  # kills of one process of several, which launch starts again
    runs: int = 0  # runs that came to their end and were compared
    most_left: int = 0  # temporary names after a kill, at most
    failures: list[str] = field(default_factory=list)

    def row(self, processes: int, engine: str) -> Row:
        by = "Horovod" if engine == "mxnet" else "PyTorch"
        how = f"{processes} processes under `recognition.launch` with {by}"
        if processes == 1:
            how = "one process" if engine == "mxnet" else f"one process with {by}"
        seen = (f"{self.inside} inside a state or checkpoint; {self.runs} runs compared at their end; after a kill at "
                f"most {self.most_left} temporary names, at the end none")
        if processes > 1:
            seen += f"; {self.worker} of one worker, the others of all processes and the launcher at once"
        return Row(f"SIGKILL at a random moment, {how}", self.tried, PROMISE, self.tried - len(self.failures),
                   "; ".join([seen, *self.failures]))


def kill_runs(workshop: Workshop, kills: int, random: np.random.Generator, tally: Kills,
              seconds: float = math.inf) -> None:
    """Kill ``kills`` times, or until ``seconds`` are over, and let the last run come to its end."""
    end = time.monotonic() + seconds
    workshop.reference()
    pace = _measure(workshop)
    goal = tally.tried + kills
    while tally.tried < goal and time.monotonic() < end:
        _one_run(workshop, f"killed-{tally.runs}-{tally.tried}", goal, end, pace, random, tally)


class Pace(NamedTuple):
    """The speed of an undisturbed run."""

    first_save: float  # seconds until it begins
    saves: dict[str, float]  # mean seconds of a save, by STATE and CHECKPOINT


class Save(NamedTuple):
    """A save seen from outside: unfinished files with hardly a pause between them."""

    begin: float  # by a monotonic clock
    content: str  # STATE, CHECKPOINT, or empty: files of the start, or a state that is removed
    seconds: float  # until an unfinished file was last seen


def _saves(life: Life, folder: Path) -> Iterator[Save]:
    """Yield, in each round of watching a life, its present or last save. Files of an earlier life do not count."""
    begin, last, content, old = 0.0, -1.0, "", set(unfinished(folder))
    for _ in life.rounds():
        found, now = set(unfinished(folder)), time.monotonic()
        old &= found
        names = found - old
        if names and now > last + PAUSE_SECONDS:
            begin, content = now, _content(names, folder)
        last = now if names else last
        if begin:
            yield Save(begin, content, last - begin)


def _content(names: set[str], folder: Path) -> str:
    """The content of a save, from the names of unfinished files: STATE, CHECKPOINT or empty."""
    newest = max(saved_states(folder / "state"), default=Path()).name
    if any(name.startswith("state/") and Path(name).stem > newest for name in names):
        return STATE
    return CHECKPOINT if any(name.startswith((".model", ".roc")) for name in names) else ""


def _measure(workshop: Workshop) -> Pace:
    start, life, found = time.monotonic(), workshop.start("watched"), {}
    for save in _saves(life, workshop.output("watched")):
        found[save.begin] = save
        if len(found) > WATCHED_SAVES:
            break
    life.kill()
    if len(found) < 2:
        raise RuntimeError(f"no save was seen: {life.out}{life.err}")
    *whole, _ = found.values()
    times = {content: [save.seconds for save in whole if save.content == content] for content in (STATE, CHECKPOINT)}
    return Pace(whole[0].begin - start,
                {content: float(np.mean([PAUSE_SECONDS, *seconds])) for content, seconds in times.items()})


def _one_run(workshop: Workshop, name: str, goal: int, end: float, pace: Pace, random: np.random.Generator,
             tally: Kills) -> None:
    """Run once, through kills, to the end; every other end is a failure."""
    folder, before, life, found = workshop.output(name), tally.tried, None, ""
    stood: Standing | None = Standing.of(folder)
    restarts = ["--restarts", "1000"] if workshop.processes > 1 else []
    while not found:
        if life is None:
            life = workshop.start(name, "--resume", "auto", launch=restarts)
        old = set(unfinished(folder))  # left by the life before, and soon removed
        over = tally.tried == goal or time.monotonic() > end
        if over or not _wait_for_moment(life, folder, pace, random):
            break
        tally.tried += 1
        workers = life.workers()
        if len(workers) == workshop.processes > 1 and random.random() < 0.6:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(random.choice(workers)), signal.SIGKILL)
            tally.worker += 1
            left = unfinished(folder)
            found, stood = stood.went_on(folder, False) if stood else "", Standing.of(folder)
            if not _restarts(life):  # what was killed had come to its end
                stood = None
        else:
            life.kill()
            alive, left = life.left(), unfinished(folder)
            found, stood = stood.went_on(folder, False) if stood else "", Standing.of(folder)
            found = f"left processes {alive}" if alive else found
            life = None
        tally.inside += bool(set(left) - old)
        tally.most_left = max(tally.most_left, len(left))
    if found and life:
        life.kill()
    problem = found or (workshop.end(name, life, stood) if life else "")
    problem = problem or (f"left {unfinished(folder)}" if unfinished(folder) else "")
    tally.runs += 1
    if problem:
        tally.failures.append(f"{name}, after {tally.tried - before} kills: {problem}")
    print(f"{name}: {tally.tried - before} kills, {tally.inside} of {tally.tried} inside; {problem or 'same bits'}",
          flush=True)


def _wait_for_moment(life: Life, folder: Path, pace: Pace, random: np.random.Generator) -> bool:
    """Wait for the moment of a kill: any time, or any moment of a save or soon after it. False if the run ended before.
    """
    if random.random() > INSIDE:
        moment = time.monotonic() + random.uniform(0, LATEST * pace.first_save)
        return any(time.monotonic() >= moment for _ in life.rounds())
    content, wanted = STATE if random.random() < OF_STATES else CHECKPOINT, int(random.integers(1, MOST_SAVES + 1))
    later, moment, begins = random.uniform(0, WINDOW * pace.saves[content]), math.inf, set()
    for save in _saves(life, folder):
        begins |= {save.begin} if save.content == content else set()
        if len(begins) == wanted and moment == math.inf:
            moment = save.begin + later
        if time.monotonic() >= moment:
            return True
    return False


def _restarts(life: Life) -> bool:
    """Wait until launch reports a restart. False if it ends instead."""
    before = life.err.count("starting again")
    return any(life.err.count("starting again") > before for _ in life.rounds())
