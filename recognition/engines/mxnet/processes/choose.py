# SPDX-License-Identifier: Apache-2.0
"""Choice of the communicator of a run with MXNet, by its environment."""
from __future__ import annotations

import os
from collections.abc import Mapping

from recognition.errors import UserError
from recognition.processes.communicator import Communicator, SingleProcess
from recognition.processes.environment import joined, mpi_size


def make_communicator(kvstore: str, environ: Mapping[str, str] = os.environ) -> Communicator:
    """Servers for a ``dist_*`` kvstore, Horovod if this process was started for it, else this process alone.

    :raises UserError: if the environment contradicts ``kvstore``, or what it asks for is not installed.
    """
    return joined(lambda: _choose(kvstore, environ), environ)


def _choose(kvstore: str, environ: Mapping[str, str]) -> Communicator:
    started = mpi_size(environ)
    horovod = "HOROVOD_SIZE" in environ or started > 1
    if kvstore.startswith("dist"):
        if horovod:
            raise UserError(f"kvstore: found {kvstore}, but Horovod or MPI started this process: one of the "
                            "two; with --servers 1 recognition.launch starts servers")
        if environ.get("DMLC_ROLE") != "worker":
            raise UserError(f"kvstore: {kvstore} needs servers, which `python -m recognition.launch -np N -- python "
                            "train.py ...` starts; found no DMLC_ROLE=worker in the environment")
        from recognition.engines.mxnet.processes.kvstore_communicator import KVStoreCommunicator

        return KVStoreCommunicator(kvstore)
    if not horovod:
        return SingleProcess()
    from recognition.engines.mxnet.processes.horovod_communicator import HorovodCommunicator

    communicator = HorovodCommunicator()
    if started > 1 and communicator.size != started:
        raise UserError(f"mpirun started {started} processes, but this Horovod is built without MPI: start them with "
                        "horovodrun or `python -m recognition.launch`")
    return communicator
