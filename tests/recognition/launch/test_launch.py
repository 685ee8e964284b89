# SPDX-License-Identifier: Apache-2.0
"""The launcher with real processes: what they get, and that they end together."""
from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable

import pytest

from recognition.errors import UserError
from recognition.launch import launcher, nodes
from recognition.launch.launcher import own_address, supervise
from recognition.launch.look_around import Unusable
from recognition.launch.monitor import Monitor
from recognition.launch.nodes import GRACE_SECONDS, Node, Place, assign, parse_hosts, tell_errors

ROOT = Path(__file__).resolve().parents[3]
GUARD = 300.0  # seconds after which a test that hangs fails; none counts how long what it starts takes
# Each worker leaves its process id, then does what the test is about.
WORKER = """
import json, os, pathlib, signal, sys, time
rank = int(os.environ["RECOGNITION_WORKER"])
pathlib.Path("pids", str(rank)).write_text(str(os.getpid()))
def wait(condition):
    while not condition():
        time.sleep(0.02)
def all_wrote(folder):
    wait(lambda: len(list(pathlib.Path(folder).iterdir())) == int(os.environ["HOROVOD_SIZE"]))
def ready(now=True):  # all come here, of which who is not ready now waits for the others
    pathlib.Path("ready").mkdir(exist_ok=True)
    pathlib.Path("ready", str(rank)).touch()
    now or all_wrote("ready")
all_wrote("pids")
"""


@pytest.fixture
def launched(horovod: None, tmp_path: Path) -> Callable[..., subprocess.Popen]:
    """Starts workers, three unless a flag says otherwise, that run WORKER and then ``body``."""
    (tmp_path / "pids").mkdir()

    def start(body: str, *flags: str, arguments: tuple[str, ...] = (),
              launcher: tuple[str, ...] = ("-m", "recognition.launch")) -> subprocess.Popen:
        (tmp_path / "worker.py").write_text(WORKER + body)
        return subprocess.Popen(
            [sys.executable, *launcher, "-np", "3", *flags, "--", sys.executable, "worker.py", *arguments],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True)

    return start


def pids(folder: Path, workers: int = 3) -> list[int]:
    while len(list((folder / "pids").iterdir())) < workers:
        time.sleep(0.02)
    time.sleep(0.2)
    return [int(path.read_text()) for path in sorted((folder / "pids").iterdir())]


def alive(pid: int) -> bool:
    try:
        return "Z" not in (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def ended(process: subprocess.Popen, folder: Path) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=GUARD)
    assert not any(alive(pid) for pid in pids(folder, 1)), "a process is left"
    return process.returncode, out, err


def test_what_a_worker_gets(launched: Callable[..., subprocess.Popen], tmp_path: Path) -> None:
    body = "print(json.dumps(dict(os.environ)), sys.argv[1:], flush=True)"
    status, out, err = ended(launched(body, arguments=("--lr", "0.1")), tmp_path)
    assert status == 0, err
    lines = sorted(out.splitlines())
    assert [line.partition("{")[0] for line in lines] == ["[rank 1] ", "[rank 2] ", ""]
    assert all(line.endswith(" ['--lr', '0.1']") for line in lines)
    found = json.loads(lines[1][9:].rpartition(" [")[0])
    assert (found["HOROVOD_RANK"], found["HOROVOD_SIZE"], found["HOROVOD_LOCAL_SIZE"]) == ("2", "3", "3")
    assert [found[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")] == ["2", "3", "2", "3"]
    assert found["MASTER_ADDR"] == found["HOROVOD_GLOO_RENDEZVOUS_ADDR"] == "127.0.0.1"
    assert found["MASTER_PORT"] != found["HOROVOD_GLOO_RENDEZVOUS_PORT"]


@pytest.mark.parametrize("command, installed, expected", [
    (["python", "train.py"], ["horovod", "torch"], True),
    (["python", "train.py", "--engine", "mxnet"], ["horovod", "torch"], True),
    (["python", "train.py", "--engine", "auto"], ["horovod", "torch"], True),
    (["python", "train.py", "--engine", "torch"], ["horovod", "torch"], False),
    (["python", "own.py", "--engine=torch"], ["horovod"], False),
    (["python", "train.py"], ["torch"], False),
    (["python", "train.py"], [], True),  # which then says that it is missing
])
def test_horovod_is_started_where_a_run_may_need_it(monkeypatch: pytest.MonkeyPatch, command: list[str],
                                                    installed: list[str], expected: bool) -> None:
    monkeypatch.setattr(launcher, "find_spec", lambda name: name if name in installed else None)
    assert launcher.uses_horovod(command) == expected


def test_where_the_processes_of_pytorch_meet() -> None:
    """At the first one's host: here at a port that is free, elsewhere at one below those that Linux gives out."""
    here = launcher.torch_variables("localhost", "127.0.0.1", "lo", {})
    assert (here["MASTER_ADDR"], here["GLOO_SOCKET_IFNAME"]) == ("127.0.0.1", "lo")
    there = launcher.torch_variables("user@a", "192.0.2.1", None, {})
    assert there["MASTER_ADDR"] == "a" and 10000 <= int(there["MASTER_PORT"]) < 32768 and len(there) == 2


@pytest.mark.parametrize("death, how, others, expected", [
    ("sys.exit(3)", "ended with status 3", "SIG_DFL", 3),
    ("os.kill(os.getpid(), signal.SIGKILL)", "was ended by SIGKILL", "SIG_IGN", 137),
])
def test_a_death_ends_all(launched: Callable[..., subprocess.Popen], tmp_path: Path, death: str, how: str, others: str,
                          expected: int) -> None:
    """The others may not listen to SIGTERM, and one of them ends first, as who has lost a process."""
    body = f"""
signal.signal(signal.SIGTERM, signal.{others})
if rank == 1: {death}
if rank == 0: sys.exit(75)
time.sleep(3600)
"""
    process = launched(body)
    pids(tmp_path)
    status, _, err = ended(process, tmp_path)
    assert status == expected
    assert f"launch: rank 1 on localhost {how}; ending all others" in err


@pytest.mark.parametrize("commands, told, status, line", [
    (("true", "true"), 0, 0, ""),
    (("true", "kill -9 $$"), 0, 137, "rank 1 on localhost was ended by SIGKILL"),
    (("kill -9 $$", "kill -9 $$"), 0, 137, "rank 0 on localhost was ended by SIGKILL"),
    (("true", "kill -40 $$"), 0, 168, "rank 1 on localhost was ended by signal 40"),
    (("exit 1", "exit 1"), 0, 1, "rank 0 on localhost ended with status 1"),
    (("exit 143", "exit 143"), 0, 143, "a worker was told to stop by SIGTERM, and all ended with status 143"),
    (("true", "exit 143"), 0, 143, "rank 1 on localhost ended with status 143"),
    (("exit 75", "exit 143"), 0, 143, "rank 1 on localhost ended with status 143"),
    (("exit 143", "exit 143"), signal.SIGTERM, 143, ""),
    (("kill $$", "kill $$"), signal.SIGTERM, 143, ""),
    (("kill $$", "kill -9 $$"), signal.SIGTERM, 137, "rank 1 on localhost was ended by SIGKILL"),
])
def test_all_ended_before_the_first_look(capsys: pytest.CaptureFixture[str], commands: tuple[str, ...], told: int,
                                         status: int, line: str) -> None:
    """``told``: the signal that the launcher got."""
    nodes = [Node(f"rank {i}", "localhost", {}, worker=i) for i in range(len(commands))]
    for node, command in zip(nodes, commands):
        node.start(["sh", "-c", command])
        assert node.process is not None
        node.process.wait()
    monitor, stop = Monitor("127.0.0.1", len(nodes)), SimpleNamespace(number=told, count=int(told > 0))
    assert supervise(nodes, monitor, stop, 300) == status  # type: ignore[arg-type]
    monitor.socket.close()
    said = capsys.readouterr().err
    assert said.startswith(f"launch: {line}") and said.count("\n") == 1 if line else said == ""


def test_a_process_that_the_kernel_holds_is_told_and_not_waited_for(
        capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It stands for a server of files that does not answer. Here signals do not reach it."""
    node = Node("rank 0", "localhost", {}, worker=0)
    node.start(["sleep", "1000"])
    assert node.process is not None
    with monkeypatch.context() as patch:
        patch.setattr(nodes, "GRACE_SECONDS", 0.1)
        patch.setattr(nodes, "HELD_SECONDS", 0.1)
        patch.setattr(nodes.os, "killpg", lambda *_: None)
        nodes.end_all([node])
    assert capsys.readouterr().err == (
        f"launch: rank 0 on localhost still runs after SIGKILL: the kernel holds process {node.process.pid} until a "
        "disk or a server of files answers; then it ends\n")
    nodes.end_all([node])
    assert node.status == -signal.SIGTERM


def test_of_several_that_fail_alike_the_first_is_named(launched: Callable[..., subprocess.Popen],
                                                       tmp_path: Path) -> None:
    body = "signal.signal(signal.SIGTERM, lambda *_: os._exit(3))\nready(rank != 1)\nif rank == 1: sys.exit(3)\n"
    status, _, err = ended(launched(body + "time.sleep(3600)"), tmp_path)
    assert (status, err) == (3, "launch: rank 1 on localhost ended with status 3; ending all others\n")


def test_one_that_is_told_to_stop_alone_ends_all(launched: Callable[..., subprocess.Popen], tmp_path: Path) -> None:
    """As in a worker that has not begun to train, while others wait for it and hear no signal."""
    process = launched("signal.signal(signal.SIGTERM, signal.SIG_IGN)\nif rank == 1: sys.exit(143)\ntime.sleep(3600)")
    pids(tmp_path)
    status, _, err = ended(process, tmp_path)
    assert status == 143
    assert err == "launch: rank 1 on localhost ended with status 143; ending all others\n"


@pytest.mark.parametrize("name, status, line", [
    ("train.py", 1, "launch: no worker has begun: none gave a sign of life in 1.5 s; ending all\n"),
    ("other.py", 0, "")])
def test_a_trainer_that_never_begins(horovod: None, tmp_path: Path, name: str, status: int, line: str) -> None:
    """Other programs need not give signs of life."""
    (tmp_path / name).write_text("import time\ntime.sleep(4)\n")
    launcher = "import sys\nfrom recognition.launch import launcher as l, monitor as m\n" \
               "m.START_SECONDS = 1.5\nsys.exit(l.main())"
    found = subprocess.run([sys.executable, "-c", launcher, "-np", "2", "--stall-timeout", "1", "--", sys.executable,
                            name], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True,
                           text=True, timeout=GUARD)
    assert (found.returncode, found.stderr) == (status, line)


def test_a_hang_ends_all(launched: Callable[..., subprocess.Popen], tmp_path: Path) -> None:
    """A stopped process neither dies nor answers; Horovod's processes tell how far they have come. The time counts once
    it is stopped: before, a busy machine may start one process long after the other."""
    body = """
from recognition.processes.communicator import largest
from recognition.engines.mxnet.processes.choose import make_communicator
with make_communicator("device") as communicator:
    for i in range(1000):
        largest(communicator, i)
        time.sleep(0.01)
        if rank == 1 and i == 200:
            pathlib.Path("stopped").touch()
            os.kill(os.getpid(), signal.SIGSTOP)
"""
    launcher = "import pathlib, sys\nfrom recognition.launch import launcher as l, monitor as m\n" \
               "hung = m.Monitor.hung\n" \
               "m.Monitor.hung = lambda *a: hung(*a) if pathlib.Path('stopped').exists() else None\nsys.exit(l.main())"
    status, _, err = ended(launched(body, "-np", "2", "--stall-timeout", "10", launcher=("-c", launcher)), tmp_path)
    assert status == 1
    assert "launch: rank 1 on localhost hangs: no worker went on for 10 s" in err


def test_a_failed_run_starts_again_and_a_bad_flag_does_not(launched: Callable[..., subprocess.Popen],
                                                           tmp_path: Path) -> None:
    body = """
first = pathlib.Path(f"first{rank}")
if rank == 0: print(os.environ["RECOGNITION_LAUNCH"], sys.argv[1:], flush=True)
if not first.exists(): sys.exit(first.touch() or 1)
"""
    status, out, err = ended(launched(body, "--restarts", "2"), tmp_path)
    first, again = out.splitlines()
    assert (status, first) == (0, again) and first.endswith(" []") and len(first.split()[-2]) == 16
    assert "launch: starting again, 1 of 2" in err and "2 of 2" not in err
    status, _, err = ended(launched("sys.exit(2)", "--restarts", "2"), tmp_path)
    assert status == 2 and "starting again" not in err and "ended with status 2" in err


@pytest.mark.parametrize("who, lines", [
    ("True", ["error: lr"]), ("rank == 0", ["error: lr"]), ("rank == 2", ["[rank 2] error: lr"])])
def test_bad_input_is_said_once(launched: Callable[..., subprocess.Popen], tmp_path: Path, who: str,
                                lines: list[str]) -> None:
    """All end with the same line; or one does, and the others because they lost it."""
    body = f"""
from recognition.errors import LostProcess, UserError, command
@command
def main():
    if {who}: raise UserError("lr")
    time.sleep(0.5)
    raise LostProcess("another process ended")
sys.exit(main())
"""
    status, out, err = ended(launched(body), tmp_path)
    assert (status, out, err.splitlines()) == (2, "", lines)


def test_a_server_reads_the_command_too_and_speaks_for_all(capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [Node("scheduler", "a", {}, error="error: lr"), Node("rank 0", "a", {}, worker=0),
             Node("rank 1", "a", {}, worker=1, error="error: lr"), Node("rank 2", "a", {}, worker=2, error="error: x")]
    tell_errors(nodes)
    assert capsys.readouterr().err == "error: lr\n[rank 2 on a] error: x\n"


def test_an_error_that_is_not_the_last_word_stays_in_its_place(launched: Callable[..., subprocess.Popen],
                                                                tmp_path: Path) -> None:
    body = "if rank: sys.exit()\nfor word in ('error: one', 'two', 'error: three'): print(word, file=sys.stderr)"
    status, _, err = ended(launched(body), tmp_path)
    assert (status, err.splitlines()) == (0, ["error: one", "two", "error: three"])


def test_a_signal_to_the_launcher_reaches_the_workers(launched: Callable[..., subprocess.Popen],
                                                      tmp_path: Path) -> None:
    body = """
def stop(*_):
    print("saved", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
pathlib.Path(f"ready{rank}").touch()
time.sleep(3600)
"""
    process = launched(body, "--restarts", "1")
    while len(list(tmp_path.glob("ready*"))) < 3:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    status, out, err = ended(process, tmp_path)
    assert (status, out.count("saved"), "starting again" in err) == (143, 3, False)


def test_workers_die_with_a_killed_launcher(launched: Callable[..., subprocess.Popen], tmp_path: Path) -> None:
    process = launched("time.sleep(3600)")
    found = pids(tmp_path)
    process.kill()
    process.communicate()
    end = time.monotonic() + GUARD
    while any(alive(pid) for pid in found) and time.monotonic() < end:
        time.sleep(0.02)
    assert not any(alive(pid) for pid in found)


def test_a_worker_on_another_host_may_take_its_time_to_stop(launched: Callable[..., subprocess.Popen],
                                                             tmp_path: Path) -> None:
    """It saves for longer than it would have before SIGKILL if the run had failed."""
    ssh = tmp_path / "ssh"
    ssh.write_text('#!/bin/sh\nshift\nexec sh -c "$*"\n')
    ssh.chmod(0o755)
    body = f"""
def save(*_):
    time.sleep({GRACE_SECONDS + 2})
    pathlib.Path("saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
ready()
time.sleep({GUARD})
"""
    process = launched(body, "--hosts", "a:3", "--ssh", str(ssh), "--address", "127.0.0.1")
    pids(tmp_path)
    while not (tmp_path / "ready").exists() or len(list((tmp_path / "ready").iterdir())) < 3:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    status, _, err = ended(process, tmp_path)
    assert status == 143 and (tmp_path / "saved").exists(), err


def test_other_hosts_through_a_stand_in_for_ssh(launched: Callable[..., subprocess.Popen], tmp_path: Path) -> None:
    """There is no other host here: the stand-in runs the shell line that ssh would hand to one."""
    ssh = tmp_path / "ssh"
    ssh.write_text('#!/bin/sh\nhost=$1; shift\nexec sh -c "$*"\n')
    ssh.chmod(0o755)
    flags = ("--hosts", "a:2,b:1", "--ssh", str(ssh), "--address", "127.0.0.1")
    body = "print(*(os.environ[f'HOROVOD_{n}'] for n in ('HOSTNAME', 'LOCAL_RANK', 'CROSS_RANK')), flush=True)\n"
    status, out, err = ended(launched(body, *flags), tmp_path)
    assert (status, sorted(out.splitlines())) == (0, ["[rank 1] a 1 0", "[rank 2] b 0 1", "a 0 0"]), err
    status, _, err = ended(launched("if rank == 2: sys.exit(7)\ntime.sleep(3600)", *flags), tmp_path)
    assert status == 7
    assert "rank 2 on b ended with status 7" in err


def test_hosts() -> None:
    assert parse_hosts("a:2, user@b:1") == [("a", 2), ("user@b", 1)]
    for text in ("a", "a:0", ":2", "a:x", "a:1,a:2", "-oProxyCommand=x:1", ""):
        with pytest.raises(UserError, match=r"^--hosts: found"):
            parse_hosts(text)
    assert assign([("a", 2), ("b", 2), ("c", 9)], 3) == [
        Place("a", 0, 3, 0, 2, 0, 2), Place("a", 1, 3, 1, 2, 0, 1), Place("b", 2, 3, 0, 1, 1, 2)]
    with pytest.raises(UserError, match="places for 2 workers, expected 3"):
        assign([("a", 2)], 3)
    assert own_address(["localhost"]) == "127.0.0.1"


@pytest.mark.parametrize("hosts, fewest, left, said", [
    ("a:1,b:1,c:4", 2, [("a", 1), ("c", 4)], "on hosts that were left over"),
    ("a:1,b:1", 1, [("a", 1)], "with 1 workers where there were 2: W is cut anew, and a step has fewer images"),
    ("a:1,b:1", 2, None, "")])
def test_a_host_that_stays_away(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], hosts: str,
                                fewest: int, left: list[tuple[str, int]] | None, said: str) -> None:
    """Its place is taken by a host that had none, or by nobody, if fewer workers will do."""
    tried: list[list[tuple[str, int]]] = []

    def run_once(options: argparse.Namespace, *_: object, again: bool) -> int:
        tried.append(options.hosts)
        if ("b", 1) in options.hosts:
            raise Unusable("b", "gone")
        return 0

    monkeypatch.setattr(launcher, "run_once", run_once)
    options = argparse.Namespace(hosts=parse_hosts(hosts), workers=2, fewest=fewest)
    stop: Any = SimpleNamespace(count=0)
    if left is None:
        with pytest.raises(Unusable):
            launcher.run_again(options, stop)
    else:
        assert launcher.run_again(options, stop)[1] == 0 and tried[-1] == left
        assert capsys.readouterr().err == f"launch: --hosts: b: gone; going on without it, {said}\n"


def test_the_monitor_names_who_is_behind() -> None:
    monitor = Monitor("127.0.0.1", 3)
    monitor.exchanges, monitor.heard = {0: 5, 1: 4, 2: 4}, {0: 1.0, 1: 9.0, 2: 3.0}
    assert monitor.hung(1000) is None
    monitor.moved -= 1000
    assert monitor.hung(1000) == 2
    monitor.exchanges, monitor.heard = {}, {}
    assert monitor.hung(1) is None  # not a program that gives signs of life
    monitor.awaited = True
    assert (monitor.hung(1), monitor.hung(2000)) == (0, None)  # 10 minutes, or the timeout if it is longer
    monitor.heard, monitor.exchanges = {1: 1.0}, {1: 0}
    assert (monitor.hung(1), monitor.hung(2000)) == (0, None)
    monitor.socket.close()
