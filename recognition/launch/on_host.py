# SPDX-License-Identifier: Apache-2.0
"""The program that ``launch`` runs on each host before a run: it says what is there, and which hosts it reaches.

It writes a line of JSON about this host, reads a line with all hosts, tries to connect to each, writes a line with
those that it did not reach, and ends when its input does. Each line says under its one key what it is: FOUND, UNREACHED
or, instead, REFUSED. It computes nothing and loads neither NumPy nor an engine.
"""
from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import secrets
import socket
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import recognition
from recognition.config.engines import ENGINES
from recognition.errors import UserError
from recognition.launch.flags import require_interface
from recognition.processes.reach import address_of, address_towards, interface_of

FOUND, UNREACHED, REFUSED = "found", "unreached", "refused"  # refused: the text of an error
PACKAGES = (*ENGINES, "horovod")
MEETING_PORTS = range(10000, 32768)  # below those that Linux gives out by itself
CONNECT_SECONDS = 5.0
ALL_SECONDS = 60.0  # for the connections to all hosts together
_TRIES = 20


def describe(interface: str, root: Path, listening: socket.socket) -> dict[str, Any]:
    """Facts about this host that the launcher compares with those of others.

    :param root: the folder of the trainer's code; ``listening``: a socket that other hosts connect to.
    """
    address, port = listening.getsockname()[:2]
    return {"clock": time.time(), "python": platform.python_version(), "version": recognition.__version__,
            "packages": {name: version for name in PACKAGES if (version := _version(name))},
            "code": {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()[:16]
                     for path in (*root.glob("recognition/**/*.py"), *root.glob("train*.py"))},
            "address": address, "port": port, "interface": interface or interface_of(address),
            "meeting_port": _free_port(address), "own_name": _own_name()}


def _own_name() -> str:
    """The address to which this host's name leads; '' if it leads nowhere."""
    with contextlib.suppress(OSError):
        return socket.gethostbyname(socket.gethostname())
    return ""


def _version(package: str) -> str:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return ""


def _free_port(address: str) -> int:
    """A port that nobody listens on now, for the place where processes meet; 0 if none was found."""
    for _ in range(_TRIES):
        port = secrets.choice(MEETING_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((address, port))
            return port
    return 0


def unreached(hosts: Sequence[tuple[str, str, int]]) -> dict[str, str]:
    """The hosts among ``(name, address, port)`` to which no connection can be made, with the reason."""
    found, end = {}, time.monotonic() + ALL_SECONDS
    for name, address, port in hosts:
        try:
            patience = max(0.1, min(CONNECT_SECONDS, end - time.monotonic()))
            socket.create_connection((address, port), timeout=patience).close()
        except OSError as error:
            found[name] = str(error.strerror or error)
    return found


def main(towards: str, interface: str, root: str, datagrams: str) -> None:
    """:param towards: the launcher's address; ``interface``: of the network to use, '' for the one that leads there.
    :param datagrams: the port at which the launcher reads them, and a text to send there."""
    port, _, token = datagrams.partition(":")
    if interface:
        try:
            require_interface(interface)
        except UserError as error:
            _write(REFUSED, str(error))
            return
    address = address_of(interface) if interface else address_towards(towards)
    with socket.create_server((address, 0), backlog=1024) as listening, (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sender:
        _write(FOUND, describe(interface, Path(root), listening))
        hosts = sys.stdin.readline()
        if hosts:
            for _ in range(3):  # one may get lost
                with contextlib.suppress(OSError):
                    sender.sendto(token.encode(), (towards, int(port)))
            _write(UNREACHED, unreached(json.loads(hosts)))
        sys.stdin.read()  # other hosts still connect


def _write(kind: str, found: Any) -> None:
    print(json.dumps({kind: found}), flush=True)
