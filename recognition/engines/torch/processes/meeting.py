# SPDX-License-Identifier: Apache-2.0
"""The places where processes with PyTorch meet: a store of torch.distributed on one of the hosts."""
from __future__ import annotations

import http.client
import os
import socket
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from recognition.engines.torch.imports import torch
from recognition.engines.torch.processes.communicator import LEFT
from recognition.errors import LostProcess, UserError
from recognition.processes.reach import address_towards, await_answer, interface_of

PATIENCE_SECONDS = 120.0  # for all processes to come
_POLL_SECONDS = 0.1
_KEY = "/recognition/store"  # of the server of horovodrun, where the first process writes the place of its store
_LONGEST_PLACE = 300  # characters


def hold(host: str, port: int, everywhere: bool, what: str) -> tuple[Any, int]:
    """Open a store on this host; returns it and its port.

    :param port: 0 for one that is free; ``everywhere``: other hosts come, perhaps by another name of this one's.
    :param what: the variable that holds the port, for errors.
    :raises LostProcess: if the port cannot be had. A new start may find it free.
    """
    try:
        listening = _listen(host, port, everywhere)
    except (OSError, UnicodeError) as error:
        raise LostProcess(f"{what}: port {port} of {host} cannot be had: {getattr(error, 'strerror', '') or error}"
                          ) from None
    port = listening.getsockname()[1]
    return torch.distributed.TCPStore(host, port, is_master=True, wait_for_workers=False,
                                      timeout=timedelta(seconds=PATIENCE_SECONDS),
                                      master_listen_fd=listening.detach()), port


def _listen(host: str, port: int, everywhere: bool) -> socket.socket:
    try:
        return socket.create_server((host, port), backlog=1024)
    except OSError:
        if not everywhere:
            raise
    return socket.create_server(("", port), backlog=1024)


def visit(host: str, port: int, what: str) -> Any:
    """The store that another process holds, once it answers.

    :raises LostProcess: if it does not in time.
    """
    if why := await_answer(host, port, PATIENCE_SECONDS):
        raise LostProcess(f"{what}: nobody answers at {host}:{port}: {why}; waited up to {PATIENCE_SECONDS:g} s")
    try:
        return torch.distributed.TCPStore(host, port, is_master=False, wait_for_workers=False,
                                          timeout=timedelta(seconds=PATIENCE_SECONDS))
    except RuntimeError as error:
        raise LostProcess(f"{what}: {host}:{port} is no store of PyTorch's: {' '.join(str(error).split())}") from None


def through_horovodrun(rank: int, environ: Mapping[str, str]) -> Any:
    """The store of the first of horovodrun's processes, whose place the others learn from horovodrun's server.

    :raises LostProcess: if the server or the store does not answer.
    """
    host, port = environ["HOROVOD_GLOO_RENDEZVOUS_ADDR"], int(environ["HOROVOD_GLOO_RENDEZVOUS_PORT"])
    try:
        if rank == 0:
            own = address_towards(host)
            store, at = hold(own, 0, False, "HOROVOD_GLOO_RENDEZVOUS_ADDR")
            _ask(host, port, "PUT", f"{own}:{at}")
            return store
        found: list[str] = []

        def told() -> bool:
            found[:] = _ask(host, port, "GET").rpartition(":")[::2]
            return found[1].isdecimal()

        if not _within(PATIENCE_SECONDS, told):
            raise LostProcess(f"process 0 did not come within {PATIENCE_SECONDS:g} s")
    except (OSError, http.client.HTTPException) as error:
        raise LostProcess(f"HOROVOD_GLOO_RENDEZVOUS_ADDR: the server of horovodrun at {host}:{port} does not answer: "
                          f"{error}") from None
    return visit(found[0], int(found[1]), "HOROVOD_GLOO_RENDEZVOUS_ADDR")


def _ask(host: str, port: int, method: str, body: str | None = None) -> str:
    """The answer of a server of keys and values; '' if it has no such key."""
    connection = http.client.HTTPConnection(host, port, timeout=PATIENCE_SECONDS)
    try:
        connection.request(method, _KEY, body)
        answer = connection.getresponse()
        return answer.read(_LONGEST_PLACE).decode("ascii", "replace") if answer.status == 200 else ""
    finally:
        connection.close()


def gather_all(store: Any, rank: int, size: int) -> None:
    """Wait until all processes have come to a store.

    :raises UserError: if another one has this rank.
    :raises LostProcess: if some do not come in time.
    """
    if store.add(f"rank {rank}", 1) > 1:
        raise UserError(f"rank: found {rank} in two processes, expected each once")
    if not _within(PATIENCE_SECONDS, lambda: store.check([f"rank {other}" for other in range(size)])):
        missing = [str(other) for other in range(size) if not store.check([f"rank {other}"])]
        raise LostProcess(f"process {rank} of {size}: {', '.join(missing)} did not come within {PATIENCE_SECONDS:g} s")


def serve(host: str, port: int, workers: int) -> None:
    """Hold a store until all workers have left, or one has met an error: the work of a scheduler.

    :raises LostProcess: if the port cannot be had.
    """
    store, _ = hold(host, port, True, "DMLC_PS_ROOT_PORT")
    while store.add(LEFT, 0) < workers:
        time.sleep(_POLL_SECONDS)


def use_interface_towards(host: str) -> None:
    """Let Gloo listen on the network interface by which this process reaches ``host``, if the user names none. By
    itself it takes the one that this host's name stands for."""
    try:
        name = interface_of(address_towards(host))
    except (OSError, UnicodeError):
        name = ""
    if name:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def _within(patience: float, condition: Callable[[], bool]) -> bool:
    """True if a condition comes true in so many seconds. Signals are heard, other than while PyTorch waits."""
    end = time.monotonic() + patience
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(_POLL_SECONDS)
    return True
