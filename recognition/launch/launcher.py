# SPDX-License-Identifier: Apache-2.0
"""Start a run of several processes, on this host or on several over ssh, and see to it that they end together.

    python -m recognition.launch -np 4 -- python train_parall.py --dataset emore ...
    python -m recognition.launch -np 4 --hosts a:2,b:2 --restarts 3 -- python train_parall.py ...
    python -m recognition.launch -np 2 -- python train.py --kvstore dist_sync ...

The output of the first worker, rank 0, is copied as it is; lines of the others begin with their name: [rank 1]. An
error with which several workers end is printed once.

The workers exchange through Horovod, or with PyTorch through torch.distributed. With ``--kvstore dist_sync`` or
``dist_device_sync`` in the command, or with ``--servers``, they exchange through MXNet's parameter servers, which are
started too. Other hosts need ssh without a password, the same folder and the same Python; models go to a file system
that all share.

If a process dies or is told to stop, all others are ended within 10 seconds; if one hangs, ``--stall-timeout`` seconds
later. A line names the process, the status is not 0, and no process is left. The timeout counts from the last exchange,
or from a worker's first sign of life: train.py and train_parall.py have 10 minutes to give one, or the timeout if it is
longer; other programs need not give any. If one worker is slow, and all others waited for it more than a tenth of the
last minute, a line names it and the run goes on. With ``--restarts`` all processes start again and go on from the last
training state that this launch saved, if it saved one; not after status 2, as bad input stays bad. SIGTERM and Ctrl-C
go to the workers, which save and stop; a second one ends them at once.
"""
from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from recognition.config.devices import WORKER
from recognition.errors import LostProcess, UserError, command
from recognition.launch.flags import parse, require_interface, starts_trainer, wants_servers
from recognition.launch.monitor import Monitor
from recognition.launch.nodes import LOCAL, Node, Place, assign, end_all, tell_errors
from recognition.processes.environment import LAUNCH, MONITOR
from recognition.processes.reach import address_towards

POLL_SECONDS = 0.05
SSH_FAILED = 255  # the status of ssh itself, when it cannot reach a host
SETTLE_SECONDS = 1.0  # to wait for more deaths: one that follows from another may be seen before it
STOPPING_SECONDS = 3.0  # the same after a stop: the workers end once the state that all of them save is whole
NAME = secrets.token_hex(8)  # of this launch, the same after every restart
OTHERS_PORTS = range(10000, 32768)  # of another host, below those that Linux gives out by itself
STOPPED = (128 + signal.SIGTERM, 128 + signal.SIGINT)


def own_address(hosts: Sequence[str]) -> str:
    """This host's address as the first other one of ``hosts`` sees it.

    :raises UserError: if there is no way to that host.
    """
    others = [host for host in hosts if host not in LOCAL]
    if not others:
        return "127.0.0.1"
    try:
        return address_towards(others[0].rpartition("@")[2])
    except (OSError, UnicodeError) as error:  # UnicodeError: no host can have this name
        raise UserError(f"--hosts: {others[0]}: {error}; --address sets this host's address") from None


def free_port(address: str) -> int:
    """A port of ``address`` that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def worker_variables(place: Place, monitor: Monitor) -> dict[str, str]:
    """The environment variables that every worker gets."""
    return {MONITOR: monitor.endpoint, WORKER: str(place.rank), LAUNCH: NAME, "PYTHONUNBUFFERED": "1",
            # Otherwise survivors print the libraries' own errors after the line that names the dead process.
            "HOROVOD_LOG_LEVEL": os.environ.get("HOROVOD_LOG_LEVEL", "fatal"),
            "TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR")}


def ring_nodes(places: Sequence[Place], monitor: Monitor, common: Mapping[str, str],
               ssh: Sequence[str]) -> list[Node]:
    """One worker for each place, with the variables of Horovod and of torchrun."""
    names = ("rank", "size", "local_rank", "local_size", "cross_rank", "cross_size")
    return [Node(f"rank {place.rank}", place.hostname,
                 {**common, **worker_variables(place, monitor), "HOROVOD_HOSTNAME": place.hostname,
                  **{f"HOROVOD_{name.upper()}": str(getattr(place, name)) for name in names},
                  "RANK": str(place.rank), "WORLD_SIZE": str(place.size),
                  "LOCAL_RANK": str(place.local_rank), "LOCAL_WORLD_SIZE": str(place.local_size)}, ssh, place.rank)
            for place in places]


def torch_variables(first: str, address: str, interface: str | None) -> dict[str, str]:
    """The variables with which processes find each other by torch.distributed: the first one listens.

    :param first: its host; ``address``: of this host.
    """
    here = first in LOCAL
    port = free_port(address) if here else OTHERS_PORTS.start + secrets.randbelow(len(OTHERS_PORTS))
    variables = {"MASTER_ADDR": address if here else first.rpartition("@")[2], "MASTER_PORT": str(port)}
    if interface:
        variables.update(GLOO_SOCKET_IFNAME=interface, NCCL_SOCKET_IFNAME=interface)
    return variables


def uses_horovod(command: Sequence[str]) -> bool:
    """True unless the workers compute with PyTorch: the command says so, or there is no Horovod and PyTorch is."""
    words = " ".join(command).replace("=", " ").split()
    named = any(pair == ("--engine", "torch") for pair in zip(words, words[1:]))
    return not named and (find_spec("horovod") is not None or find_spec("torch") is None)


def meeting(places: Sequence[Place], address: str, interface: str | None, command: Sequence[str],
            stack: contextlib.ExitStack) -> dict[str, str]:
    """The variables with which the workers find each other; a server that they need ends with ``stack``.

    :raises UserError: if Horovod is needed and not installed.
    """
    variables = torch_variables(places[0].hostname, address, interface)
    if uses_horovod(command):
        from recognition.engines.mxnet.processes.horovod_rendezvous import rendezvous

        variables |= stack.enter_context(rendezvous(places, address, interface))
    return variables


def server_nodes(places: Sequence[Place], servers: int, monitor: Monitor, address: str, interface: str | None,
                 ssh: Sequence[str]) -> list[Node]:
    """The scheduler on this host, the servers on all hosts in turn, and the workers."""
    hosts = list(dict.fromkeys(place.hostname for place in places))
    common = {"DMLC_PS_ROOT_URI": address, "DMLC_PS_ROOT_PORT": str(free_port(address)),
              "DMLC_NUM_SERVER": str(servers), "DMLC_NUM_WORKER": str(len(places))}
    if all(host in LOCAL for host in hosts):
        common["DMLC_NODE_HOST"] = address
    elif interface:
        common["DMLC_INTERFACE"] = interface
    nodes = [Node("scheduler", "localhost", {**common, "DMLC_ROLE": "scheduler"})]
    nodes += [Node(f"server {i}", hosts[i % len(hosts)], {**common, "DMLC_ROLE": "server"}, ssh)
              for i in range(servers)]
    return nodes + [Node(f"rank {place.rank}", place.hostname,
                         {**common, **worker_variables(place, monitor), "DMLC_ROLE": "worker",
                          "RECOGNITION_LOCAL_RANK": str(place.local_rank),
                          "RECOGNITION_LOCAL_SIZE": str(place.local_size)}, ssh, place.rank) for place in places]


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
    while running:
        time.sleep(POLL_SECONDS)
        monitor.listen()
        if stop.count > forwarded:
            forwarded = stop.count
            for node in workers:
                node.signal(stop.number)
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


def run_once(options: argparse.Namespace, stop: Stop) -> int:
    """Start all processes, wait for their end and end those that are left; returns the status."""
    places = assign(options.hosts or [("localhost", options.workers)], options.workers)
    used = list(dict.fromkeys(place.hostname for place in places))
    address = options.address or own_address(used)
    interface = options.interface or ("lo" if all(host in LOCAL for host in used) and sys.platform == "linux" else None)
    servers = options.servers
    if servers is None:
        servers = len(used) if wants_servers(options.command) else 0
    if options.interface and (servers or any(host in LOCAL for host in used)):  # the scheduler runs here
        require_interface(options.interface)
    ssh: Sequence[str] = options.ssh or ()
    with contextlib.ExitStack() as stack:
        monitor = Monitor(address, options.workers, options.slow_after, starts_trainer(options.command))
        stack.callback(monitor.socket.close)
        if servers:
            nodes = server_nodes(places, servers, monitor, address, interface, ssh)
        else:
            nodes = ring_nodes(places, monitor, meeting(places, address, interface, options.command, stack), ssh)
        stack.callback(tell_errors, nodes)
        stack.callback(end_all, nodes)
        for node in nodes:
            try:
                node.start(options.command)
            except OSError as error:
                what = options.command[0] if node.host in LOCAL else f"--ssh: {ssh[0]}"
                raise UserError(f"{what}: cannot be started: {error}") from None
        return supervise(nodes, monitor, stop, options.stall_timeout)


def run(options: argparse.Namespace) -> int:
    """Start all processes, again after a failure if ``options`` say so; returns the status."""
    stop = Stop()
    status = run_once(options, stop)
    for attempt in range(options.restarts):
        if status in (0, UserError.status) or stop.count:
            break
        say(f"starting again, {attempt + 1} of {options.restarts}")
        status = run_once(options, stop)
    return status


@command
def main() -> int:
    return run(parse(sys.argv[1:], __doc__))
