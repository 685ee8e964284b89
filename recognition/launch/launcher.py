# SPDX-License-Identifier: Apache-2.0
"""Start a run of several processes, on this host or on several over ssh, and see to it that they end together.

    python -m recognition.launch -np 4 -- python train_parall.py --dataset emore ...
    python -m recognition.launch -np 4 --hosts a:2,b:2 --restarts 3 -- python train_parall.py ...
    python -m recognition.launch -np 2 -- python train.py --kvstore dist_sync ...

The output of the first worker, rank 0, is copied as it is; lines of the others begin with their name: [rank 1]. An
error with which several workers end is printed once.

The workers exchange through Horovod, or with PyTorch through torch.distributed. With ``--kvstore dist_sync`` or
``dist_device_sync`` in the command, or with ``--servers``, they exchange through MXNet's parameter servers, which are
started too. Other hosts need ssh without a password, the same version of this project and of Python, in the same folder
or in that of --folders; models go to a file system that all share. Before train.py or train_parall.py starts, all hosts
are looked at: an error names the host that ssh cannot reach, that lacks something or that does not reach another one.

If a process dies or is told to stop, all others are ended within 10 seconds; if one hangs, ``--stall-timeout`` seconds
later. A line names the process, the status is not 0, and no process is left. The timeout counts from the last exchange,
or from a worker's first sign of life: train.py and train_parall.py have 10 minutes to give one, or the timeout if it is
longer; other programs need not give any. If one worker is slow, and all others waited for it more than a tenth of the
last minute, a line names it and the run goes on. With ``--restarts`` all processes start again and go on from the last
training state that this launch saved, if it saved one; not after status 2, as bad input stays bad. A host that does not
come back within ``--stall-timeout`` ends the run, or is left out if ``--fewest`` workers are left. SIGTERM and Ctrl-C
go to the workers, which save and stop; a second one ends them at once.
"""
from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from recognition.config.devices import WORKER
from recognition.config.engines import ENGINES
from recognition.errors import UserError, command
from recognition.launch.flags import TRAINERS, parse, require_interface, starts_trainer, wants_servers
from recognition.launch.look_around import Unusable, look_around, python_of
from recognition.launch.monitor import Monitor
from recognition.launch.nodes import LEAST_SILENCE, LOCAL, Node, Place, assign, end_all, tell_errors
from recognition.launch.supervise import Stop, say, supervise
from recognition.processes.environment import LAUNCH, MONITOR
from recognition.processes.reach import address_towards

AGAIN_SECONDS = 5.0  # between looks at hosts that are waited for
NAME = secrets.token_hex(8)  # of this launch, the same after every restart
OTHERS_PORTS = range(10000, 32768)  # of another host, below those that Linux gives out by itself


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
        why = getattr(error, "strerror", "") or error
        raise UserError(f"--hosts: {others[0]}: this host knows no way to it: {why}; --address sets this host's "
                        "address, if only ssh knows that name") from None


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


def torch_variables(first: str, address: str, interface: str | None, seen: Mapping[str, Any]) -> dict[str, str]:
    """The variables with which processes find each other by torch.distributed: the first one listens.

    :param first: its host; ``address``: of this host; ``seen``: what the first host said about itself, if it was asked.
    """
    here = first in LOCAL
    port = (free_port(address) if here else
            seen.get("meeting_port") or OTHERS_PORTS.start + secrets.randbelow(len(OTHERS_PORTS)))
    there = seen.get("address") or first.rpartition("@")[2]  # its name may lead to its loopback interface, there
    variables = {"MASTER_ADDR": address if here else there, "MASTER_PORT": str(port)}
    if interface:
        variables.update(GLOO_SOCKET_IFNAME=interface, NCCL_SOCKET_IFNAME=interface)
    return variables


def uses_horovod(command: Sequence[str]) -> bool:
    """True if the workers may find each other through Horovod. A ``--engine`` in the command tells; without one they
    may wherever it is installed. A config.py, which could tell as well, is code that the workers alone run."""
    words = " ".join(command).replace("=", " ").split()
    for flag, name in zip(words, words[1:]):
        if flag == "--engine" and name in ENGINES:
            return ENGINES[name].meets_by_horovod
    others = [name for name, known in ENGINES.items() if not known.meets_by_horovod and find_spec(name)]
    return find_spec("horovod") is not None or not others


def require_names(seen: Mapping[str, Any]) -> None:
    """Check that the hosts' names lead to addresses that other hosts reach: Horovod 0.28 listens there, whatever
    interface it is told.

    :raises UserError: that names the first host whose name does not.
    """
    for host, found in seen.items():
        if not found["own_name"] or found["own_name"].startswith("127."):
            raise UserError(f"--hosts: {host}: its own name leads to {found['own_name'] or 'no address'} there, where "
                            f"Horovod would listen, expected {found['address']} in its /etc/hosts; or use --engine "
                            "torch, or servers by --kvstore dist_sync")


def meeting(places: Sequence[Place], address: str, interface: str | None, command: Sequence[str],
            seen: Mapping[str, Any], stack: contextlib.ExitStack) -> dict[str, str]:
    """The variables with which the workers find each other; a server that they need ends with ``stack``.

    :raises UserError: if Horovod is needed and not installed.
    """
    variables = torch_variables(places[0].hostname, address, interface, seen.get(places[0].hostname, {}))
    if uses_horovod(command):
        require_names(seen)
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


def place(nodes: Sequence[Node], options: argparse.Namespace, seen: Mapping[str, Any]) -> None:
    """Give each node its folder, and the address and interface that its host named when it was asked."""
    for node in nodes:
        node.folder = options.folders.get(node.host, node.folder)
        node.silence = max(LEAST_SILENCE, options.stall_timeout)
        if node.host in seen and not options.interface:
            found = {"DMLC_NODE_HOST": seen[node.host]["address"], "HOROVOD_GLOO_IFACE": seen[node.host]["interface"]}
            node.variables = {**node.variables, **{name: value for name, value in found.items() if value}}


def look(hosts: Sequence[str], options: argparse.Namespace, address: str, stop: Stop) -> dict[str, Any]:
    """Ask each host about itself; nothing if all processes are here, or if no trainer of this project is started.

    :raises UserError: if a run on these hosts could not succeed.
    """
    python = python_of(options.command, TRAINERS)
    if not python or all(host in LOCAL for host in hosts):
        return {}
    folders = {host: options.folders.get(host, os.getcwd()) for host in hosts}
    return look_around(folders, *python, options.ssh, address, options.interface, lambda: stop.count > 0, say)


def look_again(hosts: Sequence[str], options: argparse.Namespace, address: str, stop: Stop) -> dict[str, Any]:
    """The same after a failure, as soon as all hosts are as they should be: one may be starting.

    :raises UserError: if one still is not, ``options.stall_timeout`` seconds later.
    """
    end, told = time.monotonic() + options.stall_timeout, False
    while True:
        try:
            return look(hosts, options, address, stop)
        except UserError as error:
            if stop.count or time.monotonic() > end:
                raise
            if not told:
                say(f"waiting up to {options.stall_timeout:g} s: {error}")
            told = True
        time.sleep(AGAIN_SECONDS)


def run_once(options: argparse.Namespace, stop: Stop, again: bool = False) -> int:
    """Start all processes, wait for their end and end those that are left; returns the status.

    :param again: after a failure: hosts that cannot be reached are waited for.
    """
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
        try:
            seen = (look_again if again else look)(used, options, address, stop)
        except UserError:
            if not stop.count:  # else the look was cut short, and no host is to blame
                raise
        if stop.count:
            say("stopped before anything was started")
            return 128 + stop.number
        monitor.begin()
        if servers:
            nodes = server_nodes(places, servers, monitor, address, interface, ssh)
        else:
            met = meeting(places, address, interface, options.command, seen, stack)
            nodes = ring_nodes(places, monitor, met, ssh)
        place(nodes, options, seen)
        stack.callback(tell_errors, nodes)
        stack.callback(end_all, nodes)
        for node in nodes:
            try:
                node.start(options.command)
            except OSError as error:
                what = options.command[0] if node.host in LOCAL else f"--ssh: {ssh[0]}"
                raise UserError(f"{what}: cannot be started: {error}") from None
        status = supervise(nodes, monitor, stop, options.stall_timeout)
    if status and monitor.hung(options.stall_timeout) is not None and not stop.count:
        try:
            look(used, options, address, stop)
        except UserError as error:
            say(f"the hosts now: {error}")
    return status


def run(options: argparse.Namespace) -> int:
    """Start all processes, again after a failure if ``options`` say so; returns the status."""
    stop = Stop()
    status = run_once(options, stop)
    for attempt in range(options.restarts):
        if status in (0, UserError.status) or stop.count:
            break
        say(f"starting again, {attempt + 1} of {options.restarts}")
        options, status = run_again(options, stop)
    return status


def run_again(options: argparse.Namespace, stop: Stop) -> tuple[argparse.Namespace, int]:
    """Start all processes after a failure, without the hosts that stay away if ``--fewest`` allows it; returns the
    options that it took, and the status.

    :raises UserError: if a host stays away that is needed.
    """
    wait = True  # once: then all that were to come have come
    while True:
        try:
            return options, run_once(options, stop, again=wait)
        except Unusable as error:
            fewer = without(options, error.host)
            if stop.count or not fewer:
                raise
            change = (f"with {fewer.workers} workers where there were {options.workers}: W is cut anew, and a step has "
                      "fewer images" if fewer.workers < options.workers else "on hosts that were left over")
            say(f"{error}; going on without it, {change}")
            options, wait = fewer, False


def without(options: argparse.Namespace, host: str) -> argparse.Namespace | None:
    """The options of a run without a host; None if that leaves fewer workers than ``--fewest``."""
    hosts = [(name, slots) for name, slots in options.hosts or () if name != host]
    workers = min(options.workers, sum(slots for _, slots in hosts))
    if workers < (options.fewest or options.workers):
        return None
    return argparse.Namespace(**{**vars(options), "hosts": hosts, "workers": workers})


@command
def main() -> int:
    return run(parse(sys.argv[1:], __doc__))
