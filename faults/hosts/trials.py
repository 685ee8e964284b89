# SPDX-License-Identifier: Apache-2.0
"""A run between two hosts to which something happens: how it is begun, how it ended, and what is left of it."""
from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from faults.hosts import bed_run
from faults.hosts.bed import Bed, Host
from faults.reliability import Row
from recognition.training.states.folder import saved_states

STALL_SECONDS = 60  # --stall-timeout: on a busy machine the first step may take forty
START_SECONDS = 300.0  # for a run to begin, on a machine that is busy
END_SECONDS = 150.0  # from the fault: the timeout, ten seconds to end all, and a look at hosts that do not answer
SILENCE_SECONDS = 120.0  # until a host that is cut off has ended its own processes: the timeout, and time to end them
HARDLY_SECONDS = 200.0  # the same, where the look may take its ninety seconds, as packets get lost
RESTART_SECONDS = 300.0  # for the waiting for a host that stays away, and for a start
ENDS = ("went on", "ended")  # with which a trial begins what it says, where its promise lets a run do either
RUN = "small-arcface-small"


def begin(bed: Bed, models: str, launcher: str = "", steps: int = 1000000,
          trainer: str = "") -> tuple[subprocess.Popen[str], Path]:
    """Start a run on node1 and node2, and wait until it computes; returns it and its folder.

    :param models: the flag that names the folder of its checkpoints.
    """
    trainer = f"--max-steps {steps} --frequent 20 --verbose 20 {models} {trainer}"
    line = bed_run.line([bed["node1"], bed["node2"]], 1, f"--stall-timeout {STALL_SECONDS} {launcher}", trainer)
    run = bed["node1"].begin(line)
    folder = bed["node1"].path(f"{models.split()[1]}/{RUN}")
    await_state(run, folder.parent)
    return run, folder


def await_state(run: subprocess.Popen[str], models: Path) -> None:
    """Wait until a run has saved a state below ``models``."""
    end = time.monotonic() + START_SECONDS
    while not list(models.glob("*/state/step-*[0-9]")):
        if run.poll() is not None or time.monotonic() > end:
            run.kill()
            raise RuntimeError(f"the run did not begin: {run.communicate()}")
        time.sleep(0.1)


def ended(run: subprocess.Popen[str], most: float = END_SECONDS) -> tuple[int, str]:
    """The status of a run, and the lines of its launcher and of errors."""
    try:
        _, err = run.communicate(timeout=most)
    except subprocess.TimeoutExpired:
        run.kill()
        raise RuntimeError(f"not ended in {most:g} s: {run.communicate()}") from None
    if "Traceback" in err:
        raise RuntimeError(err)
    told = [line for line in err.splitlines() if line.startswith("launch: ") or "error: " in line]
    return run.returncode, "\n".join(told)


class Trial(NamedTuple):
    """The outcome of a fault that was tried."""

    kept: bool
    seconds: float  # from the fault to the end, or to the next state
    said: str


def goes_on(bed: Bed, run: subprocess.Popen[str], folder: Path, most: float) -> bool:
    """Wait until a run has saved another state, then stop it; False if it has not."""
    step, end = saved_states(folder / "state")[-1].name, time.monotonic() + most
    while saved_states(folder / "state")[-1].name == step:
        if run.poll() is not None or time.monotonic() > end:
            return False
        time.sleep(0.1)
    bed["node1"].check("pkill -TERM -f 'recognition[.]launch'")
    return True


def own(models: str) -> str:
    """The flags of a run whose hosts share no folder: each has one of this name beside the project."""
    return f"--states-on hosts --models-root own-{Path(models.split()[1]).name}"


def below(host: Host, flags: str) -> Path:
    """The folder of a host's states."""
    return host.path(f"{flags.split()[-1]}/{RUN}/state")


def short(processes: Mapping[int, str]) -> str:
    """The processes that are left, in a few words; '' for none."""
    return f"left {[line[:30] + ' ... ' + line[-30:] for line in processes.values()]}" if processes else ""


def running(bed: Bed, seconds: float) -> dict[str, dict[int, str]]:
    """Wait up to so many seconds until nothing runs on the hosts; returns the processes that still do."""
    end = time.monotonic() + seconds
    while (found := {host.name: lines for host in bed if (lines := host.processes())}) and time.monotonic() < end:
        time.sleep(0.2)
    return found


def left_over(bed: Bed, most: float = 15.0) -> str:
    """The processes left on the hosts ``most`` seconds after a run, which then is killed; '' if nothing is."""
    if found := running(bed, most):
        for host in bed:
            for pid in host.processes():
                host.kill(pid, signal.SIGKILL)
    return "; ".join(short(lines) for lines in found.values())


def row(what: str, promised: str, trials: Sequence[Trial]) -> Row:
    """The row of a fault, printed, too."""
    seconds = [trial.seconds for trial in trials if trial.kept]
    broken = [f"; {trial.said[:400]!r}" for trial in trials if not trial.kept][:1]
    ends = [f"{count} {end}" for end in ENDS if (count := sum(trial.said.startswith(end) for trial in trials))]
    span = f"{min(seconds):.0f} to {max(seconds):.0f} s" if seconds else ""
    happened = "; ".join([*ends, *([span, "nothing left"] if seconds else [])]) + "".join(broken)
    found = Row(what, len(trials), promised, len(seconds), happened)
    print(found, flush=True)
    return found
