# SPDX-License-Identifier: Apache-2.0
"""Hosts that die, hang, are cut off or are slow in a run: it ends in time with the host's name, or goes on."""
from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from faults import bed_run
from faults.bed import Bed

pytest.importorskip("torch")
STALL_SECONDS = 15  # --stall-timeout
START_SECONDS = 240.0  # for a run to begin, on a machine that is busy
END_SECONDS = 90.0  # from the fault: the timeout, ten seconds to end all, and a look at hosts that do not answer
SILENCE_SECONDS = 60.0  # until a host that is cut off has ended its own processes: 30, and the same to end them


def begin(bed: Bed, models: str, launcher: str = "", steps: int = 1000000,
          trainer: str = "") -> tuple[subprocess.Popen[str], Path]:
    """Start a run on node1 and node2, and wait until it computes; returns it and its folder."""
    trainer = f"--max-steps {steps} --frequent 20 --verbose 20 {models} {trainer}"
    line = bed_run.line([bed["node1"], bed["node2"]], 1, f"--stall-timeout {STALL_SECONDS} {launcher}", trainer)
    run = bed["node1"].begin(line)
    folder = bed["node1"].path(f"{models.split()[1]}/small-arcface-small")
    end = time.monotonic() + START_SECONDS
    while not list(folder.glob("state/step-*[0-9]")):
        if run.poll() is not None or time.monotonic() > end:
            run.kill()
            pytest.fail(f"the run did not begin: {run.communicate()}")
        time.sleep(0.1)
    return run, folder


def ended(run: subprocess.Popen[str], most: float = END_SECONDS) -> tuple[int, str]:
    """The status of a run, and the lines of its launcher and of errors."""
    try:
        _, err = run.communicate(timeout=most)
    except subprocess.TimeoutExpired:
        run.kill()
        pytest.fail(f"not ended in {most:g} s: {run.communicate()}")
    assert "Traceback" not in err, err
    told = [line for line in err.splitlines() if line.startswith("launch: ") or "error: " in line]
    return run.returncode, "\n".join(told)


def stopped(bed: Bed) -> None:
    for pid in bed["node2"].processes():
        bed["node2"].kill(pid, signal.SIGSTOP)


def without_power(bed: Bed) -> None:
    bed.unplug(bed["node2"])
    bed["node2"].stop()


CUTS = {"both ways": 'iifname "eth0" drop | oifname "eth0" drop', "what comes in": 'iifname "eth0" drop',
        "what goes out": '| oifname "eth0" drop'}


@pytest.mark.parametrize("cut", CUTS)
def test_a_host_that_is_cut_off(bed: Bed, models: str, cut: str) -> None:
    """It ends its own processes, too, while nobody can tell it to."""
    run, _ = begin(bed, models)
    bed["node2"].firewall(CUTS[cut])
    try:
        status, err = ended(run)
        end = time.monotonic() + SILENCE_SECONDS
        while bed["node2"].processes() and time.monotonic() < end:
            time.sleep(0.2)
        left = bed["node2"].processes()
    finally:
        bed["node2"].firewall("")
    assert status == 1, err
    assert re.search(rf"launch: rank \d on node\d hangs: no worker went on for {STALL_SECONDS} s, ", err), err
    assert re.search("launch: the hosts now: --hosts: node2: ", err), err
    assert not left


@pytest.mark.parametrize("fault", [stopped, without_power])
def test_a_host_that_hangs_or_dies(bed: Bed, models: str, fault: Callable[[Bed], None]) -> None:
    run, _ = begin(bed, models)
    fault(bed)
    try:
        status, err = ended(run)
    finally:
        if fault is stopped:
            for pid in bed["node2"].processes():
                bed["node2"].kill(pid, signal.SIGCONT)
        else:
            bed.restart(bed["node2"])
            bed_run.set_up([bed["node2"]])
    assert status == 1 and f"launch: rank 1 on node2 hangs: no worker went on for {STALL_SECONDS} s, " in err, err


def test_a_slow_link_slows_the_run_and_does_not_end_it(bed: Bed, models: str) -> None:
    run, folder = begin(bed, models)
    bed.slow(bed["node2"], "400kbit")
    try:
        done = len((folder / "history.jsonl").read_text().splitlines())
        time.sleep(2 * STALL_SECONDS)
        assert run.poll() is None and len((folder / "history.jsonl").read_text().splitlines()) > done
    finally:
        bed.full_speed(bed["node2"])
    bed["node1"].check("pkill -TERM -f 'recognition[.]launch'")
    assert ended(run)[0] == 143
