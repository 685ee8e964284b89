# SPDX-License-Identifier: Apache-2.0
"""One life of a run that the harness of faults breaks: its processes, their output, and their end."""
from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import train_parall
from faults.small_run import marked

PATIENCE_SECONDS = 600.0  # for a life of a run, on a busy machine
GONE_SECONDS = 10.0  # after the end of a life until all its processes must be gone


class Forked:
    """The part of subprocess.Popen that a life needs, for a child that is forked after all imports.

    A small run spends most of its time on imports, which would slow down a harness of many kills.
    """

    def __init__(self, arguments: Sequence[str], environ: Mapping[str, str], out: int, err: int) -> None:
        self.returncode: int | None = None
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                os.setsid()
                os.dup2(out, 1)
                os.dup2(err, 2)
                os.environ.update(environ)
                sys.argv = ["train_parall.py", *arguments]
                status = train_parall.main()
            except SystemExit as end:
                status = int(end.code or 0)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(status)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float = PATIENCE_SECONDS) -> int:
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("train_parall.py", timeout)
            time.sleep(0.01)
        return self.returncode  # type: ignore[return-value]


class Life:
    """One process of a run, or the launcher of several, from its start to its end."""

    def __init__(self, process: subprocess.Popen | Forked, said: Path, mark: str) -> None:
        """:param said: the files of standard output and error, without their suffixes.
        :param mark: the value of MARK in the environment of all its processes.
        """
        self.process, self._said, self._mark = process, said, mark

    @property
    def out(self) -> str:
        return self._said.with_suffix(".out").read_text()

    @property
    def err(self) -> str:
        return self._said.with_suffix(".err").read_text()

    @property
    def status(self) -> int | None:
        return self.process.poll()

    @property
    def lines(self) -> list[str]:
        """The lines on standard error, without those of the log."""
        return [line for line in self.err.splitlines() if not line.startswith("INFO:root:")]

    def wait(self, patience: float = PATIENCE_SECONDS) -> int:
        """Wait for the end and return the status; a life that lasts too long is killed, with the status -SIGKILL."""
        try:
            return self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.kill()
            return -signal.SIGKILL

    def workers(self) -> list[int]:
        """The processes that a launcher has started, in the order of their ranks."""
        pid = self.process.pid
        with contextlib.suppress(OSError):
            return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return []

    def left(self) -> list[str]:
        """The processes of this life that still live GONE_SECONDS after its end; there should be none.

        Programs are found by their mark, forked children by their session.
        """
        end = time.monotonic() + GONE_SECONDS
        while found := sorted({*marked(self._mark), *_of_session(self.process.pid)}):
            if time.monotonic() > end:
                return [f"{pid} {_command(pid)}" for pid in found]
            time.sleep(0.05)
        return []

    def rounds(self) -> Iterator[None]:
        """Yield again and again, with short pauses, until this life ends or its time is up."""
        end = time.monotonic() + PATIENCE_SECONDS
        while self.status is None and time.monotonic() < end:
            yield
            time.sleep(0.0005)

    def kill(self) -> None:
        """Send SIGKILL to all processes of the run almost at once, like a power cut."""
        victims = [self.process.pid] if isinstance(self.process, Forked) else [*self.workers(), self.process.pid]
        for victim in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        self.process.wait()


def _of_session(leader: int) -> Iterator[int]:
    """The living processes in the session of a process that may be gone."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
            if int(session) == leader and state != "Z":
                yield int(path.parent.name)


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:80]
    return "gone by now"
