# SPDX-License-Identifier: Apache-2.0
"""The wait for the end of a run: which process failed first, hangs or is slow, and the line that says so."""
from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

from recognition.errors import LostProcess, UserError
from recognition.launch.look_around import SSH_FAILED
from recognition.launch.monitor import Monitor
from recognition.launch.nodes import BEAT_SECONDS, LOCAL, Node

POLL_SECONDS = 0.05
SETTLE_SECONDS = 1.0  # to wait for more deaths: one that follows from another may be seen before it
STOPPING_SECONDS = 3.0  # the same after a stop: the workers end once the state that all of them save is whole
STOPPED = (128 + signal.SIGTERM, 128 + signal.SIGINT)


class Stop:
    """A handler of SIGTERM and Ctrl-C: ``number`` is the last signal, ``count`` how many came."""

    def __init__(self) -> None:
        self.number, self.count = 0, 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: Any) -> None:
        self.number, self.count = number, self.count + 1


def say(text: str) -> None:
    print(f"launch: {text}", file=sys.stderr, flush=True)


def supervise(nodes: Sequence[Node], monitor: Monitor, stop: Stop, timeout: float) -> int:
    """Wait until all workers have ended, or until one fails or hangs; returns the run's status."""
    workers, forwarded, running = [node for node in nodes if node.worker is not None], 0, True
    beaten = -math.inf
    while running:
        time.sleep(POLL_SECONDS)
        monitor.listen()
        if time.monotonic() > beaten + BEAT_SECONDS:
            beaten = time.monotonic()
            for node in nodes:
                node.beat()
        if stop.count > forwarded:
            forwarded = stop.count
            for node in workers:
                node.ask(stop.number)
            if forwarded > 1:
                say("ending all processes at once")
                return 128 + stop.number
        asked = (0, 128 + stop.number) if forwarded else (0,)
        running = any(node.status is None for node in workers)  # read before the failures, so that none is missed
        if any(node.status not in (None, *asked) for node in nodes):
            return settle(nodes, asked, monitor)
        if line := stalled(workers, monitor, timeout):
            say(line)
            return 1
        if slow := monitor.slow():
            say(f"{describe(workers[slow[0]])} is slow: all others wait for it, {slow[1]:.0f} s of 100; the run goes "
                "on")
    return max((node.status or 0 for node in workers), default=0)


def stalled(workers: Sequence[Node], monitor: Monitor, timeout: float) -> str:
    """The line about a run in which no worker goes on, with the worker that the others wait for; empty if one does."""
    worker = monitor.hung(timeout)
    if worker is None:
        return ""
    if not monitor.heard:
        return f"no worker has begun: none gave a sign of life in {monitor.limit(timeout):g} s; ending all"
    behind = max(monitor.exchanges.values()) - monitor.exchanges.get(worker, 0)
    how = f"is {behind} exchanges behind the others" if worker in monitor.heard else "never gave a sign of life"
    return f"{describe(workers[worker])} hangs: no worker went on for {timeout:g} s, and it {how}; ending all others"


def settle(nodes: Sequence[Node], asked: Sequence[int], monitor: Monitor) -> int:
    """Wait for failures that follow from the first, print a line about the process that caused them, and return its
    status.

    There is no line about bad input, which the process has reported itself, nor after a signal to this launch.
    """
    began = time.monotonic()
    while any(node.status is None for node in nodes):
        gone = {node.status for node in nodes} - {None, *asked}
        if time.monotonic() - began > (STOPPING_SECONDS if gone <= set(STOPPED) else SETTLE_SECONDS):
            break
        time.sleep(POLL_SECONDS)
    failed = [node for node in nodes if node.status not in (None, *asked)]
    # An error of its own or a signal counts before the loss of another process, of which libraries abort, too; then the
    # first end that was seen.
    lost = (LostProcess.status, -signal.SIGABRT)
    culprit = min(failed, key=lambda node: (node.status in lost, in_shell(node) in STOPPED, node.ended))
    status = culprit.status or 0
    how = f"was ended by {signal_name(-status)}" if status < 0 else f"ended with status {status}"
    if status == SSH_FAILED and culprit.host not in LOCAL:
        how += ", with which ssh says that it cannot reach a host or lost it"
    culprit.finish_output()
    if culprit.status in lost and (silent := monitor.silent()):
        names = ", ".join(describe(node) for node in nodes if node.worker in silent)
        say(f"no sign of life ever came from {names}")
    code = in_shell(culprit)
    alike = sum(node.status == status for node in failed)
    if status in STOPPED and alike > 1:  # the workers agreed to stop, and end in any order
        which = "all" if alike == monitor.workers else f"{alike} of {monitor.workers} workers"
        say(f"a worker was told to stop by {signal.Signals(status - 128).name}, and {which} ended with status {status}")
    elif code not in asked and (status != UserError.status or not culprit.error):
        say(f"{describe(culprit)} {how}; ending all others")
    return code


def in_shell(node: Node) -> int:
    """The status of a process that has ended, as a shell gives it: 128 plus the number of the signal, if one ended it.
    """
    status = node.status or 0
    return 128 - status if status < 0 else status


def signal_name(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"  # real-time ones


def describe(node: Node) -> str:
    return f"{node.name} on {node.host}"
