# SPDX-License-Identifier: Apache-2.0
"""The environment variables about the processes of a run, and the signs of life for ``launch``."""
from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Callable

from recognition.config.devices import WORKER
from recognition.errors import UserError

if TYPE_CHECKING:  # it loads NumPy, which reads variables that a trainer sets before
    from recognition.processes.communicator import Communicator

# Variables of mpirun, by Open MPI and by MPICH's family; horovodrun and launch set HOROVOD_SIZE.
MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
MONITOR = "RECOGNITION_MONITOR"  # host:port:token of launch
LAUNCH = "RECOGNITION_LAUNCH"  # the name of the launch, the same after every restart
INTERVAL_SECONDS = 1.0  # between signs of life


def mpi_size(environ: Mapping[str, str]) -> int:
    """The number of processes that mpirun started, with this one; 1 if it started none."""
    return next((int(environ[name]) for name in MPI_SIZES if name in environ), 1)


def started_by_launcher(environ: Mapping[str, str]) -> bool:
    """True if this process is one of a run that torchrun, horovodrun, mpirun, launch or a DMLC script has started."""
    return mpi_size(environ) > 1 or any(name in environ for name in ("WORLD_SIZE", "HOROVOD_SIZE", "DMLC_ROLE", WORKER))


def joined(join: Callable[[], Communicator], environ: Mapping[str, str] = os.environ) -> Communicator:
    """Call ``join`` and return its communicator. From now on a thread sends signs of life to the monitor of ``launch``,
    if there is one.

    :raises UserError: if the variable with the monitor's address is malformed.
    """
    found: list[Communicator] = []  # empty while the processes look for each other, which may take forever
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
    """Send the monitor, over UDP, the number of exchanges that this process has begun and the seconds that it has
    waited for others, until the process ends."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        while True:
            exchanges, waited = (found[0].exchanges, found[0].waited) if found else (0, 0.0)
            with contextlib.suppress(OSError):  # the next datagram may arrive
                sender.connect(monitor)  # so that the socket takes nothing from others
                sender.send(f"{who} {exchanges} {waited:.3f}".encode())
            time.sleep(INTERVAL_SECONDS)
