# SPDX-License-Identifier: Apache-2.0
"""Start a run of several processes, on this host or on several over ssh, and see to it that they end together.

    python -m recognition.launch -np 4 -- python train_parall.py --dataset emore ...
    python -m recognition.launch -np 4 --hosts a:2,b:2 --restarts 3 -- python train_parall.py ...
    python -m recognition.launch -np 2 -- python train.py --kvstore dist_sync ...

Lines of the first worker, rank 0, come as they are, those of others after their name: [rank 1]. An error that several
end with is said once.

The workers exchange through Horovod; with ``--kvstore dist_sync`` or ``dist_device_sync`` in the command, or with
``--servers``, through MXNet's parameter servers, which are started too. Other hosts need ssh without a password, the
same folder, and the same Python; models go to a file system that all share.

A process that dies ends all others within 10 seconds, one that hangs after ``--stall-timeout`` more, with a line that
says which; the status is then not 0, and no process is left. One that is slow, so that all others wait for it more than
a tenth of the last minute, is named in a line, and the run goes on. With ``--restarts`` all start again and go on from
the last training state that this launch saved, if it saved one, unless the status is 2: bad input stays bad. SIGTERM
and Ctrl-C go to the workers, which save and stop; a second one ends them at once.
"""
from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from recognition.command_line import Parser
from recognition.errors import LostProcess, UserError, command
from recognition.monitor import Monitor
from recognition.nodes import LOCAL, SSH, Node, Place, assign, end_all, parse_hosts, tell_errors

POLL = 0.05
UNREACHED = 255  # the status of ssh itself
SETTLE = 1.0  # seconds in which the deaths that one death brings about may be seen before it
STOPPING = 10.0  # the same for a process that was told to stop, which tells the others
NAME = secrets.token_hex(8)  # of this launch, however often it starts its run
TRAINERS = ("train.py", "train_parall.py")
STOPPED = (128 + signal.SIGTERM, 128 + signal.SIGINT)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options, and the command to start as ``command``."""
    parser = Parser(prog="python -m recognition.launch", description=__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-np", "--workers", type=int, required=True, metavar="N", help="worker processes")
    parser.add_argument("--hosts", default="", metavar="A:2,B:2", help="hosts and how many workers each takes")
    parser.add_argument("--servers", type=int, metavar="S", help="parameter servers; 0 for Horovod "
                        "(default: one a host if the command says --kvstore dist_..., else 0); train.py and "
                        "train_parall.py without --kvstore get --kvstore dist_sync with them")
    parser.add_argument("--restarts", type=int, default=0, metavar="N", help="how often to start again (default: 0)")
    parser.add_argument("--stall-timeout", type=float, default=300, metavar="SECONDS",
                        help="without any exchange, after which a run counts as hung (default: 300)")
    parser.add_argument("--slow-after", type=float, default=60, metavar="SECONDS",
                        help="in which one worker held the others up, to be called slow (default: 60)")
    parser.add_argument("--address", metavar="HOST", help="this host's address as the other hosts see it")
    parser.add_argument("--interface", metavar="NAME", help="network interface of every host to use")
    parser.add_argument("--ssh", default=shlex.join(SSH), metavar="COMMAND", help="how to reach another host")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- and the command")
    options = parser.parse_args(argv)
    options.command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if options.workers < 1 or not options.command:
        parser.error(f"found {options.workers} workers and the command {options.command}, expected one or more and "
                     "-- python train_parall.py ...")
    for flag, value in (("--servers", options.servers or 0), ("--restarts", options.restarts)):
        if value < 0:
            parser.error(f"{flag}: found {value}, expected 0 or more")
    if options.servers and not wants_servers(options.command):
        if named := next((word for word in options.command if word.partition("=")[0] == "--kvstore"), ""):
            parser.error(f"--servers: found {named} of another kind in the command, expected --kvstore dist_sync or "
                         "dist_device_sync, or none")
        if any(os.path.basename(word) in TRAINERS for word in options.command):
            options.command += ["--kvstore", "dist_sync"]
    return options


def wants_servers(arguments: Sequence[str]) -> bool:
    """Whether a command line says ``--kvstore dist_...``."""
    pairs = zip(arguments, [*arguments[1:], ""])
    return any(argument.startswith("--kvstore=dist") or (argument == "--kvstore" and following.startswith("dist"))
               for argument, following in pairs)


def own_address(hosts: Sequence[str]) -> str:
    """This host's address on the way to the first of the hosts that is another."""
    others = [host for host in hosts if host not in LOCAL]
    if not others:
        return "127.0.0.1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((others[0].rpartition("@")[2], 9))  # sends nothing
        except OSError as error:
            raise UserError(f"--hosts: {others[0]}: {error}; --address sets this host's address") from None
        return str(probe.getsockname()[0])


def free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def rendezvous(places: Sequence[Place], address: str, interface: str | None) -> Iterator[dict[str, str]]:
    """Run the server at which Horovod's processes find each other; yields the variables that lead to it."""
    try:
        from horovod.runner.http.http_server import RendezvousHandler, RendezvousHTTPServer, RendezvousServer
    except ImportError as error:
        raise UserError(f"several workers need Horovod, or servers with --kvstore dist_sync: {error}") from None
    server = RendezvousServer()
    # Not server.start(), which listens on all addresses of this host: whoever reaches it may write what workers read.
    server._httpd = RendezvousHTTPServer((address, 0), RendezvousHandler, 0)
    port = server._httpd.server_address[1]
    server._listen_thread = threading.Thread(target=server._httpd.serve_forever, daemon=True)
    server._listen_thread.start()
    server.init(list(places))
    variables = {"HOROVOD_GLOO_RENDEZVOUS_ADDR": address, "HOROVOD_GLOO_RENDEZVOUS_PORT": str(port),
                 "HOROVOD_CONTROLLER": "gloo", "HOROVOD_CPU_OPERATIONS": "gloo"}
    if interface:
        variables.update(HOROVOD_GLOO_IFACE=interface, NCCL_SOCKET_IFNAME=interface)
    try:
        yield variables
    finally:
        server.stop()


def worker_variables(place: Place, monitor: Monitor) -> dict[str, str]:
    return {"RECOGNITION_MONITOR": monitor.endpoint, "RECOGNITION_WORKER": str(place.rank),
            "RECOGNITION_LAUNCH": NAME, "PYTHONUNBUFFERED": "1",
            # What the survivors of a death print otherwise, after the line that names who died.
            "HOROVOD_LOG_LEVEL": os.environ.get("HOROVOD_LOG_LEVEL", "fatal")}


def horovod_nodes(places: Sequence[Place], monitor: Monitor, common: Mapping[str, str],
                  ssh: Sequence[str]) -> list[Node]:
    """One worker for each place."""
    names = ("rank", "size", "local_rank", "local_size", "cross_rank", "cross_size")
    return [Node(f"rank {place.rank}", place.hostname,
                 {**common, **worker_variables(place, monitor), "HOROVOD_HOSTNAME": place.hostname,
                  **{f"HOROVOD_{name.upper()}": str(getattr(place, name)) for name in names}}, ssh, place.rank)
            for place in places]


def server_nodes(places: Sequence[Place], servers: int, monitor: Monitor, address: str, interface: str | None,
                 ssh: Sequence[str]) -> list[Node]:
    """The scheduler on this host, servers over all hosts in turn, and workers."""
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
    """Notes SIGTERM and Ctrl-C, and how many came."""

    def __init__(self) -> None:
        self.number, self.count = 0, 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: Any) -> None:
        self.number, self.count = number, self.count + 1


def say(text: str) -> None:
    print(f"launch: {text}", file=sys.stderr, flush=True)


def supervise(nodes: Sequence[Node], monitor: Monitor, stop: Stop, timeout: float) -> int:
    """Wait until all workers have ended, or end them all after the first that fails; the run's status."""
    workers, forwarded = [node for node in nodes if node.worker is not None], 0
    while any(node.status is None for node in workers):
        time.sleep(POLL)
        monitor.listen()
        if stop.count > forwarded:
            forwarded = stop.count
            for node in workers:
                node.signal(stop.number)
            if forwarded > 1:
                say("ending all processes at once")
                return 128 + stop.number
        asked = (0, 128 + stop.number) if forwarded else (0,)
        if any(node.status not in (None, *asked) for node in nodes):
            return settle(nodes, asked, monitor)
        worker = monitor.hung(timeout)
        if worker is not None:
            behind = max(monitor.exchanges.values()) - monitor.exchanges.get(worker, 0)
            how = f"is {behind} exchanges behind the others" if worker in monitor.heard else "never gave a sign of life"
            say(f"{describe(workers[worker])} hangs: no worker went on for {timeout:g} s, and it {how}; ending all "
                "others")
            return 1
        if slow := monitor.slow():
            say(f"{describe(workers[slow[0]])} is slow: all others wait for it, {slow[1]:.0f} s of 100; the run goes "
                "on")
    return max((node.status or 0 for node in workers), default=0)


def settle(nodes: Sequence[Node], asked: Sequence[int], monitor: Monitor) -> int:
    """Say which process failed first, once those are known that failed with it; its status.

    Bad input says what it is itself.
    """
    began = time.monotonic()
    while any(node.status is None for node in nodes):
        gone = {node.status for node in nodes} - {None, *asked}
        if time.monotonic() - began > (STOPPING if gone <= set(STOPPED) else SETTLE):
            break
        time.sleep(POLL)
    failed = [node for node in nodes if node.status not in (None, *asked)]
    # Its own error or a signal comes before having lost another process.
    culprit = min(failed, key=lambda node: (node.status == LostProcess.status, node.status in STOPPED))
    status = culprit.status or 1
    how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    if status == UNREACHED and culprit.host not in LOCAL:
        how += ", with which ssh says that it cannot reach a host or lost it"
    culprit.finish_output()
    if culprit.status in (LostProcess.status, -signal.SIGABRT) and (silent := monitor.silent()):
        names = ", ".join(describe(node) for node in nodes if node.worker in silent)
        say(f"no sign of life ever came from {names}")
    if status != UserError.status or not culprit.error:
        say(f"{describe(culprit)} {how}; ending all others")
    return 128 - status if status < 0 else status


def describe(node: Node) -> str:
    return f"{node.name} on {node.host}"


def run_once(options: argparse.Namespace, stop: Stop) -> int:
    """Start everything, wait for its end, leave nothing behind; the status."""
    hosts = parse_hosts(options.hosts) if options.hosts else [("localhost", options.workers)]
    places, ssh = assign(hosts, options.workers), shlex.split(options.ssh)
    used = list(dict.fromkeys(place.hostname for place in places))
    address = options.address or own_address(used)
    interface = options.interface or ("lo" if all(host in LOCAL for host in used) and sys.platform == "linux" else None)
    servers = options.servers
    if servers is None:
        servers = len(used) if wants_servers(options.command) else 0
    with contextlib.ExitStack() as stack:
        monitor = Monitor(address, options.workers, options.slow_after)
        stack.callback(monitor.socket.close)
        if servers:
            nodes = server_nodes(places, servers, monitor, address, interface, ssh)
        else:
            nodes = horovod_nodes(places, monitor, stack.enter_context(rendezvous(places, address, interface)), ssh)
        stack.callback(tell_errors, nodes)
        stack.callback(end_all, nodes)
        for node in nodes:
            try:
                node.start(options.command)
            except OSError as error:
                raise UserError(f"{options.command[0]}: cannot be started: {error}") from None
        return supervise(nodes, monitor, stop, options.stall_timeout)


@command
def main() -> int:
    options, stop = parse(sys.argv[1:]), Stop()
    status = run_once(options, stop)
    for attempt in range(options.restarts):
        if status in (0, UserError.status) or stop.count:
            break
        say(f"starting again, {attempt + 1} of {options.restarts}")
        status = run_once(options, stop)
    return status


if __name__ == "__main__":
    sys.exit(main())
