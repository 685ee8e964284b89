# SPDX-License-Identifier: Apache-2.0
"""The processes of a run on their hosts: where each goes, how it is started, read and ended. No MXNet is needed."""
from __future__ import annotations

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

GRACE = 5.0  # seconds from SIGTERM to SIGKILL
LOCAL = ("localhost", "127.0.0.1", socket.gethostname())
SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=20")  # seconds
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl
# The process reads nothing; when the connection goes, and with it the shell's input, the process is ended.
_REMOTE = ("exec 3<&0; cd {folder} || exit; env {variables} {command} 3<&- </dev/null & child=$!; "
           "{{ cat <&3; kill $child; sleep {grace}; kill -9 $child; }} >/dev/null 2>&1 & watch=$!; exec 3<&-; "
           "wait $child; status=$?; kill $watch; exit $status")


class Place(NamedTuple):
    """Where a worker runs, by the names that Horovod uses."""

    hostname: str
    rank: int
    size: int
    local_rank: int
    local_size: int
    cross_rank: int
    cross_size: int


def parse_hosts(text: str) -> list[tuple[str, int]]:
    """Hosts and how many workers each takes, from ``a:2,b:2``."""
    hosts = []
    for item in text.split(","):
        name, _, slots = item.strip().rpartition(":")
        if not re.fullmatch(r"[^\s,-][^\s,]*", name) or not re.fullmatch(r"0*[1-9][0-9]{0,5}", slots):
            raise UserError(f"--hosts: found {item!r}, expected HOST:WORKERS, such as a:2,b:2")
        hosts.append((name, int(slots)))
    if len({name for name, _ in hosts}) < len(hosts):
        raise UserError(f"--hosts: found {text!r}, expected each host once")
    return hosts


def assign(hosts: Sequence[tuple[str, int]], workers: int) -> list[Place]:
    """The place of each worker: the first host is filled first.

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

    name: str  # what messages and output call it
    host: str
    variables: Mapping[str, str]
    ssh: Sequence[str] = SSH
    worker: int | None = None  # its number, unless it is a server or the scheduler
    process: subprocess.Popen[bytes] | None = None
    error: str = ""  # what it ended with on standard error, if it was bad input
    ended: float = math.inf  # by time.monotonic(), when its end was seen
    _pumps: list[threading.Thread] = field(default_factory=list)

    def start(self, command: Sequence[str]) -> None:
        """Start the command and copy its output: of the first worker, which speaks for the run, as it is; of others
        line by line with the name before it."""
        local = self.host in LOCAL
        self.process = subprocess.Popen(
            command if local else [*self.ssh, self.host, self._remote(command)],
            env={**os.environ, **self.variables} if local else None, start_new_session=True,
            stdin=subprocess.DEVNULL if local else subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None)
        for source, target in ((self.process.stdout, sys.stdout), (self.process.stderr, sys.stderr)):
            pump = threading.Thread(target=self._copy, args=(source, target), daemon=True)
            pump.start()
            self._pumps.append(pump)

    def _copy(self, source: IO[bytes], target: IO[str]) -> None:
        held = ""
        for line in source:
            if held:
                _write(target, self.prefix + held)
            text = line.decode(errors="replace").rstrip("\r\n")
            held = text if target is sys.stderr and text.startswith(ERROR) else ""
            if not held:
                _write(target, self.prefix + text)
        if held:  # the last: others may have ended with the same
            self.error = held

    @property
    def prefix(self) -> str:
        """What stands before the lines that it writes."""
        return "" if self.worker == 0 else f"[{self.name}] "

    def _remote(self, command: Sequence[str]) -> str:
        variables = " ".join(shlex.quote(f"{name}={value}") for name, value in self.variables.items())
        return _REMOTE.format(folder=shlex.quote(os.getcwd()), variables=variables, command=shlex.join(command),
                              grace=int(GRACE))

    @property
    def status(self) -> int | None:
        """Exit status, negative if a signal ended it, None while it runs."""
        found = self.process.poll() if self.process else None
        if found is not None:
            self.ended = min(self.ended, time.monotonic())
        return found

    def signal(self, number: int) -> None:
        """Send a signal to the process and what it started; another host's process gets SIGTERM, then SIGKILL."""
        if self.process and self.process.poll() is None:
            if self.host not in LOCAL and self.process.stdin:
                self.process.stdin.close()
            else:
                os.killpg(self.process.pid, number)

    def finish_output(self) -> None:
        """Wait until what it wrote is copied."""
        for pump in self._pumps:
            pump.join(timeout=1)


def _end_with_parent() -> None:
    """In the child: die if the parent does, even by SIGKILL."""
    ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)


def _write(target: IO[str], text: str) -> None:
    target.write(text + "\n")
    target.flush()


def tell_errors(nodes: Sequence[Node]) -> None:
    """The last words of processes that ended with bad input, each once; of those that lost another only if all did."""
    own = [node for node in nodes if node.error and node.status != LostProcess.status]
    told: set[str] = set()
    for node in own or [node for node in nodes if node.error][:1]:
        if node.error not in told:
            _write(sys.stderr, (node.prefix if node.worker else "") + node.error)  # a server has no part of its own
        told.add(node.error)


def end_all(nodes: Sequence[Node]) -> None:
    """SIGTERM, and SIGKILL to those that still run after the grace; returns when all have ended."""
    for node in nodes:
        node.signal(signal.SIGTERM)
    deadline = time.monotonic() + GRACE
    while time.monotonic() < deadline and any(node.status is None for node in nodes):
        time.sleep(0.05)
    for node in nodes:
        if node.status is None and node.process:
            if node.host not in LOCAL:  # its watch over there does the same
                time.sleep(1)
            os.killpg(node.process.pid, signal.SIGKILL)
            node.process.wait()
    for node in nodes:
        node.finish_output()
