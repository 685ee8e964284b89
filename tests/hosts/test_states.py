# SPDX-License-Identifier: Apache-2.0
"""States of runs on several hosts: with no folder that they share, and with one that answers late."""
from __future__ import annotations

import signal
import time

import pytest

from faults.hosts import bed_run
from faults.hosts.bed import Bed, Host
from faults.hosts.trials import RUN, STALL_SECONDS, begin, below, ended, goes_on, own
from recognition.training.states.folder import saved_states
from recognition.training.states.state import SavedState

pytest.importorskip("torch")


def test_hosts_that_share_no_folder(bed: Bed, models: str) -> None:
    """They go on where they stopped; a host without its part is named; once gathered, the state goes on elsewhere."""
    hosts, flags = [bed["node1"], bed["node2"]], own(models)

    def run(steps: int, more: str = "", on: list[Host] = hosts) -> tuple[int, str, str]:
        done = bed["node1"].run(bed_run.line(on, 2 // len(on), trainer=f"--max-steps {steps} {flags} {more}"))
        return done.returncode, done.stdout, done.stderr

    status, out, err = run(4)
    assert status == 0 and "each of node1, node2 keeps its own part of the states" in out, err
    assert [SavedState(saved_states(below(host, flags))[-1]).elsewhere for host in hosts] == [
        {1: "node2"}, {0: "node1"}]
    status, out, err = run(6, "--resume")
    assert status == 0 and "going on after step 4" in out, err
    there = below(hosts[1], flags)
    there.rename(there.with_name("away"))
    status, _, err = run(8, "--resume auto")
    assert status == 2 and err.count("error: ") == 1 and "--resume: node2: found no " in err, err
    there.with_name("away").rename(there)
    status, _, err = run(8, "--resume", hosts[:1])
    assert status == 2 and "not all of W that is needed is here: node2 has shards 1; " in err, err
    folder = f"{flags.split()[-1]}/{RUN}/state"
    hosts[0].check(f".venv/bin/python -m common.gather_states {folder} node2:/srv/node2/trainer/{folder} "
                   f"--output {folder}")
    status, out, err = run(8, "--resume", hosts[:1])
    assert status == 0 and "going on after step 6" in out, err


def test_a_shared_folder_that_answers_late(bed: Bed, models: str) -> None:
    """As a hard mount of NFS whose server is away: who reads or writes waits. Here its processes stand still for less
    than --stall-timeout; the run goes on."""
    run, folder = begin(bed, models, f"--stall-timeout {3 * STALL_SECONDS}")
    for pid in (held := bed["node2"].processes()):
        bed["node2"].kill(pid, signal.SIGSTOP)
    time.sleep(STALL_SECONDS)
    for pid in held:
        bed["node2"].kill(pid, signal.SIGCONT)
    assert goes_on(bed, run, folder, 300)
    assert ended(run)[0] == 143
