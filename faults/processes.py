# SPDX-License-Identifier: Apache-2.0
"""Trains in two processes of which one dies, hangs or is slow, again and again; and tries starts that cannot succeed.

    python -m faults.processes                # ten minutes on a machine that is free
    python -m faults.processes --times 1      # each fault once
    python -m faults.processes --record       # and the rows in docs/records/reliability.md
    python -m faults.processes --only PyTorch --record    # these alone, as a class of their own

The runs are real ones of ``train_parall.py`` under ``recognition.launch``, through Horovod, parameter servers and
PyTorch. A fault comes at a random moment after training has begun. A promise is kept if the run ends in time, with the
right status and line, without a traceback, and if no process of it is left.
"""
from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Callable, NamedTuple

import numpy as np

from faults import small_run
from faults.reliability import Row, harness_parser, report

DEATH_SECONDS = 10.0  # from a death to the end of the run
STALL_SECONDS = 5.0  # --stall-timeout
START_SECONDS = 60.0  # until training has begun
LEFT_SECONDS = 10.0  # until the watch over a process on another host has ended, too


class Exchange(NamedTuple):
    """A way in which the processes of a run exchange."""

    launcher: Sequence[str] = ()  # flags of recognition.launch
    trainer: Sequence[str] = ("--engine", "mxnet")  # flags of train_parall.py

    def with_flags(self, *launcher: str) -> Exchange:
        return self._replace(launcher=(*launcher, *self.launcher))


EXCHANGES = {"Horovod": Exchange(), "servers": Exchange(("--servers", "1")),
             "PyTorch": Exchange((), ("--engine", "torch"))}


class Ended(NamedTuple):
    status: int
    err: str
    seconds: float  # from the fault, or from the start
    left: int  # processes

    def as_promised(self, status: int, line: str, most: float) -> bool:
        """True if the run ended as promised. ``line``: a regular expression for a whole line of standard error."""
        return (self.status == status and self.seconds < most and not self.left and "Traceback" not in self.err
                and any(re.fullmatch(line, found) for found in self.err.splitlines()))


class Run:
    """A run in a folder of its own, under the launcher."""

    def __init__(self, folder: Path, exchange: Exchange, *flags: str, steps: int = 100000,
                 python: Sequence[str] = ()) -> None:
        self.mark = tempfile.mkdtemp(dir=folder)
        self.history = Path(self.mark) / "small-arcface-small" / "history.jsonl"
        command = small_run.command(folder / "set", Path(self.mark), "--frequent", "1", "--max-steps", str(steps),
                                    "--verbose", "50", *exchange.trainer, *flags,
                                    launcher=["-np", "2", *exchange.launcher])
        command[1:3] = python or command[1:3]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                                        env=small_run.environment(MARK=self.mark), cwd=small_run.ROOT)
        self.began = time.monotonic()

    def wait_until_it_trains(self, random: np.random.RandomState) -> None:
        while not (self.history.exists() and self.history.stat().st_size) and self.process.poll() is None:
            time.sleep(0.05)
            if time.monotonic() > self.began + START_SECONDS:
                break
        time.sleep(random.uniform(0, 1.5))

    def pid_of(self, variable: str) -> int | None:
        """The process with this ``NAME=value`` in its environment; None if the run has ended too early for a fault."""
        for pid in small_run.marked(self.mark):
            with suppress(OSError):  # it has just ended
                if variable.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    return pid
        return None

    def send(self, number: int, variable: str) -> None:
        """Send a signal to that process, if there is one: else the run's end will not be the promised one."""
        if pid := self.pid_of(variable):
            os.kill(pid, number)

    def end(self, since: float | None = None) -> Ended:
        try:
            _, err = self.process.communicate(timeout=600)
        except subprocess.TimeoutExpired:
            self.process.terminate()
            _, err = self.process.communicate()
        ended = time.monotonic()
        while (left := len(list(small_run.marked(self.mark)))) and time.monotonic() < ended + LEFT_SECONDS:
            time.sleep(0.1)
        return Ended(self.process.returncode, err, ended - (since or self.began), left)


Fault = Callable[[Path, np.random.RandomState], "tuple[bool, Ended]"]


def signalled(number: int, variable: str, exchange: Exchange, status: int, line: str, most: float) -> Fault:
    """Send a signal to one process of a training run."""

    def fault(folder: Path, random: np.random.RandomState) -> tuple[bool, Ended]:
        run = Run(folder, exchange)
        run.wait_until_it_trains(random)
        since = time.monotonic()
        run.send(number, variable)
        ended = run.end(since)
        return ended.as_promised(status, line, most), ended

    return fault


@contextmanager
def slowed(pid: int) -> Iterator[None]:
    """Let a process run half of the time."""
    over = threading.Event()

    def brake() -> None:
        while not over.is_set():
            for number in (signal.SIGSTOP, signal.SIGCONT):
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    return
                time.sleep(0.1)

    thread = threading.Thread(target=brake)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def slow(exchange: Exchange) -> Fault:
    def fault(folder: Path, random: np.random.RandomState) -> tuple[bool, Ended]:
        run = Run(folder, exchange.with_flags("--slow-after", "5"), steps=1500)
        run.wait_until_it_trains(random)
        pid = run.pid_of("RECOGNITION_WORKER=1")
        with slowed(pid) if pid else nullcontext():
            ended = run.end()
        line = r"launch: rank 1 on localhost is slow: all others wait for it, \d+ s of 100; the run goes on"
        return ended.as_promised(0, line, 300), ended

    return fault


def restarted(exchange: Exchange) -> Fault:
    """Kill a process, after which the run goes on to its end."""

    def fault(folder: Path, random: np.random.RandomState) -> tuple[bool, Ended]:
        run = Run(folder, exchange.with_flags("--restarts", "1"), steps=300)
        run.wait_until_it_trains(random)
        run.send(signal.SIGKILL, "RECOGNITION_WORKER=1")
        ended = run.end()
        states = [path.name for path in run.history.parent.glob("state/step-*")]
        return (ended.as_promised(0, "launch: starting again, 1 of 1", 120) and "step-000000300" in states), ended

    return fault


def port_in_use(folder: Path, random: np.random.RandomState) -> tuple[bool, Ended]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code = f"import sys, recognition.launch.launcher as l; l.free_port = lambda _: {port}; sys.exit(l.main())"
        ended = Run(folder, EXCHANGES["servers"], python=["-c", code]).end()
    return ended.as_promised(75, f"error: the scheduler .* port {port} of 127.0.0.1 cannot be had: .*", 30), ended


def unreachable(folder: Path, random: np.random.RandomState) -> tuple[bool, Ended]:
    """Start on 192.0.2.1, which belongs to nobody (RFC 5737): ssh reports that it cannot reach it, or gives up."""
    ssh = folder / "ssh"
    ssh.write_text('#!/bin/sh\nhost=$1; shift\n[ $host = a ] && exec sh -c "$*"\n'
                   'echo "ssh: connect to host b port 22: No route to host" >&2; exit 255\n')
    ssh.chmod(0o755)
    ended = Run(folder, Exchange(("--hosts", "a:1,b:1", "--ssh", str(ssh), "--address", "127.0.0.1"))).end()
    return ended.as_promised(255, "error: --hosts: b: ssh does not reach it: .*No route to host", 30), ended


def no_gpu(folder: Path, random: np.random.RandomState) -> tuple[bool, Ended]:
    ended = Run(folder, Exchange(), "--devices", "gpu:0,1").end()
    return ended.as_promised(2, r"(\[rank 1\] )?error: gpu 0: .*", 30), ended


def faults() -> Iterator[tuple[str, str, Fault]]:
    """Yield each fault, its promise, and a function that tries it."""
    ending = f"in {DEATH_SECONDS:g} s all processes are gone, with a line that names the one that died, status not 0"
    for name, exchange in EXCHANGES.items():
        yield (f"SIGKILL to rank 1 of 2, {name}", ending,
               signalled(signal.SIGKILL, "RECOGNITION_WORKER=1", exchange, 137,
                         "launch: rank 1 on localhost was ended by SIGKILL; ending all others", DEATH_SECONDS))
        stall = exchange.with_flags("--stall-timeout", f"{STALL_SECONDS:g}")
        yield (f"rank 1 of 2 stopped by SIGSTOP, {name}", "the same after --stall-timeout (5 s here) more",
               signalled(signal.SIGSTOP, "RECOGNITION_WORKER=1", stall, 1,
                         r"launch: rank 1 on localhost hangs: no worker went on for 5 s, .*",
                         STALL_SECONDS + DEATH_SECONDS + 5))
        yield (f"rank 1 of 2 runs half of the time, {name}", "it is named, and the run goes on to its end",
               slow(exchange))
        yield (f"SIGKILL to rank 1 of 2 with --restarts 1, {name}", "the run starts again and goes on to its end",
               restarted(exchange))
    for role, name in (("server", "server 0"), ("scheduler", "scheduler")):
        yield (f"SIGKILL to the {role}", ending,
               signalled(signal.SIGKILL, f"DMLC_ROLE={role}", EXCHANGES["servers"], 137,
                         f"launch: {name} on localhost was ended by SIGKILL; ending all others", DEATH_SECONDS))
    yield "the scheduler's port is in use", "in 30 s the end, with a line that says it, status 75", port_in_use
    yield ("a host that ssh cannot reach", "in 30 s the end, with a line that names the host, status 255",
           unreachable)
    yield "a GPU that is not there", "in 30 s the end, with one line that names the GPU, status 2", no_gpu


def main() -> int:
    parser = harness_parser("processes", __doc__)
    parser.add_argument("--times", type=int, default=5, help="that each fault is tried")
    parser.add_argument("--only", default="", metavar="TEXT", help="faults whose description holds this")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random, rows = np.random.RandomState(options.seed), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small_run.make(folder / "set")
        for what, promised, fault in faults():
            if options.only not in what:
                continue
            tried = [fault(folder, random) for _ in range(options.times)]
            seconds = [ended.seconds for _, ended in tried]
            broken = [f"status {ended.status}, {ended.left} left: {ended.err[-600:]!r}" for kept, ended in tried
                      if not kept]
            rows.append(Row(what, options.times, promised, options.times - len(broken),
                            f"{min(seconds):.1f} to {max(seconds):.1f} s; nothing left" + "".join(broken[:1])))
            print(rows[-1], flush=True)
    name, command = "ranks-and-starts", f"python -m faults.processes --times {options.times} --record"
    if options.only:
        name = f"{name}-with-{re.sub(r'[^a-z0-9]+', '-', options.only.lower())}"
        command += f" --only {shlex.quote(options.only)}"
    return report(name, command, rows, options.record)


if __name__ == "__main__":
    sys.exit(main())
