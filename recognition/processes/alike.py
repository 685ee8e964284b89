# SPDX-License-Identifier: Apache-2.0
"""What all processes of a run must have alike: options, training set, the folder of checkpoints."""
from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from recognition.errors import UserError
from recognition.io.files import WRITING
from recognition.processes.communicator import Communicator, largest

# Paths, which may be others on other hosts, what each process has for itself, and keys that we know nothing of.
_OF_HOSTS = frozenset(("config_file", "dataset_path", "models_root", "pretrained", "decode_threads", "worker_id",
                       "own_keys"))
_TOKEN_BITS = 24  # servers add float32 numbers


def shared_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Of all options, in JSON's types, those that all processes must have alike. Of devices that is their kind and
    number."""
    shared = {key: value for key, value in options.items() if key not in _OF_HOSTS}
    return {**shared, "devices": f"{len(options['devices'])} of {options['devices'][0][0]}"}


def require_alike(values: dict[str, Any], communicator: Communicator) -> None:
    """Compare ``values``, of JSON's types, in all processes: a run of which one process has another learning rate or
    other data learns something that nobody asked for, and of which one ends earlier hangs.

    :raises UserError: in all of them, with the first key that differs.
    """
    if communicator.size == 1:
        return
    mine = json.dumps(values, sort_keys=True).encode()
    length = largest(communicator, len(mine))
    rows = communicator.all_gather(np.frombuffer(mine.ljust(length), np.uint8)[None])
    first, *others = (json.loads(row.astype(np.uint8).tobytes()) for row in rows)
    for rank, found in enumerate(others, 1):
        for key in sorted({*first, *found}):
            if found.get(key) != first.get(key):
                raise UserError(f"{key}: process {rank} has {found.get(key)!r}, process 0 {first.get(key)!r}, expected "
                                "the same in all processes of a run")


def require_shared(folder: Path, communicator: Communicator) -> None:
    """:raises UserError: in all processes, if one does not see what process 0 writes in ``folder``."""
    if communicator.size == 1:
        return
    token = largest(communicator, secrets.randbits(_TOKEN_BITS) if communicator.rank == 0 else 0)
    probe = folder / f".{token}{WRITING}"
    if communicator.rank == 0:
        probe.touch()
    largest(communicator, 0)  # it is there
    blind = largest(communicator, 0 if probe.exists() else communicator.rank)
    if communicator.rank == 0:
        probe.unlink(missing_ok=True)
    if blind:
        raise UserError(f"--models-root: process {blind} does not see what process 0 writes to {folder}; all need it "
                        "on a file system that they share")
