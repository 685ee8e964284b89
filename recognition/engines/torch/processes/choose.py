# SPDX-License-Identifier: Apache-2.0
"""Choice of the communicator of a run with PyTorch, by its environment."""
from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from recognition.config.devices import TORCH_NUMBERS, WORKER, local_place, require_numbers
from recognition.engines.torch.imports import torch
from recognition.engines.torch.processes import meeting
from recognition.engines.torch.processes.communicator import DistributedCommunicator
from recognition.errors import UserError
from recognition.processes.communicator import Communicator, SingleProcess
from recognition.processes.environment import joined, mpi_size

# Variables with the rank and the number of processes: torchrun and launch, horovodrun, Open MPI, MPICH's family.
RANKS = (("RANK", "WORLD_SIZE"), ("HOROVOD_RANK", "HOROVOD_SIZE"), ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
         ("PMI_RANK", "PMI_SIZE"))
SCHEDULER = ("DMLC_PS_ROOT_URI", "DMLC_PS_ROOT_PORT", "DMLC_NUM_WORKER")
INTERFACES = ("HOROVOD_GLOO_IFACE", "DMLC_INTERFACE")


def make_communicator(kvstore: str, environ: Mapping[str, str] = os.environ) -> Communicator:
    """torch.distributed if a launcher started this process, else this process alone.

    With ``dist_*`` the gradients are summed by all processes, too: there are no servers. A process that a script
    started as a server ends here, and a scheduler holds the place where the workers meet until they have ended.

    :raises UserError: if the variables of the environment contradict each other or ``kvstore``.
    :raises LostProcess: if other processes do not come.
    """
    require_numbers(environ, TORCH_NUMBERS)
    return joined(lambda: _choose(kvstore, environ), environ)


def _choose(kvstore: str, environ: Mapping[str, str]) -> Communicator:
    place = place_of(environ)
    role = environ.get("DMLC_ROLE", "")
    if role and place:
        raise UserError(f"DMLC_ROLE: found {role} beside {place[2]}, expected one of the two: a scheduler or another "
                        "launcher started this process")
    if role:
        require_scheduler(role, environ)
    if role == "scheduler":
        meeting.serve(environ["DMLC_PS_ROOT_URI"], int(environ["DMLC_PS_ROOT_PORT"]), int(environ["DMLC_NUM_WORKER"]))
    if role in ("server", "scheduler"):
        sys.exit(0)
    servers = kvstore.startswith("dist")
    if servers and not (role or place):
        raise UserError(f"kvstore: {kvstore} needs several processes, which `python -m recognition.launch -np N -- "
                        "python train.py ...` or torchrun starts; found none of their variables in the environment")
    if place:
        communicator = _meet(*place, environ)
    elif role and servers:
        communicator = _meet_at_scheduler(environ)
    else:
        return SingleProcess()
    if servers and communicator.rank == 0:
        print(f"kvstore: {kvstore} is an all-reduce with PyTorch: no servers, the same sums", flush=True)
    return communicator


def place_of(environ: Mapping[str, str]) -> tuple[int, int, str] | None:
    """Rank, number of processes and the variable that says so; None if no launcher of ranks started this process.

    :raises UserError: if a variable lacks its other half, or two launchers disagree.
    """
    found = []
    for rank, size in RANKS:
        if bool(environ.get(rank)) != bool(environ.get(size)) and not rank.startswith("PMI"):
            there, lacking = (rank, size) if environ.get(rank) else (size, rank)
            raise UserError(f"{there}: found {environ[there]} without {lacking}, expected both or none")
        if environ.get(rank) and environ.get(size) and (size[0] in "WH" or mpi_size(environ) > 1):
            found.append((int(environ[rank]), int(environ[size]), rank))
    for other in found[1:]:
        if other[:2] != found[0][:2]:
            raise UserError(f"{found[0][2]}: found {found[0][0]} of {found[0][1]}, and {other[2]} {other[0]} of "
                            f"{other[1]}, expected one launcher, or the same numbers")
    return found[0] if found else None


def require_scheduler(role: str, environ: Mapping[str, str]) -> None:
    """:raises UserError: if the role is none, or the variables that name the scheduler are not there."""
    if role not in ("worker", "server", "scheduler"):
        raise UserError(f"DMLC_ROLE: found {role!r}, expected worker, server or scheduler")
    missing = [name for name in SCHEDULER if not environ.get(name)]
    if missing and role != "server":
        raise UserError(f"{missing[0]}: not set, expected what recognition.launch --servers 1 sets for workers")


def _meet(rank: int, size: int, name: str, environ: Mapping[str, str]) -> Communicator:
    """Meet the other processes of a launcher of ranks."""
    host, port = environ.get("MASTER_ADDR", ""), environ.get("MASTER_PORT", "")
    if host and port:
        held = rank == 0 and environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"  # torchrun holds it itself
        here = local_place(environ)[1] == size
        store = (meeting.hold(host, int(port), not here, "MASTER_PORT")[0] if held else
                 meeting.visit(host, int(port), "MASTER_ADDR"))
        store = torch.distributed.PrefixStore(f"start {environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    elif environ.get("HOROVOD_GLOO_RENDEZVOUS_ADDR") and environ.get("HOROVOD_GLOO_RENDEZVOUS_PORT"):
        host = environ["HOROVOD_GLOO_RENDEZVOUS_ADDR"]
        store = meeting.through_horovodrun(rank, environ)
    else:
        raise UserError(f"{name}: found {rank}, but not where process 0 can be reached: expected MASTER_ADDR and "
                        "MASTER_PORT beside it, as torchrun and recognition.launch set them")
    return _join(store, rank, size, host, environ)


def _meet_at_scheduler(environ: Mapping[str, str]) -> Communicator:
    """Meet the other workers of a scheduler, which gives out ranks in the order of arrival unless they are given."""
    host, size = environ["DMLC_PS_ROOT_URI"], int(environ["DMLC_NUM_WORKER"])
    store = meeting.visit(host, int(environ["DMLC_PS_ROOT_PORT"]), "DMLC_PS_ROOT_URI")
    given = environ.get(WORKER) or environ.get("DMLC_WORKER_ID")
    rank = int(given) if given else store.add("ranks", 1) - 1
    if rank >= size:
        raise UserError(f"DMLC_NUM_WORKER: found {size}, and a worker of number {rank}, expected less")
    return _join(store, rank, size, host, environ, scheduler=True)


def _join(store: Any, rank: int, size: int, host: str, environ: Mapping[str, str],
          scheduler: bool = False) -> Communicator:
    meeting.gather_all(store, rank, size)
    if interface := next((environ[name] for name in INTERFACES if environ.get(name)), ""):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    meeting.use_interface_towards(host)
    return DistributedCommunicator(store, rank, size, scheduler)
