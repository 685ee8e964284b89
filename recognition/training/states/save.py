# SPDX-License-Identifier: Apache-2.0
"""Saving of a training state by all processes of a run together. :mod:`recognition.training.states.state` describes it.

A state is written under another name, forced to disk and renamed, so that a folder with the name of a state is whole.
Each process writes its own shards; the first one writes the rest, and renames the folder once all are done. The folder
is on a file system that they share, or each host has one of its own: then the first process of each writes the rest
there, and process 0 renames its folder last, so that a state which its host has is whole on every host.
"""
from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Callable

import numpy as np

from recognition.engines.interface import BackboneState
from recognition.errors import LostProcess, UserError
from recognition.head.shard import Shard, ShardState
from recognition.io.centres import shard_file
from recognition.io.checksums import Sum, write_npy, write_npz
from recognition.io.files import WRITING, sync_file, sync_folder, writing
from recognition.io.names import MANIFEST
from recognition.processes.alike import Sharing, one_folder
from recognition.processes.communicator import SINGLE, Communicator, largest
from recognition.training.states.folder import Retention, discard_unfinished, drop_states
from recognition.training.states.state import FORMAT, PART_FORMAT, Progress, is_second, last_good, seal

KEEP = Retention()
_DIGEST_BYTES = 32  # of a sha256


def save_state(folder: Path, progress: Progress, backbone: BackboneState, shards: Sequence[Shard],
               data: Mapping[str, np.ndarray] | None = None, communicator: Communicator = SINGLE,
               retention: Retention = KEEP, sharing: Sharing | None = None) -> Path:
    """Write a state below ``folder``, drop older ones, and return its path. All processes call it together.

    :param shards: the shards that this process saves.
    :param data: the loader's ``state()``.
    :param sharing: which processes see the same ``folder``; not given: all do.
    :raises UserError: in all processes, if one cannot write a file: then nothing is left of the state.
    """
    target, sharing = folder / f"step-{progress.step:09d}", sharing or one_folder(communicator)
    states = [shard.state() for shard in shards]
    if largest(communicator, not all(_finite(array) for state in states for array in state)
               or not all(map(_finite, backbone.parameters.values()))):
        raise UserError(f"step {progress.step}: parameters or class centres are no longer finite, and are not saved; "
                        f"{last_good(folder)}. Try a lower --lr")
    if largest(communicator, target.is_dir()):  # the run resumed from it and was stopped before its first step
        return target
    temporary, attempt = folder / f"{target.name}{WRITING}", _Attempt()
    if sharing.keeper:
        attempt(_begin, temporary, target)
    numbers, ranges = _number_shards(shards, communicator)  # waits for the folder, too
    parts = None if sharing.together else _parts(numbers, sharing, communicator)
    sums: dict[str, Sum] = attempt(_save_shards, temporary, numbers, states, communicator) or {}
    everyone = _gather_sums(numbers, sums, ranges, communicator)  # waits for the others' files
    if sharing.keeper:
        everyone.update(attempt(_save_rest, temporary, backbone, data) or {})
    failed = largest(communicator, attempt.error is not None)
    if sharing.keeper and not failed:
        attempt(save_manifest, temporary, progress, ranges, everyone, parts)
    if not failed:
        _name_together(attempt, temporary, target, communicator, sharing)
    # Barrier: no process may exit, and so abort the rest, before process 0 has renamed the folder.
    if largest(communicator, attempt.error is not None):
        if sharing.keeper:
            shutil.rmtree(temporary, ignore_errors=True)
            if not sharing.together:
                shutil.rmtree(target, ignore_errors=True)
        raise attempt.error or LostProcess(f"step {progress.step}: another process could not save its part of the "
                                           "training state, and says why")
    if sharing.keeper:
        drop_states(folder, retention, {progress.best_step})
    return target


class _Attempt:
    """A runner of actions that may fail. After a UserError it runs no more, and keeps the error until all processes
    have agreed on it."""

    def __init__(self) -> None:
        self.error: UserError | None = None

    def __call__(self, action: Callable[..., Any], *args: Any) -> Any:
        try:
            return None if self.error else action(*args)
        except UserError as error:
            self.error = error
            return None


def _name_together(attempt: _Attempt, temporary: Path, target: Path, communicator: Communicator,
                   sharing: Sharing) -> None:
    """Rename a complete state in each folder, that of the first process last, once all others have their names."""
    if sharing.keeper and communicator.rank:
        attempt(_commit, temporary, target)
    failed = not sharing.together and largest(communicator, attempt.error is not None)
    if communicator.rank == 0 and not failed:
        attempt(_commit, temporary, target)


def _begin(temporary: Path, target: Path) -> None:
    if os.path.lexists(target):
        raise UserError(f"{target}: found no folder where the training state is to go; remove or rename it")
    with writing(temporary):
        discard_unfinished(temporary.parent)
        temporary.mkdir(parents=True)


def _finite(array: np.ndarray) -> bool:
    return bool(np.isfinite(array.sum(dtype=np.float64)))


def _number_shards(shards: Sequence[Shard], communicator: Communicator) -> tuple[range, list[list[int]]]:
    """The numbers of this process's shards among those of all processes, and the (start, stop) of all."""
    counts = communicator.all_gather(np.array([len(shards)]))
    mine = np.full((max(1, int(counts.max())), 2), -1)
    mine[: len(shards)] = np.reshape([(shard.start, shard.stop) for shard in shards], (-1, 2))
    before = int(counts[: communicator.rank].sum())
    ranges = [pair for pair in communicator.all_gather(mine).tolist() if pair[0] >= 0]
    return range(before, before + len(shards)), ranges


def _parts(numbers: range, sharing: Sharing, communicator: Communicator) -> dict[str, Any]:
    """What a manifest says about the folders in which a state lies: the host and the shards of each, and the number of
    this one."""
    saved = [range(*row) for row in communicator.all_gather(np.array([[numbers.start, numbers.stop]])).tolist()]
    keepers = sorted(set(sharing.firsts))
    of_keeper = {keeper: [number for first, own in zip(sharing.firsts, saved) for number in own if first == keeper]
                 for keeper in keepers}
    return {"parts": [{"host": sharing.hosts[keeper], "shards": of_keeper[keeper]} for keeper in keepers],
            "part": keepers.index(sharing.firsts[sharing.rank])}


def _save_shards(folder: Path, numbers: range, states: Sequence[ShardState],
                 communicator: Communicator) -> dict[str, Sum]:
    """Write the files of this process's shards; with SGD there are no second moments to write."""
    if not folder.is_dir():
        raise UserError(f"{folder}: process {communicator.rank} does not see the folder that process 0 made; all "
                        "need --models-root on a file system that they share")
    sums = {}
    for number, state in zip(numbers, states):
        for name, array in state._asdict().items():
            if array.size or not is_second(name):
                path = folder / shard_file(name, number)
                with writing(path):
                    sums[path.name] = write_npy(path, array)
    return sums


def _gather_sums(numbers: range, sums: Mapping[str, Sum], ranges: Sequence[Sequence[int]],
                 communicator: Communicator) -> dict[str, Sum]:
    """The sums of the shards' files of all processes."""
    fields = ShardState._fields
    rows = np.full((len(ranges), len(fields), 1 + _DIGEST_BYTES), -1)
    for number in numbers:
        for field, name in enumerate(fields):
            if found := sums.get(shard_file(name, number)):
                rows[number, field] = [found.size, *bytes.fromhex(found.sha256)]
    of_all = communicator.all_gather(rows).reshape(communicator.size, *rows.shape).max(axis=0)
    return {shard_file(name, number): Sum(int(of_all[number, field, 0]),
                                          bytes(of_all[number, field, 1:].tolist()).hex())
            for number in range(len(ranges)) for field, name in enumerate(fields) if of_all[number, field, 0] >= 0}


def _save_rest(folder: Path, backbone: BackboneState, data: Mapping[str, np.ndarray] | None) -> dict[str, Sum]:
    """Write all files but those of the shards and the manifest."""
    sums = {}
    for name, arrays in (("backbone.npz", _named(backbone)), ("data.npz", data)):
        if arrays:
            with writing(folder / name):
                sums[name] = write_npz(folder / name, arrays)
    return sums


def _named(state: BackboneState) -> dict[str, np.ndarray]:
    arrays = {f"parameter:{name}": value for name, value in state.parameters.items()}
    arrays.update({f"momentum:{name}": value for name, value in state.momentum.items()})
    for i, auxiliary in enumerate(state.auxiliary):
        arrays.update({f"auxiliary{i}:{name}": value for name, value in auxiliary.items()})
    arrays.update({f"second_moment:{name}": value for name, value in (state.second_moment or {}).items()})
    arrays.update({f"updates:{name}": value for name, value in (state.updates or {}).items()})
    arrays.update({f"average:{name}": value for name, value in (state.average or {}).items()})
    for i, auxiliary in enumerate(state.average_auxiliary or ()):
        arrays.update({f"average_auxiliary{i}:{name}": value for name, value in auxiliary.items()})
    if state.loss_scale is not None:
        arrays["loss_scale:"] = state.loss_scale
    return arrays


def save_manifest(folder: Path, progress: Progress, ranges: Sequence[Sequence[int]], sums: Mapping[str, Sum],
                  parts: Mapping[str, Any] | None = None) -> None:
    """Write the manifest of a state whose other files are there.

    :param parts: what :func:`_parts` returns, for a part of a state.
    """
    of_parts = {"format": FORMAT} if parts is None else {"format": PART_FORMAT, **parts}
    numbers = asdict(progress)
    if not progress.margin:  # a state of a run without such margins is one that earlier versions read
        del numbers["margin"]
    manifest = {**of_parts, "shards": ranges, **numbers, "files": sums}
    plain = json.loads(json.dumps(manifest, default=str))
    with writing(folder / MANIFEST):
        (folder / MANIFEST).write_text(json.dumps({**plain, "sha256": seal(plain)}, indent=1))
    sync_file(folder / MANIFEST)


def _commit(temporary: Path, target: Path) -> None:
    """Rename a complete state to its final name."""
    sync_folder(temporary)
    with writing(target):
        os.replace(temporary, target)
    sync_folder(target.parent)
