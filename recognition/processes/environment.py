# SPDX-License-Identifier: Apache-2.0
"""What the environment says of the processes of a run, and the signs of life that ``launch`` asks for."""
from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Mapping
from typing import Callable

from recognition.config.devices import WORKER
from recognition.errors import UserError
from recognition.processes.communicator import Communicator

# What mpirun of Open MPI and of MPICH's family set; horovodrun and launch set HOROVOD_SIZE.
MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
MONITOR = "RECOGNITION_MONITOR"  # host:port:token of launch
LAUNCH = "RECOGNITION_LAUNCH"  # the name of the launch, the same each time that it starts its run again
INTERVAL = 1.0  # seconds between signs of life


def mpi_size(environ: Mapping[str, str]) -> int:
    """How many processes mpirun started, this one among them; 1 if it started none."""
    return next((int(environ[name]) for name in MPI_SIZES if name in environ), 1)


def joined(join: Callable[[], Communicator], environ: Mapping[str, str] = os.environ) -> Communicator:
    """What ``join`` gives. Meanwhile, and for as long as this process lives, the monitor of ``launch`` hears of it.

    :raises UserError: if the variable that names the monitor is not as ``launch`` sets it.
    """
    found: list[Communicator] = []  # none while the processes look for each other, which may take for ever
    if MONITOR in environ:
        host, port, token = [*environ[MONITOR].rsplit(":", 2), "", ""][:3]
        if not (host and port.isdecimal() and token and environ.get(WORKER)):
            raise UserError(f"{MONITOR}: found {environ[MONITOR]!r}, expected host:port:token beside {WORKER}, both of "
                            "recognition.launch")
        arguments = (found, (host, int(port)), f"{token} {environ[WORKER]}")
        threading.Thread(target=_beat, args=arguments, name="signs of life", daemon=True).start()
    found.append(join())
    return found[0]


def _beat(found: list[Communicator], monitor: tuple[str, int], who: str) -> None:
    """Tell the monitor, over UDP, how many exchanges this process has begun and how long it has waited for others, for
    as long as it lives."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        while True:
            exchanges, waited = (found[0].exchanges, found[0].waited) if found else (0, 0.0)
            with contextlib.suppress(OSError):  # the next one may arrive
                sender.sendto(f"{who} {exchanges} {waited:.3f}".encode(), monitor)
            time.sleep(INTERVAL)
