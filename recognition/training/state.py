# SPDX-License-Identifier: Apache-2.0
"""Training states: all that a run needs to go on as if it had not stopped, whatever the number of shards.

A state is a folder ``step-%09d`` with ``manifest.json``, ``backbone.npz`` and, for shard i of W, ``centres-i.npy``,
``momentum-i.npy``, ``bias-i.npy`` and ``bias_momentum-i.npy``, with AdamW ``second_moment-i.npy`` and
``bias_second_moment-i.npy``; ``data.npz`` if the position in the data needs arrays.
It is written under another name, forced to disk and renamed, so that a folder of that name is whole. The last two are
kept. With several processes each writes its own shards, and the first the rest and the new name, once all are done: the
folder is on a file system that they share.
"""
from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from recognition.errors import UserError
from recognition.files import replacing, sync_file, sync_folder, writing
from recognition.parallel.backbone import BackboneState
from recognition.parallel.communicator import Communicator, SingleProcess, largest
from recognition.parallel.shard import Shard, ShardState, pieces

FORMAT = 1
KEPT = 2
KEPT_ASIDE = 2  # runs before this one whose states are kept
SINGLE = SingleProcess()
_WRITING = ".writing"
_BEFORE = {"optimizer": "sgd"}  # what identities of earlier versions leave unsaid
_LAUNCH = "launch"  # the file that holds the name of the launch that the states are of


@dataclass
class Progress:
    """Where a run stands, beside its arrays."""

    step: int = 0  # batches done
    epoch: int = 0
    offset: int = 0  # images of this epoch consumed
    verifications: int = 0
    best: tuple[float, float] = (-1.0, -1.0)  # accuracy of the last target, sum over all targets
    identity: dict[str, Any] = field(default_factory=dict)  # what must not change when the run goes on
    config: dict[str, Any] = field(default_factory=dict)  # everything it ran with, for the reader


def save_state(folder: Path, progress: Progress, backbone: BackboneState, shards: Sequence[Shard],
               data: Mapping[str, np.ndarray] | None = None,
               communicator: Communicator = SINGLE) -> Path:
    """Write a state below ``folder`` and drop all but the newest two; returns its path. All processes call it together.

    :param shards: those that this process is to save.
    :param data: the loader's ``state()``.
    """
    target = folder / f"step-{progress.step:09d}"
    states = [shard.state() for shard in shards]
    if largest(communicator, not all(_finite(array) for state in states for array in state)
               or not all(map(_finite, backbone.parameters.values()))):
        raise UserError(f"step {progress.step}: parameters or class centres are no longer finite, and are not saved; "
                        f"{_last_good(folder)}. Try a lower --lr")
    if largest(communicator, target.exists()):  # a run that went on from it and was stopped before its first step
        return target
    temporary, first = folder / f"{target.name}{_WRITING}", communicator.rank == 0
    if first:
        discard_unfinished(folder)
        temporary.mkdir(parents=True)
    numbers, ranges = _number_shards(shards, communicator)  # waits for the folder, too
    if not temporary.is_dir():
        raise UserError(f"{temporary}: process {communicator.rank} does not see the folder that process 0 made; all "
                        "need --models-root on a file system that they share")
    for number, state in zip(numbers, states):
        for name, array in _present(state).items():
            with open(temporary / f"{name}-{number}.npy", "wb") as file:
                np.save(file, array)
                os.fsync(file.fileno())
    if first:
        _save_rest(temporary, progress, backbone, ranges, data)
    largest(communicator, 0)  # all have written
    if first:
        _commit(temporary, target)
    largest(communicator, 0)  # nobody ends, and takes the others down, before the state has its name
    return target


def _present(state: ShardState) -> dict[str, np.ndarray]:
    """The arrays of a shard by name, without the second moments of SGD."""
    return {name: array for name, array in state._asdict().items() if array.size or not _is_second(name)}


def _is_second(name: str) -> bool:
    return name.endswith("second_moment")


def _finite(array: np.ndarray) -> bool:
    return bool(np.isfinite(array.sum(dtype=np.float64)))


def _last_good(folder: Path, but: Path | None = None) -> str:
    """Where one could go on from instead, for the end of an error."""
    others = [path for path in saved_states(folder) if path != but]
    return f"the last good state is {others[-1]}" if others else "there is no other state"


def _number_shards(shards: Sequence[Shard], communicator: Communicator) -> tuple[range, list[list[int]]]:
    """The numbers of this process's shards among those of all processes, and the (start, stop) of all."""
    counts = communicator.all_gather(np.array([len(shards)]))
    mine = np.full((max(1, int(counts.max())), 2), -1)
    mine[: len(shards)] = np.reshape([(shard.start, shard.stop) for shard in shards], (-1, 2))
    before = int(counts[: communicator.rank].sum())
    ranges = [pair for pair in communicator.all_gather(mine).tolist() if pair[0] >= 0]
    return range(before, before + len(shards)), ranges


def _save_rest(folder: Path, progress: Progress, backbone: BackboneState, ranges: list[list[int]],
               data: Mapping[str, np.ndarray] | None) -> None:
    """Write what is not a shard."""
    _save_backbone(folder / "backbone.npz", backbone)
    if data:
        np.savez(folder / "data.npz", **data)
    manifest = {"format": FORMAT, "shards": ranges, **asdict(progress)}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1, default=str))
    for path in folder.iterdir():
        if path.suffix != ".npy":  # of a shard: its process sees to it
            sync_file(path)


def _commit(temporary: Path, target: Path) -> None:
    """Give a complete state its name, and drop those that are too old."""
    folder = target.parent
    sync_folder(temporary)
    os.replace(temporary, target)
    sync_folder(folder)
    for old in saved_states(folder)[:-KEPT]:
        old.rename(f"{old}{_WRITING}")  # half a state must not look whole
    discard_unfinished(folder)


def saved_states(folder: Path) -> list[Path]:
    """The whole states below a folder, oldest first."""
    return sorted(p for p in folder.glob("step-*") if p.name[5:].isdigit() and (p / "manifest.json").is_file())


def set_aside(folder: Path) -> str:
    """Move the states of an earlier run to ``state.1``, ``state.2``, ..., its history with them, and remove all but
    those of the last KEPT_ASIDE runs and of the longest; returns a line about it, empty if there was none."""
    if not saved_states(folder):
        return ""
    before = {int(path.name.rpartition(".")[2]): path for path in folder.parent.glob(f"{folder.name}.*")
              if path.name.rpartition(".")[2].isdigit()}
    longest = max([folder, *before.values()], key=lambda path: [state.name for state in saved_states(path)][-1:])
    old = [before[number] for number in sorted(before)[: len(before) + 1 - KEPT_ASIDE] if before[number] != longest]
    history = folder.with_name("history.jsonl")
    with writing(folder):
        if history.exists():
            os.replace(history, folder / history.name)
        kept = folder.rename(folder.with_name(f"{folder.name}.{max(before, default=0) + 1}"))
        for path in old:
            shutil.rmtree(path)
    names = ", ".join(path.name for path in old)
    removed = f"; {names} removed: those of the last {KEPT_ASIDE} runs and of the longest are kept" if old else ""
    return f"starting anew; the training state of the run before is kept in {kept}{removed}"


def discard_unfinished(folder: Path) -> None:
    """Remove what a killed run was writing or removing."""
    for path in folder.glob(f"step-*{_WRITING}"):
        shutil.rmtree(path)


def _save_backbone(path: Path, state: BackboneState) -> None:
    arrays = {f"parameter:{name}": value for name, value in state.parameters.items()}
    arrays.update({f"momentum:{name}": value for name, value in state.momentum.items()})
    for i, auxiliary in enumerate(state.auxiliary):
        arrays.update({f"auxiliary{i}:{name}": value for name, value in auxiliary.items()})
    arrays.update({f"second_moment:{name}": value for name, value in (state.second_moment or {}).items()})
    arrays.update({f"updates:{name}": value for name, value in (state.updates or {}).items()})
    if state.loss_scale is not None:
        arrays["loss_scale:"] = state.loss_scale
    np.savez(path, **arrays)


class SavedState:
    """A state on disk, opened for reading."""

    def __init__(self, path: Path) -> None:
        """:raises UserError: if the folder holds no state that this version reads."""
        self.path = path
        try:
            manifest = json.loads((path / "manifest.json").read_text())
            found = manifest.pop("format")
            self._ranges: list[list[int]] = manifest.pop("shards")
            if found != FORMAT:
                raise UserError(f"{path}: training state of format {found}, expected {FORMAT}")
            self.progress = Progress(**{**manifest, "best": tuple(manifest["best"])})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: not a training state: {error}") from None

    def require_identity(self, identity: dict[str, Any]) -> None:
        """:raises UserError: if the state is of a run with other identities, images or shapes."""
        for key, value in identity.items():
            found = self.progress.identity.get(key, _BEFORE.get(key))
            if found != value:
                raise UserError(f"--resume: {self.path} was saved with {key} {found!r}, this run has {value!r}")

    def backbone(self) -> BackboneState:
        """The backbone's arrays."""
        groups: dict[str, dict[str, np.ndarray]] = {"parameter": {}, "momentum": {}}
        for key, array in self._read("backbone.npz").items():
            group, _, name = key.partition(":")
            groups.setdefault(group, {})[name] = array
        replicas = sorted((g for g in groups if g.startswith("auxiliary")), key=lambda g: int(g[9:]))
        return BackboneState(groups["parameter"], groups["momentum"], [groups[g] for g in replicas] or [{}],
                             groups.get("loss_scale", {}).get(""), groups.get("second_moment"), groups.get("updates"))

    def data(self) -> dict[str, np.ndarray]:
        """The loader's arrays, if it had any."""
        return self._read("data.npz") if (self.path / "data.npz").exists() else {}

    def fill(self, shard: Shard, sub_centres: int) -> None:
        """Load a shard, however W was cut when it was saved, without a second copy of W in memory."""
        for low, high in pieces(shard.start, shard.stop, sub_centres):
            shard.load(self.rows(low, high, sub_centres), low)

    def rows(self, start: int, stop: int, sub_centres: int) -> ShardState:
        """The arrays of classes ``start .. stop - 1``, from whichever shards hold them; only those rows are read."""
        shards = [(i, max(start, low) - low, min(stop, high) - low) for i, (low, high) in enumerate(self._ranges)
                  if max(start, low) < min(stop, high)] or [(0, 0, 0)]  # a shard of no class
        parts = []
        for name in ShardState._fields:
            if _is_second(name) and not any(self.path.glob(f"{name}-*.npy")):
                break
            pieces = [self._read(f"{name}-{i}.npy")[low * sub_centres : high * sub_centres] for i, low, high in shards]
            parts.append(np.concatenate(pieces))
        return ShardState(*parts)

    def _read(self, name: str) -> Any:
        """The arrays of an .npz by name, or the one of an .npy, mapped."""
        try:
            if name.endswith(".npy"):
                return np.load(self.path / name, mmap_mode="r", allow_pickle=False)
            with np.load(self.path / name, allow_pickle=False) as arrays:
                return dict(arrays)
        except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error) as error:
            raise UserError(f"{self.path / name}: cannot be read ({error}); "
                            f"{_last_good(self.path.parent, self.path)}") from None


def claim(folder: Path, launch: str) -> None:
    """Note that the states below ``folder``, and those to come, are of the launch of this name."""
    with replacing(folder / _LAUNCH) as path:
        path.write_text(launch)


def find_state(folder: Path, resume: str, launch: str = "") -> SavedState | None:
    """The state to go on from: the newest for ``resume`` 'yes', the newest if any for 'auto'.

    :param launch: the name that ``launch`` gave the run, if it started it. Where nobody asked to resume, a run that it
        starts again goes on from a state of its own, never from one of an earlier run.
    """
    if not resume:
        marker = folder / _LAUNCH
        if not launch or not marker.is_file() or marker.read_text() != launch:
            return None
        resume = "auto"
    found = saved_states(folder)
    if found:
        return SavedState(found[-1])
    if resume == "auto":
        return None
    kept = sorted(path.name for path in folder.parent.glob(f"{folder.name}.*") if path.is_dir())
    aside = f", but {', '.join(kept)} beside it, of earlier runs: rename one to {folder.name}" if kept else ""
    raise UserError(f"--resume: no training state below {folder}{aside}; --resume auto starts anew where there is none")
