# SPDX-License-Identifier: Apache-2.0
"""Processes that die, hang or are slow, through Horovod, servers and PyTorch: real ones, and what the launcher says."""
from __future__ import annotations

import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable

import pytest

from recognition.errors import UserError
from recognition.launch.monitor import Monitor, held_up

ROOT = Path(__file__).resolve().parents[2]
GUARD = 300.0  # seconds after which a test that hangs fails; none counts how long what it starts takes
# Rank 1 does FAULT after 30 exchanges; with a STEP of its own each exchange takes it longer.
WORKER = """
import os, pathlib, signal, sys, time
from recognition.errors import command

@command
def main():
    from recognition.engines.choose import choose_engine
    from recognition.processes.communicator import largest
    engine = choose_engine(sys.argv[3])  # in which the scheduler and the servers do their work
    rank = int(os.environ["RECOGNITION_WORKER"])
    with engine.communicator(sys.argv[1]) as communicator:
        for i in range({exchanges}):
            largest(communicator, i)
            time.sleep(0.01)
            if rank == 1:
                {fault}
    return 0

sys.exit(main())
"""
WITH_TORCH = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
KINDS = pytest.mark.parametrize("kvstore", [
    pytest.param("device", id="Horovod"), pytest.param("dist_sync", id="servers"),
    pytest.param("torch", id="PyTorch", marks=WITH_TORCH)])
Launched = Callable[..., "tuple[int, str]"]


def alive(pid: int) -> bool:
    try:
        return "Z" not in (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def marked(mark: str) -> list[int]:
    """Processes with the environment variable MARK: everything that a launch started, on whatever branch."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"MARK={mark}".encode() in path.read_bytes().split(b"\0") and alive(int(path.parent.name)):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.fixture
def launched(horovod: None, tmp_path: Path) -> Launched:
    """Two workers that exchange; status and standard error. No process of theirs may be left."""
    def run(kvstore: str, fault: str, *flags: str, exchanges: int = 100000, during: Callable[[], None] = lambda: None,
            refused: bool = False, launcher: tuple[str, ...] = ("-m", "recognition.launch"),
            **variables: str) -> tuple[int, str]:
        engine = "torch" if kvstore == "torch" else "mxnet"
        kvstore = "device" if kvstore == "torch" else kvstore
        (tmp_path / "worker.py").write_text(WORKER.format(fault=fault, exchanges=exchanges))
        servers = ["--servers", "1"] if kvstore.startswith("dist") else []
        process = subprocess.Popen(
            [sys.executable, *launcher, "-np", "2", *servers, *flags, "--", sys.executable,
             "worker.py", kvstore, "--engine", engine], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True, env={**os.environ, "PYTHONPATH": str(ROOT), "MARK": str(tmp_path), **variables})
        during()
        _, err = process.communicate(timeout=GUARD)
        ended = time.monotonic()
        while marked(str(tmp_path)) and time.monotonic() < ended + GUARD:  # the watch on another host sleeps a little
            time.sleep(0.1)
        assert not marked(str(tmp_path)), "a process is left"
        assert refused or "Traceback" not in err, err
        return process.returncode, err

    return run


@pytest.mark.parametrize("fault, status, how", [
    ("os.kill(os.getpid(), signal.SIGKILL)", 137, "was ended by SIGKILL"),
    pytest.param("os._exit(7)", 7, "ended with status 7", marks=pytest.mark.slow)])
@KINDS
def test_a_rank_that_dies(launched: Launched, kvstore: str, fault: str, status: int, how: str) -> None:
    found, err = launched(kvstore, f"if i == 30: {fault}")
    assert found == status
    assert f"launch: rank 1 on localhost {how}; ending all others" in err.splitlines(), err


@KINDS
def test_a_rank_that_hangs(launched: Launched, kvstore: str) -> None:
    found, err = launched(kvstore, "if i == 30: os.kill(os.getpid(), signal.SIGSTOP)", "--stall-timeout", "10")
    assert found == 1
    assert re.search(r"^launch: rank 1 on localhost hangs: no worker went on for 10 s, and it is \d+ exchanges behind "
                     r"the others; ending all others$", err, re.M), err


@pytest.mark.parametrize("kvstore", [
    pytest.param("device", id="Horovod"), pytest.param("dist_sync", id="servers", marks=pytest.mark.slow),
    pytest.param("torch", id="PyTorch", marks=[WITH_TORCH, pytest.mark.slow])])
def test_a_rank_that_is_slow_is_named_and_the_run_goes_on(launched: Launched, kvstore: str) -> None:
    """What counts as slow: test_who_holds_the_others_up."""
    found, err = launched(kvstore, "time.sleep(0.3)", "--slow-after", "2", exchanges=30)
    assert found == 0, err
    assert re.search(r"^launch: rank 1 on localhost is slow: all others wait for it, \d+ s of 100; the run goes on$",
                     err, re.M), err


@pytest.mark.parametrize("role, name", [("server", "server 0"), ("scheduler", "scheduler")])
def test_a_server_that_dies(launched: Launched, tmp_path: Path, role: str, name: str) -> None:
    def kill() -> None:
        while not (tmp_path / "moving").exists():
            time.sleep(0.05)
        for pid in marked(str(tmp_path)):
            if f"DMLC_ROLE={role}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                os.kill(pid, signal.SIGKILL)

    found, err = launched("dist_sync", "if i == 30: pathlib.Path('moving').touch()", during=kill)
    assert found == 137
    assert f"launch: {name} on localhost was ended by SIGKILL; ending all others" in err, err


def test_restarts_go_on_after_a_death(launched: Launched, tmp_path: Path) -> None:
    """It dies the first time, and not the second."""
    fault = "if i == 3 and not os.path.exists('died'): pathlib.Path('died').touch(); os._exit(9)"
    found, err = launched("device", fault, "--restarts", "1", exchanges=10)
    assert found == 0
    assert [line for line in err.splitlines() if line.startswith("launch: ")] == [
        "launch: rank 1 on localhost ended with status 9; ending all others", "launch: starting again, 1 of 1"], err


def test_a_rank_that_never_comes_up(launched: Launched, tmp_path: Path) -> None:
    """Horovod's processes look for each other as long as Gloo's own limit says, which is 30 s if it is not set."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, time\nif os.environ.get('RECOGNITION_WORKER') == '1': time.sleep(3600)\n")
    found, err = launched("device", "pass", PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}",
                                   HOROVOD_GLOO_TIMEOUT_SECONDS="3")
    assert found == 134
    assert "launch: no sign of life ever came from rank 1 on localhost" in err.splitlines(), err


def test_a_host_that_cannot_be_reached(launched: Launched, tmp_path: Path) -> None:
    """The stand-in for ssh reaches a, and ends for b as ssh does."""
    ssh = tmp_path / "ssh"
    ssh.write_text('#!/bin/sh\nhost=$1; shift\n[ $host = a ] && exec sh -c "$*"\n'
                   'echo "ssh: connect to host b port 22: No route to host" >&2; exit 255\n')
    ssh.chmod(0o755)
    found, err = launched("device", "pass", "--hosts", "a:1,b:1", "--ssh", str(ssh), "--address", "127.0.0.1")
    assert found == 255
    assert "[rank 1] ssh: connect to host b port 22: No route to host" in err
    assert ("launch: rank 1 on b ended with status 255, with which ssh says that it cannot reach a host or lost it; "
            "ending all others") in err


def test_a_port_in_use(launched: Launched) -> None:
    """Between the choice of a free port and its use by the scheduler another process may take it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        launcher = ("-c", "import sys\nfrom recognition.launch import launcher as l\n"
                    f"l.free_port = lambda _: {port}\nsys.exit(l.main())")
        found, err = launched("dist_sync", "pass", launcher=launcher)
    assert found not in (0, None), err
    assert ("launch: scheduler on localhost ended with status 75; ending all others\nerror: the scheduler of the "
            f"parameter servers: port {port} of 127.0.0.1 cannot be had: another process uses it") in err, err


@KINDS
def test_no_port_of_a_run_on_this_host_is_open_to_others(launched: Launched, tmp_path: Path, kvstore: str) -> None:
    """Neither Horovod's rendezvous nor ps-lite asks who it is that writes."""
    listening: set[str] = set()

    def look() -> None:
        while not (tmp_path / "moving").exists():
            time.sleep(0.05)
        sockets = {os.readlink(link) for pid in marked(str(tmp_path)) for link in Path(f"/proc/{pid}/fd").iterdir()
                   if link.is_symlink()}
        for table, loopback in (("tcp", "0100007F"), ("tcp6", "00000000000000000000000001000000")):
            for row in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                words = row.split()
                if words[3] == "0A" and f"socket:[{words[9]}]" in sockets:
                    listening.add("here" if words[1].split(":")[0] == loopback else row)

    found, err = launched(kvstore, "if i == 30: pathlib.Path('moving').touch()", exchanges=100, during=look)
    assert found == 0, err
    assert listening == {"here"}


def test_a_parameter_server_loads_no_pickle(launched: Launched, tmp_path: Path) -> None:
    """MXNet's own way to send an optimiser, with an object that would run a command."""
    (tmp_path / "evil.py").write_text("class Evil:\n    def __reduce__(self):\n        import os\n"
                                      f"        return os.system, ('touch {tmp_path / 'ran'}',)\n")
    fault = ("if i == 3: import evil, pickle; communicator._store._send_command_to_servers(0, "
             "pickle.dumps(evil.Evil(), 0).decode()); time.sleep(0.5)")
    found, err = launched("dist_sync", fault, exchanges=10, refused=True)
    assert found == 0 and "loads no pickle, and was sent one" in err, err
    assert not (tmp_path / "ran").exists()


def test_an_address_of_another_host() -> None:
    with pytest.raises(UserError, match=r"^--address: found 192\.0\.2\.1, expected an address of this host: "):
        Monitor("192.0.2.1", 2)


def test_who_holds_the_others_up() -> None:
    assert held_up({0: 30.0, 1: 2.0, 2: 25.0}, 100.0) == (1, pytest.approx(0.23))
    monitor = Monitor("127.0.0.1", 2, window=10)
    monitor.waited, monitor.exchanges = {0: 0.0}, {0: 3}
    monitor._since -= 11
    assert monitor.slow() is None  # not all have begun
    monitor.waited, monitor.exchanges = {0: 0.0, 1: 0.0}, {0: 3, 1: 3}
    monitor._since -= 11
    assert monitor.slow() is None  # only now
    monitor.waited = {0: 2.0, 1: 0.5}
    assert monitor.slow() is None  # not over yet
    monitor._since -= 10
    found = monitor.slow()
    assert found is not None and found[0] == 1 and found[1] == pytest.approx(15, rel=0.05)
    monitor.waited = {0: 4.0, 1: 0.5}
    monitor._since -= 10
    assert monitor.slow() is None  # said already
    monitor.waited, monitor._told = {0: 9.0, 1: 5.2}, {}
    monitor._since -= 10
    assert monitor.slow() is None  # workers of one pace wait alike
    monitor.socket.close()
