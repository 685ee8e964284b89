# SPDX-License-Identifier: Apache-2.0
"""Checks that all processes of a run have the same options and training set, and which of them share the folder of
checkpoints."""
from __future__ import annotations

import json
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recognition.config.user_code import is_symbol_file
from recognition.errors import UserError
from recognition.io.files import WRITING, writing
from recognition.processes.communicator import Communicator, barrier, largest

# Options that may differ: paths of a host, what each process has for itself, and users' own keys.
_OF_HOSTS = frozenset(("config_file", "dataset_path", "models_root", "pretrained", "decode_threads", "worker_id",
                       "own_keys"))
_TOKEN_BITS = 24  # servers add float32 numbers


def shared_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that must be the same in all processes. For devices, only their type and number must be.

    :param options: all of them, in JSON's types.
    """
    shared = {key: value for key, value in options.items() if key not in _OF_HOSTS}
    if is_symbol_file(options["net_name"]):  # a path, too; what it holds is a part of the run's identity
        del shared["net_name"]
    return {**shared, "devices": f"{len(options['devices'])} of {options['devices'][0][0]}"}


def require_alike(values: dict[str, Any], communicator: Communicator) -> None:
    """Compare ``values``, of JSON's types, in all processes. A run whose processes differ in learning rate or data
    would learn something that nobody asked for; one whose processes differ in length would hang.

    :raises UserError: in all processes, with the first key that differs.
    """
    if communicator.size == 1:
        return
    (where, first), *others = gathered([socket.gethostname(), values], communicator)
    for rank, (host, found) in enumerate(others, 1):
        for key in sorted({*first, *found}):
            if found.get(key) != first.get(key):
                one, two = (f" on {name}" if host != where else "" for name in (host, where))
                raise UserError(f"{key}: process {rank}{one} has {found.get(key)!r}, process 0{two} "
                                f"{first.get(key)!r}, expected the same in all processes of a run")


def gathered(mine: Any, communicator: Communicator) -> list[Any]:
    """The values of all processes, of JSON's types."""
    text = json.dumps(mine, sort_keys=True).encode()
    length = largest(communicator, len(text))
    rows = communicator.all_gather(np.frombuffer(text.ljust(length), np.uint8)[None])
    return [json.loads(row.astype(np.uint8).tobytes()) for row in rows]


def first_line(mine: str, communicator: Communicator) -> str:
    """The line of the first process that has one; '' if none has. All processes call it together."""
    if communicator.size == 1 or not largest(communicator, int(bool(mine))):
        return mine
    return next(filter(None, gathered(mine, communicator)))


@dataclass(frozen=True)
class Sharing:
    """Which processes of a run see the same folder of checkpoints, and on which hosts they are."""

    rank: int
    firsts: tuple[int, ...]  # for each process, the first one that sees the same folder
    hosts: tuple[str, ...]  # for each process, the name of its host

    @property
    def keeper(self) -> bool:
        """True for the first of those that see the same folder: it writes there what they have in common."""
        return self.firsts[self.rank] == self.rank

    @property
    def together(self) -> bool:
        """True if all processes see one folder."""
        return not any(self.firsts)

    @property
    def place(self) -> tuple[int, int]:
        """This process's number among those that see its folder, and how many these are."""
        mine = [rank for rank, first in enumerate(self.firsts) if first == self.firsts[self.rank]]
        return mine.index(self.rank), len(mine)


def one_folder(communicator: Communicator) -> Sharing:
    """The sharing of processes that all see one folder."""
    return Sharing(communicator.rank, (0,) * communicator.size, ("",) * communicator.size)


def find_sharing(folder: Path, communicator: Communicator) -> Sharing:
    """Find out which processes see the same folder, which exists for each: every one writes a file, and looks for the
    others'."""
    token = largest(communicator, secrets.randbits(_TOKEN_BITS))
    probe = folder / f".{token}-{communicator.rank}{WRITING}"
    with writing(probe):
        probe.touch()
    barrier(communicator)  # all files exist
    names = [path.name[:-len(WRITING)] for path in folder.glob(f".{token}-*{WRITING}")]
    seen = min((int(name.rpartition("-")[2]) for name in names), default=communicator.rank)
    found = gathered([seen, socket.gethostname()], communicator)
    probe.unlink(missing_ok=True)
    return Sharing(communicator.rank, tuple(first for first, _ in found), tuple(host for _, host in found))


def require_shared(folder: Path, communicator: Communicator) -> None:
    """Check that every process sees a file that process 0 writes in ``folder``.

    :raises UserError: in all processes, if one does not.
    """
    if communicator.size == 1:
        return
    token = largest(communicator, secrets.randbits(_TOKEN_BITS) if communicator.rank == 0 else 0)
    probe = folder / f".{token}{WRITING}"
    if communicator.rank == 0:
        probe.touch()
    barrier(communicator)  # the file exists
    found = gathered([probe.exists(), socket.gethostname()], communicator)
    if communicator.rank == 0:
        probe.unlink(missing_ok=True)
    (_, where), *others = found
    for rank, (sees, host) in enumerate(others, 1):
        if not sees:
            one, two = (f" on {name}" if host != where else "" for name in (host, where))
            raise UserError(f"--models-root: process {rank}{one} does not see what process 0{two} writes to {folder}; "
                            "all need it on a file system that they share, or each host its own with --states-on hosts")
