# SPDX-License-Identifier: Apache-2.0
"""Training states: all that a run needs to go on as if it had not stopped, with any number of shards.

A state is a folder ``step-%09d`` with ``manifest.json``, ``backbone.npz`` and, for shard i of W, ``centres-i.npy``,
``momentum-i.npy``, ``bias-i.npy`` and ``bias_momentum-i.npy``, with AdamW ``second_moment-i.npy`` and
``bias_second_moment-i.npy``; ``data.npz`` if the position in the data needs arrays. The manifest holds the size and the
sha256 of each file, and a digest of itself. Format 1, of earlier versions, had no digests.

Format 3 is a part of a state, as each host keeps one where hosts share no folder: the shards of the host's own
processes, and all that is no shard. Its manifest also says, in ``parts``, which host has which shards, and in ``part``
which of these it is.
"""
from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from recognition.engines.interface import BackboneState
from recognition.errors import UserError
from recognition.head.shard import Shard, ShardState, pieces
from recognition.io.centres import shard_file
from recognition.io.checksums import Sum, file_problem, require_readable, size_of
from recognition.io.names import MANIFEST
from recognition.io.stored_array import open_npy
from recognition.training.states.folder import is_state, saved_states, step_of

FORMAT = 2
PART_FORMAT = 3
FORMATS = (1, 2, 3)  # readable ones
_IMPLIED = {"optimizer": "sgd"}  # values of keys that identities of earlier versions lack
_UNKNOWN_BEFORE = frozenset(("records", "teacher"))  # keys that a state may lack and that are not compared then


@dataclass
class Progress:
    """The numbers of a run that belong to a state, beside its arrays."""

    step: int = 0  # batches done
    epoch: int = 0
    offset: int = 0  # images of this epoch consumed
    verifications: int = 0
    best: tuple[float, float] = (-1.0, -1.0)  # accuracy of the last target, sum over all targets
    best_step: int = 0  # step of the best verification so far
    best_number: int = 0  # and its number among all verifications
    # Sums of loss and accuracy over the batches since the last speed line, and their number.
    since_line: list[float] = field(default_factory=lambda: [0.0, 0.0, 0])
    margin: list[float] = field(default_factory=list)  # running statistics of margins that differ between images
    identity: dict[str, Any] = field(default_factory=dict)  # must be the same in a resumed run
    config: dict[str, Any] = field(default_factory=dict)  # all options, for readers


class DamagedState(UserError):
    """A state is not as it was saved."""


def seal(manifest: Mapping[str, Any]) -> str:
    """The digest of a manifest, in JSON's types and without its own digest."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def is_second(name: str) -> bool:
    """True for the name of a shard's second moment, which SGD does not have."""
    return name.endswith("second_moment")


class SavedState:
    """A state on disk, opened for reading. :meth:`problem` compares its files with their checksums."""

    def __init__(self, path: Path) -> None:
        """:raises DamagedState: if the folder holds no whole manifest.
        :raises UnreadableFile: if the manifest cannot be read now.
        :raises UserError: if this version does not read the state's format."""
        self.path = path
        try:
            manifest = _manifest(path)
            if "sha256" in manifest and manifest.pop("sha256") != seal(manifest):
                raise ValueError("it is damaged: its own sha256 is another")
            found = manifest.pop("format")
            if found not in FORMATS:
                raise UserError(f"{path}: training state of format {found}, expected {FORMATS[0]} to {FORMATS[-1]}: "
                                "the version of the trainer that saved it reads it")
            files = manifest.pop("files") if found > 1 else {}
            self.sums = {name: Sum(*values) for name, values in files.items()}
            self.ranges: list[list[int]] = manifest.pop("shards")
            parts, own = (manifest.pop("parts"), manifest.pop("part")) if found == PART_FORMAT else ([], 0)
            # The hosts of the shards that are not in this folder, by their numbers.
            self.elsewhere: dict[int, str] = {number: str(part["host"]) for i, part in enumerate(parts) if i != own
                                              for number in part["shards"]}
            if any(type(number) is not int or not 0 <= number < len(self.ranges) for number in self.elsewhere):
                raise ValueError("it names shards that it does not have")
            self.progress = Progress(**{**manifest, "best": tuple(manifest["best"])})
        except (OSError, *_NOT_OURS) as error:
            if isinstance(error, OSError):
                require_readable(path / MANIFEST, error)
            reason = error.strerror if isinstance(error, OSError) else error
            raise DamagedState(f"{path / MANIFEST}: not of a training state: {reason}") from None
        if is_state(path.name) and self.progress.step != step_of(path):
            raise DamagedState(f"{path / MANIFEST}: of another state: found step {self.progress.step}")

    def problem(self, part: int = 0, parts: int = 1) -> str:
        """The first problem with every ``parts``-th of its files, from ``part`` on; empty if they are as saved.

        In a state without checksums NumPy finds wrong lengths, and the wrong checksums of archives.

        :raises UnreadableFile: if a file cannot be read now.
        """
        others = {shard_file(name, number) for number in self.elsewhere for name in ShardState._fields}
        names = sorted({*self.sums} - others or [path.name for path in self.path.glob("*.np[yz]")])[part::parts]
        if not self.sums:
            return next(filter(None, map(self._unreadable, names)), "")
        known = {found.sha256: f"{self.path.name}/{name}" for name, found in self.sums.items()}
        for other in saved_states(self.path.parent):
            if other != self.path:
                known.update({digest: name for digest, name in _digests(other).items() if digest not in known})
        return next(filter(None, (file_problem(self.path / name, self.sums[name], known) for name in names)), "")

    def absent(self, ranges: Sequence[tuple[int, int]]) -> str:
        """A line about the shards with rows of these classes, ``(start, stop)``, that other hosts keep; '' if none."""
        away = {i: host for i, host in self.elsewhere.items()
                if any(max(self.ranges[i][0], start) < min(self.ranges[i][1], stop) for start, stop in ranges)}
        if not away:
            return ""
        where = {host: ", ".join(str(i) for i in away if away[i] == host) for host in sorted(set(away.values()))}
        kept = "; ".join(f"{host} has shards {numbers}" for host, numbers in where.items())
        return (f"{self.path}: not all of W that is needed is here: {kept}; python -m common.gather_states puts the "
                "parts of a state together, for a run on other hosts than those that saved it")

    @property
    def shards(self) -> int:
        """The number of shards that W was cut into."""
        return len(self.ranges)

    def fingerprint(self) -> int:
        """A number of 48 bits that all parts of a state have in common, and other states do not."""
        files = {name: found for name, found in self.sums.items() if name.endswith(".npy")}
        return int(seal({"step": self.progress.step, "files": files})[:12], 16)

    def _unreadable(self, name: str) -> str:
        try:
            self._read(name)
        except DamagedState as error:
            return str(error)
        return ""

    def require_identity(self, identity: dict[str, Any]) -> None:
        """Compare the state's identity with that of this run.

        :raises UserError: if the state belongs to a run with other identities, images or shapes.
        """
        for key, value in identity.items():
            found = self.progress.identity.get(key, value if key in _UNKNOWN_BEFORE else _IMPLIED.get(key))
            if found != value:
                raise UserError(f"--resume: {self.path} was saved with {key} {found!r}, this run has {value!r}")

    def backbone(self) -> BackboneState:
        """The backbone's arrays."""
        groups: dict[str, dict[str, np.ndarray]] = {"parameter": {}, "momentum": {}}
        for key, array in self._read("backbone.npz").items():
            group, _, name = key.partition(":")
            groups.setdefault(group, {})[name] = array

        def of_replicas(kind: str) -> list[dict[str, np.ndarray]]:
            numbers = sorted(int(group[len(kind):]) for group in groups if group.startswith(kind))
            return [groups[f"{kind}{number}"] for number in numbers] or [{}]

        return BackboneState(groups["parameter"], groups["momentum"], of_replicas("auxiliary"),
                             groups.get("loss_scale", {}).get(""), groups.get("second_moment"), groups.get("updates"),
                             groups.get("average"), of_replicas("average_auxiliary"))

    def data(self) -> dict[str, np.ndarray]:
        """The loader's arrays by name; none if it had none."""
        return self._read("data.npz") if (self.path / "data.npz").exists() else {}

    def fill(self, shard: Shard, sub_centres: int) -> None:
        """Load a shard from a state with any cut of W into shards, without a second copy of W in memory."""
        for low, high in pieces(shard.start, shard.stop, sub_centres):
            shard.load(self.rows(low, high, sub_centres), low)

    def rows(self, start: int, stop: int, sub_centres: int) -> ShardState:
        """Read the rows of classes ``start .. stop - 1`` from the shards that hold them."""
        if absent := self.absent([(start, stop)]):
            raise UserError(absent)
        shards = [(i, max(start, low) - low, min(stop, high) - low) for i, (low, high) in enumerate(self.ranges)
                  if max(start, low) < min(stop, high)] or [(0, 0, 0)]  # no rows of shard 0, for a shard of no class
        parts = []
        for name in ShardState._fields:
            if is_second(name) and not any(self.path.glob(f"{name}-*.npy")):
                break
            rows = [self._read(shard_file(name, i))[low * sub_centres : high * sub_centres] for i, low, high in shards]
            parts.append(np.asarray(rows[0]) if len(rows) == 1 else np.concatenate(rows))
        return ShardState(*parts)

    def _read(self, name: str) -> Any:
        """The arrays of an .npz by name, or the array of an .npy, whose rows are read when they are used."""
        try:
            size_of(self.path / name)
            if name.endswith(".npy"):
                return open_npy(self.path / name)
            with np.load(self.path / name, allow_pickle=False) as arrays:
                return dict(arrays)
        except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error) as error:
            if isinstance(error, OSError):
                require_readable(self.path / name, error)
            raise DamagedState(f"{self.path / name}: cannot be read ({error}); "
                               f"{last_good(self.path.parent, self.path)}") from None


def last_good(folder: Path, but: Path | None = None) -> str:
    """The end of an error: the newest other state, from which one could resume instead."""
    others = [path for path in saved_states(folder) if path != but]
    return f"the last good state is {others[-1]}" if others else "there is no other state"


def _digests(state: Path) -> dict[str, str]:
    """The names of a state's files by sha256; none if its manifest cannot be read."""
    try:
        files = _manifest(state)["files"]
        return {sha256: f"{state.name}/{name}" for name, (_, sha256) in files.items()}
    except (OSError, *_NOT_OURS):
        return {}


_NOT_OURS = (ValueError, KeyError, TypeError, AttributeError, RecursionError)  # errors from a manifest of another form


def _manifest(state: Path) -> Any:
    size_of(state / MANIFEST)
    return json.loads((state / MANIFEST).read_text(encoding="utf-8"))
