# SPDX-License-Identifier: Apache-2.0
"""The faults of runs between two hosts: one dies, hangs, is cut off, is slow, or loses the shared folder.

A fault comes once the run computes. The promise is kept if the run ends in time with the right status and a line that
names the host, or goes on, and if nothing of it is left on any host.
"""
from __future__ import annotations

import contextlib
import functools
import math
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Callable, NamedTuple

from faults.hosts import bed_run
from faults.hosts.bed import Bed
from faults.hosts.trials import (
    END_SECONDS,
    HARDLY_SECONDS,
    RESTART_SECONDS,
    RUN,
    SILENCE_SECONDS,
    STALL_SECONDS,
    START_SECONDS,
    Trial,
    begin,
    below,
    ended,
    goes_on,
    left_over,
    own,
    short,
)
from recognition.training.states.folder import saved_states
from recognition.training.states.state import SavedState

CUTS = {"both ways": 'iifname "eth0" drop | oifname "eth0" drop', "what comes in": 'iifname "eth0" drop',
        "what goes out": '| oifname "eth0" drop'}
HANGS = rf"launch: rank \d on node\d hangs: no worker went on for {STALL_SECONDS} s, "
HANGS_ON_2 = HANGS.replace(r"node\d", "node2")


def cut_off(bed: Bed, models: str, cut: str) -> Trial:
    """A firewall on node2, which then ends its own processes, too, while nobody can tell it to."""
    run, _ = begin(bed, models)
    since = time.monotonic()
    bed["node2"].firewall(CUTS[cut])
    try:
        status, said = ended(run)
        seconds = time.monotonic() - since
        end = time.monotonic() + SILENCE_SECONDS
        while bed["node2"].processes() and time.monotonic() < end:
            time.sleep(0.2)
        left = bed["node2"].processes()
    finally:
        bed["node2"].firewall("")
    named = re.search(HANGS, said) and "launch: the hosts now: --hosts: node2: " in said
    return Trial(status == 1 and bool(named) and not left, seconds, f"{said}; {short(left)}")


def hang(bed: Bed, models: str) -> Trial:
    """All processes of node2 stand still."""
    run, _ = begin(bed, models)
    since, held = time.monotonic(), bed["node2"].processes()
    for pid in held:
        bed["node2"].kill(pid, signal.SIGSTOP)
    try:
        status, said = ended(run)
    finally:
        for pid in held:
            bed["node2"].kill(pid, signal.SIGCONT)
    return Trial(status == 1 and bool(re.search(HANGS_ON_2, said)), time.monotonic() - since, said)


@contextlib.contextmanager
def without_power(bed: Bed) -> Iterator[None]:
    """node2 is off, and no packet says so; afterwards it is as it was made."""
    bed.unplug(bed["node2"])
    bed["node2"].stop()
    try:
        yield
    finally:
        bed.restart(bed["node2"])
        bed_run.set_up([bed["node2"]])


def power(bed: Bed, models: str) -> Trial:
    """node2 loses its power."""
    run, _ = begin(bed, models)
    since = time.monotonic()
    with without_power(bed):
        status, said = ended(run)
        seconds = time.monotonic() - since
    return Trial(status == 1 and bool(re.search(HANGS_ON_2, said)), seconds, said)


class Link(NamedTuple):
    """A fault of the link of node2, as :meth:`faults.hosts.bed.Bed.slow_link` takes it."""

    rate: str = "10gbit"
    delay: float = 0.0
    loss: float = 0.0


def slow(bed: Bed, models: str, link: Link) -> Trial:
    """The link of node2 is slow for longer than the timeout; the run takes its steps meanwhile."""
    run, folder = begin(bed, models)
    since = time.monotonic()
    bed.slow_link(bed["node2"], *link)
    try:
        lines = len((folder / "history.jsonl").read_text().splitlines())
        time.sleep(STALL_SECONDS + 10)
        more = len((folder / "history.jsonl").read_text().splitlines()) - lines
        alive = run.poll() is None and more > 0
    finally:
        bed.full_speed(bed["node2"])
    bed["node1"].run("pkill -TERM -f 'recognition[.]launch'")
    status, said = ended(run)
    return Trial(alive and status == 143, time.monotonic() - since, f"{said}; {more} lines more")


def barely(bed: Bed, models: str, link: Link) -> Trial:
    """The link of node2 lets so little through that the run may end, as when the host is cut off."""
    run, _ = begin(bed, models)
    since = time.monotonic()
    bed.slow_link(bed["node2"], *link)
    try:
        time.sleep(STALL_SECONDS)
        while run.poll() is None and time.monotonic() < since + HARDLY_SECONDS:
            time.sleep(0.2)
        lasts = run.poll() is None
        seconds = time.monotonic() - since
    finally:
        bed.full_speed(bed["node2"])
    if lasts:
        bed["node1"].run("pkill -TERM -f 'recognition[.]launch'")
    status, said = ended(run)
    named = status == 143 if lasts else status != 0 and "node2" in said
    return Trial(named, seconds, f"{'went on' if lasts else 'ended'}, {status}: {said}")


def fewer(bed: Bed, models: str) -> Trial:
    """node2 loses its power and stays away, with ``--restarts 1 --fewest 1``."""
    run, folder = begin(bed, models, "--restarts 1 --fewest 1")
    since = time.monotonic()
    with without_power(bed):
        going = goes_on(bed, run, folder, RESTART_SECONDS)
        seconds = time.monotonic() - since
        try:
            out, err = run.communicate(timeout=END_SECONDS)
        except subprocess.TimeoutExpired:
            run.kill()
            out, err = run.communicate()
    told = ("W, saved in 2 shards, is cut anew into 1\n" in out and "going on after step" in out
            and "; going on without it, with 1 workers where there were 2: W is cut" in err)
    return Trial(going and told and run.returncode == 143, seconds, out + err)


def folder_away(bed: Bed, models: str) -> Trial:
    """The shared folder is no longer mounted on node2."""
    run, folder = begin(bed, models)
    since = time.monotonic()
    bed["node2"].check("umount -l ../models")
    try:
        status, said = ended(run, RESTART_SECONDS)
        seconds = time.monotonic() - since
    finally:
        bed["node2"].check(f"mount --bind {bed.folder}/shared ../models")
    named = "on node2] error: " in said and "does not see the folder that process 0 made" in said
    again = bed["node1"].run(bed_run.line(
        [bed["node1"], bed["node2"]], 1,
        trainer=f"--max-steps {int(saved_states(folder / 'state')[-1].name[5:]) + 2} --resume auto {models}"))
    return Trial(status == 2 and named and again.returncode == 0 and "going on after step" in again.stdout, seconds,
                 f"{said}\n{again.stdout}{again.stderr}")


def full_disk(bed: Bed, models: str, where: str) -> Trial:
    """The folder of states of one host has a megabyte; the state before is whole on both hosts."""
    flags = own(f"{models}-{where}")
    name, others = flags.split()[-1], bed["node1" if where == "node2" else "node2"]
    bed[where].check(f"mkdir -p {name} && mount -t tmpfs -o size=1m none {name}")
    run = bed["node1"].begin(bed_run.line(
        [bed["node1"], bed["node2"]], 1, f"--stall-timeout {3 * STALL_SECONDS}",
        f"--max-steps 100000 --frequent 20 --verbose 20 --keep-last 1000 {flags}"))
    since = time.monotonic()
    try:
        status, said = ended(run, START_SECONDS)
        states = [[path.name for path in saved_states(below(bed[host], flags))] for host in ("node1", "node2")]
        whole = bool(states[0]) and states[0] == states[1] and not SavedState(
            saved_states(below(others, flags))[-1]).problem()
    finally:
        bed[where].run(f"umount {name}")
    named = f"on {where}] error: " in said or where == "node1"  # the first process's lines have no name before them
    told = "No space left on device" in said and f"{name}/{RUN}/" in said
    return Trial(status == 2 and named and told and whole, time.monotonic() - since, f"{said}; {states}")


class Fault(NamedTuple):
    what: str
    promised: str
    attempt: Callable[[Bed, str], Trial]


ENDS = (f"--stall-timeout ({STALL_SECONDS} s here) later all end, with a line that names the host; at most "
        f"{END_SECONDS:g} s in all")
SLOW = {"400 kbit/s": Link("400kbit"), "50 ms later each way": Link(delay=0.05), "5 % lost each way": Link(loss=0.05),
        "2 Mbit/s, 20 ms later and 2 % lost each way": Link("2mbit", 0.02, 0.02)}
FAULTS = [
    *(Fault(f"a host is cut off: {cut}", f"{ENDS}; the host ends its own processes, too",
            functools.partial(cut_off, cut=cut)) for cut in CUTS),
    Fault("a host hangs", ENDS, hang),
    Fault("a host loses its power", ENDS, power),
    *(Fault(f"a host's link is slow: {what}", "the run goes on",
            functools.partial(slow, link=link)) for what, link in SLOW.items()),
    Fault("a host's link loses 60 % of its packets each way", "the run goes on, or ends "
          f"with a line that names the host, in at most {HARDLY_SECONDS:g} s with --stall-timeout {STALL_SECONDS}",
          functools.partial(barely, link=Link(loss=0.6))),
    Fault("a host loses its power and stays away, with --restarts 1 --fewest 1",
          "the run goes on with the other, from its last state, W cut anew, said in lines", fewer),
    *(Fault(f"the disk of {which} host is full", "the run ends with status 2 and a line that names host and file; the "
            "state before is whole on both", functools.partial(full_disk, where=where))
      for which, where in (("the first", "node1"), ("the second", "node2"))),
    Fault("the shared folder goes away on one host, and comes back",
          "the run ends with the host's name, status 2; --resume auto goes on", folder_away),
]


def try_fault(bed: Bed, fault: Fault, models: str) -> Trial:
    try:
        trial = fault.attempt(bed, models)
    except RuntimeError as error:
        trial = Trial(False, math.nan, str(error))
    left = left_over(bed)
    return trial._replace(kept=trial.kept and not left, said=f"{trial.said} {left}")
