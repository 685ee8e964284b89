# SPDX-License-Identifier: Apache-2.0
"""What hinders a run on several hosts: one line, with the host's name, before anything is computed."""
from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import pytest

from faults.hosts import bed_run
from faults.hosts.bed import Bed, Host

OTHER_PYTHON = "import platform\nplatform.python_version = lambda: '3.9.2'\n"
OTHER_CLOCK = "import time\nnow = time.time\ntime.time = lambda: now() + 3600\n"


@contextlib.contextmanager
def instead(host: Host, name: str, text: str) -> Iterator[None]:
    """Another text in a file of a host, for a while."""
    path = host.path(name)
    before = path.read_text()
    path.write_text(text)
    try:
        yield
    finally:
        path.write_text(before)


@contextlib.contextmanager
def python_with(host: Host, start: str) -> Iterator[None]:
    """A Python on a host that runs ``start`` first."""
    own, link = f"/srv/{host.name}/own", host.path(".venv")
    before = link.readlink()
    host.check(f"mkdir -p {own}/bin")
    host.path(f"{own}/sitecustomize.py").write_text(start)
    host.path(f"{own}/bin/python").write_text(f'#!/bin/sh\nPYTHONPATH={own} exec {before}/bin/python "$@"\n')
    host.path(f"{own}/bin/python").chmod(0o755)
    link.unlink()
    link.symlink_to(own)
    try:
        yield
    finally:
        link.unlink()
        link.symlink_to(before)


def starting(bed: Bed, launcher: str = "", trainer: str = "--max-steps 1") -> tuple[int, list[str]]:
    """The status of a start on node1 and node2, and the lines of its errors."""
    done = bed["node1"].run(bed_run.line([bed["node1"], bed["node2"]], 1, launcher, trainer))
    assert "epoch" not in done.stdout, done.stdout  # nothing was computed
    return done.returncode, done.stderr.splitlines()


def test_a_key_that_the_host_does_not_know(bed: Bed) -> None:
    keys = bed["node2"].files / "authorized_keys"
    text = keys.read_text()
    keys.write_text("")
    try:
        found = starting(bed)
    finally:
        keys.write_text(text)
    assert (found[0], len(found[1])) == (255, 1)
    assert found[1][0].startswith("error: --hosts: node2: ssh does not reach it: root@node2: Permission denied (")


def test_a_host_whose_own_key_is_not_known(bed: Bed) -> None:
    status, err = starting(bed, "--ssh 'ssh -o BatchMode=yes -o UserKnownHostsFile=/dev/null'")
    assert (status, err) == (255, ["error: --hosts: node2: ssh does not reach it: Host key verification failed."])


def test_a_host_that_is_not_there(bed: Bed) -> None:
    line = bed_run.line([bed["node1"], bed["node2"]], 1).replace("node2:1", "node9:1").replace(",node2=", ",node9=")
    done = bed["node1"].run(line)
    assert done.returncode == 2 and re.fullmatch(r"error: --hosts: node9: .*; --address sets .*\n", done.stderr)
    done = bed["node1"].run(f"{line} ".replace("-- ", "--address 10.77.0.1 -- ", 1))
    assert done.returncode == 255 and re.fullmatch(r"error: --hosts: node9: ssh does not reach it: .*\n", done.stderr)


def test_a_host_without_power(bed: Bed) -> None:
    bed.unplug(bed["node2"])
    try:
        status, err = starting(bed, "--ssh 'ssh -o BatchMode=yes -o ConnectTimeout=2'")
    finally:
        bed.plug(bed["node2"])
    assert (status, len(err)) == (255, 1)
    assert re.fullmatch(r"error: --hosts: node2: ssh does not reach it: .*node2 port 22: .*", err[0])


def test_another_folder(bed: Bed) -> None:
    line = bed_run.line([bed["node1"], bed["node2"]], 1).replace("node2=/srv/node2/trainer", "node2=/srv/trainer")
    done = bed["node1"].run(line)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: --hosts: node2: found no Python with this version of the project there ")
    assert "/srv/trainer: No such file or directory; --folders names" in done.stderr


def test_another_python(bed: Bed) -> None:
    with python_with(bed["node2"], OTHER_PYTHON):
        status, err = starting(bed)
    assert status == 2 and len(err) == 1
    assert re.fullmatch(r"error: --hosts: node2: found Python 3\.9\.2, expected .* as on node1", err[0])


def test_another_version_of_the_project(bed: Bed) -> None:
    margin = bed["node2"].path("recognition/head/margin.py").read_text()
    with instead(bed["node2"], "recognition/head/margin.py", margin + "\n"):
        assert starting(bed) == (2, ["error: --hosts: node2: found another recognition/head/margin.py, expected the "
                                     "same code as on node1"])


def test_a_clock_that_differs_is_told(bed: Bed, models: str) -> None:
    with python_with(bed["node2"], OTHER_CLOCK), instead(bed["node1"], "config.py", "nonsense"):
        status, err = starting(bed)
    assert status == 2 and err[0] == "launch: node2: its clock is 3600 s ahead of this host's; the run goes on"


@pytest.mark.parametrize("host, rule, line", [
    ("node1", "ip saddr 10.77.0.2 tcp dport != 22 ct state new drop",
     r"node2: does not reach node1 at 10\.77\.0\.1, port \d+: timed out; .*"),
    ("node2", "ip saddr 10.77.0.1 tcp dport != 22 ct state new drop",
     r"node1: does not reach node2 at 10\.77\.0\.2, port \d+: timed out; .*"),
    ("node2", "ip saddr 10.77.0.1 tcp dport != 22 ct state new reject with tcp reset",
     r"node1: does not reach node2 at 10\.77\.0\.2, port \d+: Connection refused; .*"),
    ("node1", "ip saddr 10.77.0.2 ip protocol udp drop",
     r"node2: its datagrams \(UDP\) do not reach the launcher at 10\.77\.0\.1; .*"),
])
def test_a_firewall(bed: Bed, host: str, rule: str, line: str) -> None:
    bed[host].firewall(rule)
    try:
        status, err = starting(bed)
    finally:
        bed[host].firewall("")
    assert (status, len(err)) == (2, 1), err
    assert re.fullmatch(rf"error: --hosts: {line}expected a network without a firewall between the hosts of a run",
                        err[0])


@pytest.mark.parametrize("engine", ["torch", "servers"])
def test_another_dataset_or_configuration(bed: Bed, engine: str, models: str) -> None:
    if engine == "torch":
        pytest.importorskip("torch")
    line = bed_run.line([bed["node1"], bed["node2"]], 1, trainer=f"--max-steps 1 {models}",
                        engine={"torch": "PyTorch"}.get(engine, engine))
    config = bed["node2"].path("config.py").read_text()
    with instead(bed["node2"], "config.py", f"{config}\ndefault.mom = 0.5\n"):
        done = bed["node1"].run(line)
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if "error" in line] == [
        "error: mom: process 1 on node2 has 0.5, process 0 on node1 0.9, expected the same in all processes of a "
        "run"]
    if engine == "torch":
        with instead(bed["node2"], "/srv/node2/faces/property", "13,112,112\n"):
            done = bed["node1"].run(line)
        assert done.returncode == 2 and "on node2" in done.stderr and done.stderr.count("error") == 1, done.stderr
