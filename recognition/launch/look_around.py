# SPDX-License-Identifier: Apache-2.0
"""The look at all hosts before a run: that ssh reaches each, that all have the same Python, packages and version of
this project, that each reaches all others, and that their clocks agree."""
from __future__ import annotations

import contextlib
import json
import os
import secrets
import shlex
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Callable

from recognition.errors import UserError
from recognition.launch.nodes import LOCAL
from recognition.launch.on_host import FOUND, REFUSED, UNREACHED

SSH_FAILED = 255  # the status of ssh itself, when it cannot reach a host
ANSWER_SECONDS = 90.0  # for a host to start Python and to look around
CLOCK_SECONDS = 5.0  # by which a clock may differ from this host's
_EXPECTED = "expected a network without a firewall between the hosts of a run"
_OTHER_ADDRESS = ("expected no loopback address between hosts: --interface names a network, --address this host's "
                  "address in it")
DATAGRAM_SECONDS = 2.0  # for the last datagram to come
_CODE = ("import sys; sys.path.insert(0, sys.argv[3]); from recognition.launch.on_host import main; "
         "main(*sys.argv[1:])")


class Unusable(UserError):
    """A host on which no process of the run can be started."""

    def __init__(self, host: str, why: str) -> None:
        super().__init__(f"--hosts: {host}: {why}")
        self.host = host


class Unreachable(Unusable):
    """A host that ssh cannot reach; the status is ssh's own."""

    status = SSH_FAILED


@dataclass
class _Visit:
    """The program of :mod:`recognition.launch.on_host`, running on a host."""

    host: str
    process: subprocess.Popen[bytes]
    began: float = field(default_factory=time.time)
    found: dict[str, Any] = field(default_factory=dict)
    clock_error: float = 0.0  # seconds; positive if its clock is ahead

    def describe(self) -> None:
        """:raises UserError: if the host does not answer as it should."""
        self.found = self._read(FOUND)
        ahead, behind = self.found["clock"] - time.time(), self.found["clock"] - self.began
        self.clock_error = ahead if ahead > 0 else min(behind, 0.0)

    def try_all(self, hosts: Sequence[tuple[str, str, int]]) -> dict[str, str]:
        """The hosts that it does not reach, with the reason."""
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):  # why it ended is told below
            self.process.stdin.write(json.dumps(hosts).encode() + b"\n")
            self.process.stdin.flush()
        return self._read(UNREACHED)

    def _read(self, kind: str) -> dict[str, Any]:
        assert self.process.stdout and self.process.stderr
        for line in self.process.stdout:
            with contextlib.suppress(ValueError, TypeError, KeyError):  # what a shell's own profile prints
                told = json.loads(line)
                if REFUSED in told:
                    raise Unusable(self.host, told[REFUSED])
                return dict(told[kind])
        said = [text for text in self.process.stderr.read().decode(errors="replace").splitlines() if text.strip()]
        why = said[-1].strip() if said else "it says nothing"
        if (status := self.process.wait()) == -signal.SIGKILL:  # by _watched
            raise Unusable(self.host, f"does not answer within {ANSWER_SECONDS:g} s")
        if status == SSH_FAILED and self.host not in LOCAL:
            raise Unreachable(self.host, f"ssh does not reach it: {why}")
        raise Unusable(self.host, f"found no Python with this version of the project there (status {status}): {why}; "
                       "--folders names the project's folder on a host")


def look_around(places: Mapping[str, str], python: Sequence[str], root: str, ssh: Sequence[str], address: str,
                interface: str | None, stopped: Callable[[], bool],
                say: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """Compare all hosts, and try all connections between them; returns what each said about itself.

    :param places: the working folder on each host, by the host's name; ``root``: the folder of the trainer's code,
        from there.
    :param python: the words that start Python; ``ssh``: those that reach another host.
    :param address: of this host; ``stopped``: true once the launch is to end.
    :raises UserError: that names the first host that is not as the first one, or does not reach another.
    """
    with contextlib.ExitStack() as stack:
        here = stack.enter_context(_Here(address))
        visits = []
        for number, (host, folder) in enumerate(places.items()):
            words = [*python, "-c", _CODE, address, interface or "", root, here.datagrams_of(number)]
            visits.append(_Visit(host, _start(host, folder, words, ssh)))
            stack.callback(_end, visits[-1].process)
        stack.enter_context(_watched([visit.process for visit in visits], stopped))
        pool = stack.enter_context(ThreadPoolExecutor(len(visits)))
        list(pool.map(_Visit.describe, visits))
        _compare(visits, say)
        hosts = [(visit.host, visit.found["address"], visit.found["port"]) for visit in visits] + [here.place]
        missed = list(pool.map(lambda visit: visit.try_all(hosts), visits))
        for visit, others in zip(visits, missed):
            for name, why in others.items():
                at = ", port ".join(str(part) for host, *place in hosts if host == name for part in place)
                expected = _OTHER_ADDRESS if at.startswith("127.") else _EXPECTED
                raise UserError(f"--hosts: {visit.host}: does not reach {name} at {at}: {why}; {expected}")
        heard = here.heard(len(visits))
        for number, visit in enumerate(visits):
            if number not in heard:
                raise UserError(f"--hosts: {visit.host}: its datagrams (UDP) do not reach the launcher at {address}; "
                                f"{_EXPECTED}")
    return {visit.host: visit.found for visit in visits}


def _compare(visits: Sequence[_Visit], say: Callable[[str], None]) -> None:
    """:raises UserError: if a host is not as the first one. A clock that differs is told."""
    for visit in visits[1:]:
        if difference := different(visits[0].found, visit.found):
            raise UserError(f"--hosts: {visit.host}: found {difference[0]}, expected {difference[1]} as on "
                            f"{visits[0].host}")
    for visit in visits:
        if abs(visit.clock_error) > CLOCK_SECONDS:
            say(f"{visit.host}: its clock is {abs(visit.clock_error):.0f} s "
                f"{'ahead of' if visit.clock_error > 0 else 'behind'} this host's; the run goes on")


class _Here:
    """The ports of this host that the others try to reach: one that listens, and one that takes datagrams."""

    def __init__(self, address: str) -> None:
        self._listening = socket.create_server((address, 0), backlog=1024)
        self._datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._datagrams.bind((address, 0))
        self._datagrams.settimeout(DATAGRAM_SECONDS)
        self._token = secrets.token_hex(8)
        self.place = ("the launcher's host", address, int(self._listening.getsockname()[1]))

    def datagrams_of(self, number: int) -> str:
        """The port and the text of a host's datagrams."""
        return f"{self._datagrams.getsockname()[1]}:{self._token}{number}"

    def heard(self, expected: int) -> set[int]:
        """The numbers of the hosts whose datagrams have come."""
        found: set[int] = set()
        with contextlib.suppress(socket.timeout):
            while len(found) < expected:
                text = self._datagrams.recv(100).decode(errors="replace")
                if text.startswith(self._token) and text[len(self._token):].isdecimal():
                    found.add(int(text[len(self._token):]))
        return found

    def __enter__(self) -> _Here:
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.close()
        self._datagrams.close()


def _start(host: str, folder: str, words: Sequence[str], ssh: Sequence[str]) -> subprocess.Popen[bytes]:
    line = f"cd {shlex.quote(folder)} && exec {shlex.join(words)}"
    command = ["sh", "-c", line] if host in LOCAL else [*ssh, host, line]
    try:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                start_new_session=True)
    except OSError as error:
        raise UserError(f"--ssh: {command[0]}: cannot be started: {error}") from None


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a visit: the program ends with its input."""
    with contextlib.suppress(BrokenPipeError, OSError):
        process.stdin and process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(2)
    _kill(process)
    process.wait()


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a visit with what it started, such as ssh's ProxyCommand, which would hold its output open."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def _watched(processes: Sequence[subprocess.Popen[bytes]], stopped: Callable[[], bool]) -> Iterator[None]:
    """Kill the visits if they take too long, or if the launch is to end, so that nobody waits for their output."""
    over, end = threading.Event(), time.monotonic() + ANSWER_SECONDS

    def watch() -> None:
        while not over.wait(0.1):
            if stopped() or time.monotonic() > end:
                for process in processes:
                    _kill(process)
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def different(first: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, str] | None:
    """The first difference between two hosts: what was found on the other, and what on the first; None if there is
    none."""
    series = [str(found["python"]).rpartition(".")[0] for found in (first, other)]
    if series[0] != series[1]:
        return f"Python {other['python']}", first["python"]
    if first["version"] != other["version"]:
        return f"version {other['version']} of the project", first["version"]
    for name in sorted({*first["packages"], *other["packages"]}):
        one, two = (found["packages"].get(name, "none") for found in (first, other))
        if one != two:
            return f"{name} {two}", one
    for name in sorted({*first["code"], *other["code"]}):
        one, two = (found["code"].get(name) for found in (first, other))
        if one != two:
            return f"{'another' if one and two else 'one more' if two else 'no'} {name}", "the same code"
    return None


def python_of(command: Sequence[str], trainers: Sequence[str]) -> tuple[list[str], str] | None:
    """The words before the trainer in a command line, which start Python, and the trainer's folder; None if the command
    starts no trainer by a Python."""
    for number, word in enumerate(command):
        if os.path.basename(word) in trainers:
            return (list(command[:number]), os.path.dirname(word) or ".") if number else None
    return None
