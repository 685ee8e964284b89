# SPDX-License-Identifier: Apache-2.0
"""Small real runs with a full disk, a folder that cannot be written to, too few file handles, or a clock that jumps."""
from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from faults.chaos_life import Life
from faults.chaos_run import Standing, Workshop, unfinished
from faults.reliability import Row
from recognition.training.states.find import find_state
from recognition.training.states.folder import saved_states

STEPS = 24
END = "after which `--resume auto` ends with the bits of a run that nothing disturbed"
DAY = 86400  # seconds
JUMPS = (-3653 * DAY, -DAY, -3600, -5, 5, 3600, DAY, 3653 * DAY)  # seconds
LIMITS = (6, 7, 8, 10, 12, 16, 32, 64)  # file handles: the first two are too few, and with fewer a shell fails, too
CLOCK = Path(__file__).with_name("jumping_clock.c")


class Trials:
    """A count of trials and their failures: errors that a trial raises or adds."""

    def __init__(self) -> None:
        self.tried = 0
        self.failures: list[str] = []
        self.seen: list[str] = []

    def note(self, name: str, problem: str, seen: str) -> None:
        self.tried += 1
        self.failures += [f"{name}: {problem}"] if problem else []
        self.seen += [seen] if seen and seen not in self.seen else []
        print(f"{name}: {problem or seen or 'kept'}", flush=True)

    def row(self, fault: str, promise: str) -> Row:
        return Row(fault, self.tried, promise, self.tried - len(self.failures),
                   "; ".join([*self.seen, *self.failures]) or "the same bits")


def disk(folder: Path, seed: int, trials: int = 10) -> list[Row]:
    """Run on file systems in memory that are too small by different amounts."""
    fault = "disk full (a tmpfs too small for the run)"
    promise = f"status 2 and one line that names the file; the last state is whole, nothing is half-written, {END}"
    workshop, random, done = Workshop(folder, STEPS), np.random.default_rng(seed), Trials()
    needed = sum(path.stat().st_size for path in workshop.reference().rglob("*")) >> 10
    for number in range(trials):
        name, room = f"disk-{number}", int(random.integers(8, needed))
        try:
            with mounted(folder / name, f"size={room}k"):
                life = workshop.run(name)
                problem = "" if life.status == 0 else ended_cleanly(life, "No space left on device")
                problem = problem or left_whole(workshop, name)
                subprocess.run(["mount", "-o", "remount,size=1g", str(folder / name)], check=True)
                done.note(f"{name}, {room} kB", problem or goes_on(workshop, name), "")
        except PermissionError as error:
            return [Row(fault, 0, promise, 0, f"skipped: {error}")]
    return [done.row(fault, promise)]


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """Mount a file system in memory on ``folder``.

    :raises PermissionError: if this process may not mount one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "chaos", str(folder)], capture_output=True, text=True)
    if done.returncode:
        raise PermissionError(f"no file system can be mounted: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def read_only(folder: Path, seed: int, trials: int = 4) -> list[Row]:
    """Make the folder read-only, from the start and from a random moment on."""
    workshop, random, start, later = Workshop(folder, STEPS), np.random.default_rng(seed), Trials(), Trials()
    workshop.reference()
    (folder / "closed").mkdir(exist_ok=True)
    with closed(folder / "closed"):
        life = workshop.run("closed")
    problem = ended_cleanly(life, "--models-root:")
    start.note("read-only models folder", problem or ("" if not any((folder / "closed").iterdir()) else "left a file"),
               _without_places(life.lines[-1], folder) if life.lines else "")
    for number in range(trials):
        name = f"closed-{number}"
        life, wanted = workshop.start(name), int(random.integers(1, 5))
        where = workshop.output(name) / ("state" if number % 2 else "")
        for _ in life.rounds():
            if len(saved_states(workshop.output(name) / "state")) >= min(wanted, 2):
                break
        with closed(where):
            life.wait()
            problem = ended_cleanly(life, "cannot be written")
            problem = problem or left_whole(workshop, name, but_for_names=True)
        later.note(name, problem or goes_on(workshop, name), "")
    return [start.row("models folder read-only from the start", "status 2 and one line, before anything is computed"),
            later.row("models or state folder read-only in the middle of a run",
                      f"status 2 and one line that names the file; the last state is whole, {END}")]


@contextlib.contextmanager
def closed(folder: Path) -> Iterator[None]:
    """Prevent making and removing names in ``folder``: by the immutable flag for root, else by its mode."""
    as_root = os.geteuid() == 0
    subprocess.run(["chattr", "+i", str(folder)] if as_root else ["chmod", "a-w", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", str(folder)] if as_root else ["chmod", "u+w", str(folder)], check=True)


def handles(folder: Path, seed: int, trials: int = 6) -> list[Row]:
    """Limit the file handles, from the start and from the middle on, as if something else took them all."""
    workshop, random, start, later = Workshop(folder, STEPS), np.random.default_rng(seed), Trials(), Trials()
    workshop.reference()
    for limit in LIMITS:
        name = f"handles-{limit}"
        life = workshop.run(name, preexec_fn=partial(resource.setrlimit, resource.RLIMIT_NOFILE, (limit, limit)))
        problem = workshop.end(name, life) if life.status == 0 else ended_cleanly(life, "Too many open files")
        if life.status == 0 and limit in LIMITS[:2]:
            problem = problem or "was to be too few"
        said = f"{limit}: {_without_places(life.lines[-1], folder)[:90]}" if life.status else f"runs with {limit}"
        start.note(name, problem, said)
    for number in range(trials):
        name, wanted = f"fewer-{number}", int(random.integers(1, 3))
        life = workshop.start(name)
        for _ in life.rounds():
            if len(saved_states(workshop.output(name) / "state")) >= wanted:
                break
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            in_use = len(os.listdir(f"/proc/{life.process.pid}/fd"))
            limit = max(3, in_use - int(random.integers(0, 8)))
            resource.prlimit(life.process.pid, resource.RLIMIT_NOFILE, (limit, limit))
        life.wait()
        problem = "" if life.status == 0 else ended_cleanly(life, "Too many open files")
        later.note(name, problem or left_whole(workshop, name, True) or goes_on(workshop, name), "")
    return [start.row("a limit of file handles from the start", "the same bits, or status 2 and one line"),
            later.row("no file handle left in the middle of a run", f"status 2 and one line; {END}")]


def clock(folder: Path, seed: int, trials: int = 8) -> list[Row]:
    """Let the time of day jump, as if an administrator or NTP set it; monotonic clocks do not jump."""
    fault, promise = "the clock jumps", "the run does not notice, and ends with the same bits"
    random, done, jumps = np.random.default_rng(seed), Trials(), 0
    folder.mkdir(parents=True, exist_ok=True)
    library, compiler = folder / "jumping_clock.so", os.environ.get("CC", "cc")
    try:
        subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", library, CLOCK], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return [Row(fault, 0, promise, 0, f"skipped: {error}")]
    for processes in (1, 2):
        workshop = Workshop(folder / str(processes), 4 * STEPS, processes)
        workshop.reference()
        for number in range(trials // 2):
            name, now = f"clock-{number}", folder / f"now-{processes}-{number}"
            now.write_bytes(bytes(8))
            life = workshop.start(name, launch=["--stall-timeout", "60"],
                                  environ={"LD_PRELOAD": str(library), "JUMPING_CLOCK": str(now)})
            jumps += (seen := _jump(life, now, random))
            done.note(f"{name}, {processes} processes, {seen} jumps", workshop.end(name, life), "")
    done.seen = [f"{trials // 2} runs of one process, {trials // 2} of two with Horovod; {jumps} jumps of up to "
                 "ten years"]
    return [done.row(fault, promise)]


def _jump(life: Life, now: Path, random: np.random.Generator) -> int:
    """Set the clock again and again until the life ends; returns how often."""
    jumps = 0
    with open(now, "r+b", buffering=0) as file:
        for rounds, _ in enumerate(life.rounds(), 1):
            if rounds % 200 == 0:
                file.seek(0)
                file.write(int(random.choice(JUMPS)).to_bytes(8, sys.byteorder, signed=True))
                jumps += 1
    return jumps


def _without_places(line: str, folder: Path) -> str:
    """A line without the parts of paths that belong to this machine."""
    for place in (str(folder), sys.prefix, sys.base_prefix):
        line = line.replace(place, "...")
    return line


def ended_cleanly(life: Life, words: str) -> str:
    """The problem with an end that should be status 2 and one line with ``words``; empty if there is none."""
    lines = life.lines
    if life.status != 2 or len(lines) != 1 or not lines[0].startswith("error: ") or words not in lines[0]:
        return f"status {life.status}, {len(lines)} lines: {' / '.join(lines)[-300:]}"
    return f"left processes {left}" if (left := life.left()) else ""


def left_whole(workshop: Workshop, name: str, but_for_names: bool = False) -> str:
    """The problem with the files that a run left: states must be whole, without unfinished files; empty if none."""
    output = workshop.output(name)
    if not but_for_names and (left := unfinished(output)):
        return f"left {left}"
    try:
        find_state(output / "state", "auto")
    except Exception as error:
        return f"left a state that is not whole: {error}"
    return ""


def goes_on(workshop: Workshop, name: str) -> str:
    """Resume a run; returns the difference of its end from that of an undisturbed run."""
    before = Standing.of(workshop.output(name))
    return workshop.end(name, workshop.start(name, "--resume", "auto"), before)
