# SPDX-License-Identifier: Apache-2.0
"""Which processes a run is made of, as its environment says, and the signs of life that ``launch`` asks for."""
from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence

from recognition.config.devices import WORKER
from recognition.errors import UserError
from recognition.processes.communicator import Communicator, SingleProcess

# What mpirun of Open MPI and of MPICH's family set; horovodrun and launch set HOROVOD_SIZE.
MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
MONITOR = "RECOGNITION_MONITOR"  # host:port:token of launch
LAUNCH = "RECOGNITION_LAUNCH"  # the name of the launch, the same each time that it starts its run again
INTERVAL = 1.0  # seconds between signs of life


def make_communicator(kvstore: str, environ: Mapping[str, str] = os.environ) -> Communicator:
    """Servers for a ``dist_*`` kvstore, Horovod if this process was started for it, else this process alone.

    :raises UserError: if the environment does not go with ``kvstore``, or what it asks for is not installed.
    """
    found: list[Communicator] = []  # none while the processes look for each other, which may take for ever
    if MONITOR in environ:
        host, port, token = [*environ[MONITOR].rsplit(":", 2), "", ""][:3]
        if not (host and port.isdecimal() and token and environ.get(WORKER)):
            raise UserError(f"{MONITOR}: found {environ[MONITOR]!r}, expected host:port:token beside {WORKER}, both of "
                            "recognition.launch")
        arguments = (found, (host, int(port)), f"{token} {environ[WORKER]}")
        threading.Thread(target=_beat, args=arguments, name="signs of life", daemon=True).start()
    found.append(_choose(kvstore, environ))
    return found[0]


def _choose(kvstore: str, environ: Mapping[str, str]) -> Communicator:
    mpi_size = next((int(environ[name]) for name in MPI_SIZES if name in environ), 1)
    horovod = "HOROVOD_SIZE" in environ or mpi_size > 1
    if kvstore.startswith("dist"):
        if horovod:
            raise UserError(f"kvstore: found {kvstore}, but Horovod or MPI started this process: one of the "
                            "two; with --servers 1 recognition.launch starts servers")
        if environ.get("DMLC_ROLE") != "worker":
            raise UserError(f"kvstore: {kvstore} needs servers, which `python -m recognition.launch -np N -- python "
                            "train.py ...` starts; found no DMLC_ROLE=worker in the environment")
        from recognition.engines.mxnet.kvstore_communicator import KVStoreCommunicator

        return KVStoreCommunicator(kvstore)
    if not horovod:
        return SingleProcess()
    from recognition.engines.mxnet.horovod_communicator import HorovodCommunicator

    communicator = HorovodCommunicator()
    if mpi_size > 1 and communicator.size != mpi_size:
        raise UserError(f"mpirun started {mpi_size} processes, but this Horovod is built without MPI: start them with "
                        "horovodrun or `python -m recognition.launch`")
    return communicator


def _beat(found: Sequence[Communicator], monitor: tuple[str, int], who: str) -> None:
    """Tell the monitor, over UDP, how many exchanges this process has begun and how long it has waited for others, for
    as long as it lives."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        while True:
            exchanges, waited = (found[0].exchanges, found[0].waited) if found else (0, 0.0)
            with contextlib.suppress(OSError):  # the next one may arrive
                sender.sendto(f"{who} {exchanges} {waited:.3f}".encode(), monitor)
            time.sleep(INTERVAL)
