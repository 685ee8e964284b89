# SPDX-License-Identifier: Apache-2.0
"""The processes of a run: their places on hosts, their start, output and end. No MXNet is needed."""
from __future__ import annotations

import contextlib
import ctypes
import math
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, NamedTuple

from recognition.errors import ERROR, LostProcess, UserError

GRACE_SECONDS = 5.0  # from SIGTERM to SIGKILL
HELD_SECONDS = 10.0  # from SIGKILL, which the kernel lets wait, to the end of the launcher
LOCAL = ("localhost", "127.0.0.1", socket.gethostname())
SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=20")  # seconds
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl
BEAT_SECONDS = 5.0  # between the bytes that tell another host that the launcher is there
LEAST_SILENCE = 30.0  # seconds without such a byte, after which another host may end its process
ASK = b"T"  # the byte that asks another host's process to stop; it may take its time, to save
# The process has no input. The shell's input ends with the connection, or falls silent with the network; then the watch
# ends the process.
_REMOTE = ("exec 3<&0; cd {folder} || exit; env {variables} {command} 3<&- </dev/null & child=$!; "
           "{{ byte() {{ if command -v timeout >&2; then timeout {silence} head -c 1; else head -c 1; fi; }}; "
           "while beat=$(byte <&3); [ \"$beat\" ]; do [ \"$beat\" = T ] && kill $child; done; "
           "kill $child; sleep {grace}; kill -9 $child; }} >/dev/null 2>&1 & watch=$!; exec 3<&-; "
           "wait $child 2>/dev/null; status=$?; kill $watch 2>/dev/null; exit $status")


class Place(NamedTuple):
    """The place of a worker, in the terms of Horovod."""

    hostname: str
    rank: int
    size: int
    local_rank: int
    local_size: int
    cross_rank: int
    cross_size: int


def parse_hosts(text: str) -> list[tuple[str, int]]:
    """Hosts and the number of workers that each takes, from ``a:2,b:2``.

    :raises UserError: if the text is malformed or names a host twice.
    """
    hosts = []
    for item in text.split(","):
        name, _, slots = item.strip().rpartition(":")
        if not re.fullmatch(r"[^\s,-][^\s,]*", name) or not re.fullmatch(r"0*[1-9][0-9]{0,5}", slots):
            raise UserError(f"--hosts: found {item!r}, expected HOST:WORKERS, such as a:2,b:2")
        hosts.append((name, int(slots)))
    if len({name for name, _ in hosts}) < len(hosts):
        raise UserError(f"--hosts: found {text!r}, expected each host once")
    return hosts


def parse_folders(text: str, hosts: Sequence[str]) -> dict[str, str]:
    """The folder of the command on each host, from ``a=/srv/trainer,b=/data/trainer``.

    :raises UserError: if the text is malformed or names another host than those of ``hosts``.
    """
    found = {}
    for item in text.split(",") if text else ():
        name, _, folder = item.strip().partition("=")
        if name not in hosts or not folder.startswith("/") or name in found:
            raise UserError(f"--folders: found {item!r}, expected HOST=PATH with hosts of --hosts, each once, and "
                            "whole paths, such as a=/srv/trainer,b=/data/trainer")
        found[name] = folder
    return found


def assign(hosts: Sequence[tuple[str, int]], workers: int) -> list[Place]:
    """The place of each worker. Hosts are filled one after the other.

    :raises UserError: if there are not enough places.
    """
    if sum(slots for _, slots in hosts) < workers:
        raise UserError(f"--hosts: found places for {sum(slots for _, slots in hosts)} workers, expected {workers}")
    taken, left = [], workers
    for name, slots in hosts:
        taken.append((name, min(slots, left)))
        left -= taken[-1][1]
    places: list[Place] = []
    for cross, (name, count) in enumerate(taken):
        places += [Place(name, len(places) + i, workers, i, count, cross, sum(c > i for _, c in taken))
                   for i in range(count)]
    return places


@dataclass
class Node:
    """One process of a run."""

    name: str  # in messages and before its output
    host: str
    variables: Mapping[str, str]
    ssh: Sequence[str] = SSH
    worker: int | None = None  # its number; None for a server or the scheduler
    process: subprocess.Popen[bytes] | None = None
    error: str = ""  # its last line on standard error, if that is an error line
    ended: float = math.inf  # time.monotonic() when its end was seen
    folder: str = field(default_factory=os.getcwd)  # of the command, on its host
    silence: float = 300.0  # seconds without a sign of the launcher, after which another host ends the process
    _pumps: list[threading.Thread] = field(default_factory=list)

    def start(self, command: Sequence[str]) -> None:
        """Start the command and copy its output line by line: that of the first worker, which speaks for the run, as it
        is, that of others behind their names."""
        local = self.host in LOCAL
        self.process = subprocess.Popen(
            command if local else [*self.ssh, self.host, self._remote(command)], cwd=self.folder if local else None,
            env={**os.environ, **self.variables} if local else None, start_new_session=True,
            stdin=subprocess.DEVNULL if local else subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None)
        if self.process.stdin:
            os.set_blocking(self.process.stdin.fileno(), False)
        for source, target in ((self.process.stdout, sys.stdout), (self.process.stderr, sys.stderr)):
            pump = threading.Thread(target=self._copy, args=(source, target), daemon=True)
            pump.start()
            self._pumps.append(pump)

    def _copy(self, source: IO[bytes], target: IO[str]) -> None:
        """Copy lines, but hold back a last line that is an error, in ``error``: others may have ended with it, too."""
        held = ""
        for line in source:
            if held:
                _write(target, self.prefix + held)
            text = line.decode(errors="replace").rstrip("\r\n")
            held = text if target is sys.stderr and text.startswith(ERROR) else ""
            if not held:
                _write(target, self.prefix + text)
        if held:
            self.error = held

    @property
    def prefix(self) -> str:
        """The text before each line of its output."""
        return "" if self.worker == 0 else f"[{self.name}] "

    def _remote(self, command: Sequence[str]) -> str:
        variables = " ".join(shlex.quote(f"{name}={value}") for name, value in self.variables.items())
        return _REMOTE.format(folder=shlex.quote(self.folder), variables=variables, command=shlex.join(command),
                              grace=int(GRACE_SECONDS), silence=int(self.silence))

    def beat(self, byte: bytes = b".") -> None:
        """Tell the watch on another host that the launcher is there."""
        if self.host not in LOCAL and self.process and self.process.stdin and not self.process.stdin.closed:
            with contextlib.suppress(OSError):  # it has ended, or the network takes nothing now
                os.write(self.process.stdin.fileno(), byte)

    def ask(self, number: int) -> None:
        """Ask the process to stop by a signal, and its children; a process on another host gets SIGTERM."""
        if self.host in LOCAL:
            self.signal(number)
        else:
            self.beat(ASK)

    @property
    def status(self) -> int | None:
        """The exit status, negative if a signal ended the process; None while it runs."""
        found = self.process.poll() if self.process else None
        if found is not None:
            self.ended = min(self.ended, time.monotonic())
        return found

    def signal(self, number: int) -> None:
        """Send a signal to the process and its children. A process on another host gets SIGTERM, then SIGKILL."""
        if self.process and self.process.poll() is None:
            if self.host not in LOCAL and self.process.stdin:
                self.process.stdin.close()
            else:
                os.killpg(self.process.pid, number)

    def finish_output(self) -> None:
        """Wait until its output is copied."""
        for pump in self._pumps:
            pump.join(timeout=1)


def _end_with_parent() -> None:
    """Make this child die with its parent, even if SIGKILL ends that."""
    ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)


def _write(target: IO[str], text: str) -> None:
    target.write(text + "\n")
    target.flush()


def tell_errors(nodes: Sequence[Node]) -> None:
    """Print the error lines with which processes ended, each once. If all of them lost another process, print one."""
    own = [node for node in nodes if node.error and node.status != LostProcess.status]
    told: set[str] = set()
    for node in own or [node for node in nodes if node.error][:1]:
        if node.error not in told:
            where = f"[{node.name} on {node.host}] " if node.host not in LOCAL else node.prefix
            _write(sys.stderr, (where if node.worker else "") + node.error)  # servers have no errors of their own
        told.add(node.error)


def end_all(nodes: Sequence[Node]) -> None:
    """Send SIGTERM to all processes, and SIGKILL to those that still run GRACE_SECONDS later; return when all ended, or
    after a line about those that the kernel holds, as it does while a disk or a server of files does not answer."""
    for node in nodes:
        node.signal(signal.SIGTERM)
    _await(nodes, GRACE_SECONDS)
    if any(node.status is None and node.host not in LOCAL for node in nodes):
        time.sleep(1)  # the watch on that host does the same
    for node in nodes:
        if node.status is None and node.process:
            os.killpg(node.process.pid, signal.SIGKILL)
    _await(nodes, HELD_SECONDS)
    for node in nodes:
        if node.status is None and node.process:
            _write(sys.stderr, f"launch: {node.name} on {node.host} still runs after SIGKILL: the kernel holds process "
                               f"{node.process.pid} until a disk or a server of files answers; then it ends")
        node.finish_output()


def _await(nodes: Sequence[Node], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(node.process and node.status is None for node in nodes):
        time.sleep(0.05)
