# SPDX-License-Identifier: Apache-2.0
"""States of runs on several hosts: with no folder that they share, with fewer hosts, with a disk or a folder gone."""
from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import pytest

from faults import bed_run
from faults.bed import Bed, Host
from recognition.training.states.folder import saved_states
from recognition.training.states.state import SavedState
from tests.hosts.test_faults import END_SECONDS, STALL_SECONDS, begin, ended

pytest.importorskip("torch")
RUN = "small-arcface-small"
RESTART_SECONDS = 300.0  # for the waiting for a host that stays away, and for a start


def own(models: str) -> str:
    """The flags of a run whose hosts share no folder: each has one of this name beside the project."""
    return f"--states-on hosts --models-root own-{Path(models.split()[1]).name}"


def below(host: Host, flags: str) -> Path:
    """The folder of a host's states."""
    return host.path(f"{flags.split()[-1]}/{RUN}/state")


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


def test_a_restart_with_fewer_hosts(bed: Bed, models: str) -> None:
    """One loses its power and stays away: W is cut anew over those that are left."""
    run, folder = begin(bed, models, f"--restarts 1 --fewest 1 --stall-timeout {STALL_SECONDS}")
    bed.unplug(bed["node2"])
    bed["node2"].stop()
    before, end = len(saved_states(folder / "state")), time.monotonic() + RESTART_SECONDS
    try:
        step = saved_states(folder / "state")[-1].name
        while saved_states(folder / "state")[-1].name == step:
            assert run.poll() is None and time.monotonic() < end, run.communicate()
            time.sleep(0.2)
        bed["node1"].check("pkill -TERM -f 'recognition[.]launch'")
        out, err = run.communicate(timeout=END_SECONDS)
    finally:
        bed.restart(bed["node2"])
        bed_run.set_up([bed["node2"]])
    assert before and run.returncode == 143, err
    assert "launch: starting again, 1 of 1" in err, err
    assert re.search("launch: --hosts: node2: .*; going on without it, with 1 workers where there were 2: W is cut ",
                     err), err
    assert "W, saved in 2 shards, is cut anew into 1\n" in out and "going on after step" in out, out


@pytest.mark.parametrize("where", ["node1", "node2"])
def test_a_full_disk_on_one_host(bed: Bed, models: str, where: str) -> None:
    """All end, with a line that names the host and the file; the state before is whole on both."""
    flags = own(models)
    folder = bed[where].path(flags.split()[-1])
    folder.mkdir()
    bed[where].check(f"mount -t tmpfs -o size=1m none {folder.name}")
    line = bed_run.line([bed["node1"], bed["node2"]], 1, f"--stall-timeout {8 * STALL_SECONDS}",
                        f"--max-steps 100000 --frequent 20 --verbose 20 --keep-last 1000 {flags}")
    run = bed["node1"].begin(line)
    try:
        status, err = ended(run, 300)
        others = below(bed["node1" if where == "node2" else "node2"], flags)
        states = [saved_states(below(bed[name], flags)) for name in ("node1", "node2")]
        assert status == 2 and "No space left on device" in err and f"{flags.split()[-1]}/{RUN}/" in err, err
        assert f"on {where}] error: " in err or where == "node1", err
        assert [path.name for path in states[0]] == [path.name for path in states[1]] and states[0], states
        assert not SavedState(saved_states(others)[-1]).problem()
    finally:
        bed[where].run(f"umount {folder.name}")


def test_a_shared_folder_that_goes_away_and_comes_back(bed: Bed, models: str) -> None:
    """The run ends with the host's name; once the folder is there again it goes on."""
    run, folder = begin(bed, models)
    bed["node2"].check("umount -l ../models")
    try:
        status, err = ended(run, 300)
    finally:
        bed["node2"].check(f"mount --bind {bed.folder}/shared ../models")
    assert status == 2, err
    assert "on node2] error: " in err and "does not see the folder that process 0 made" in err, err
    last = saved_states(folder / "state")[-1]
    steps = int(last.name.rpartition("-")[2]) + 2
    done = bed["node1"].run(bed_run.line([bed["node1"], bed["node2"]], 1,
                                         trainer=f"--max-steps {steps} --resume auto {models}"))
    assert done.returncode == 0 and f"going on after step {steps - 2}" in done.stdout, done.stderr


def test_a_shared_folder_that_answers_late(bed: Bed, models: str) -> None:
    """As a hard mount of NFS whose server is away: who reads or writes waits. Here its processes stand still for less
    than --stall-timeout; the run goes on."""
    run, folder = begin(bed, models, f"--stall-timeout {8 * STALL_SECONDS}")
    for pid in (held := bed["node2"].processes()):
        bed["node2"].kill(pid, signal.SIGSTOP)
    time.sleep(STALL_SECONDS)
    for pid in held:
        bed["node2"].kill(pid, signal.SIGCONT)
    step, end = saved_states(folder / "state")[-1].name, time.monotonic() + END_SECONDS
    while saved_states(folder / "state")[-1].name == step:
        assert run.poll() is None and time.monotonic() < end
        time.sleep(0.2)
    bed["node1"].check("pkill -TERM -f 'recognition[.]launch'")
    assert ended(run)[0] == 143
