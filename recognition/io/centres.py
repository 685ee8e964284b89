# SPDX-License-Identifier: Apache-2.0
"""Class centres W in files, under the names of the MXNet recipes, in any number of shards.

A checkpoint holds ``fc7_weight`` (and ``fc7_bias``) or ``fc7_<i>_weight``; its folder holds ``<i>_centers.param`` and
``<i>_centers_mom.param`` (Partial FC, one array each). Shard i holds the i-th range of classes, rows ``class * K + k``.
The recipes make all shards equally large, so the last ``(shards * ceil(C / shards) - C) * K`` rows may belong to no
class.

The files in a folder belong to one checkpoint there, the last one saved. ``centers.json`` holds its name and its
sha256; a folder that the recipes wrote has no such file.
"""
from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from recognition.errors import UserError
from recognition.io.checksums import Sum, file_problem, forget_sum, sum_of
from recognition.io.files import regular, write_whole, writing
from recognition.io.names import MANIFEST
from recognition.io.params import ParamsFile, Pieces, read_arrays, write_arrays
from recognition.io.stored_array import Rows, open_npy

NOTE = "centers.json"


@dataclass(frozen=True)
class SavedCentres:
    """W, its momentum and its bias as shards in files. A list is empty where there are none."""

    where: str  # for messages
    centres: list[Rows]  # (rows, D) each
    momentum: list[Rows] = field(default_factory=list)  # (rows, D) each, of SGD
    bias: list[Rows] = field(default_factory=list)  # (rows,) each
    missing: str = ""  # the first missing shard, if a later one exists
    form: str = ""  # the pattern of the names of arrays or files
    wrong_checkpoint: str = ""  # why they do not belong to the wanted checkpoint; empty if they do

    def __post_init__(self) -> None:
        widths = sorted({array.shape[1:] for array in self.centres})
        if len(widths) != 1 or len(widths[0]) != 1:
            shapes = " and ".join(str(array.shape) for array in self.centres)
            raise UserError(f"{self.where}: found shards of {shapes}, expected rows of one length")
        if self.momentum and [m.shape for m in self.momentum] != [c.shape for c in self.centres]:
            raise UserError(f"{self.where}: the momentum has other shapes than the centres")
        if self.bias and sum(map(len, self.bias)) != self.rows:
            raise UserError(f"{self.where}: found {sum(map(len, self.bias))} biases for {self.rows} rows")

    @property
    def rows(self) -> int:
        """Rows of all shards."""
        return sum(map(len, self.centres))

    @property
    def dim(self) -> int:
        """D, the length of a centre."""
        return self.centres[0].shape[1]

    def mismatch(self, num_classes: int, sub_centres: int) -> str:
        """The reason, in words, why this is not W of ``num_classes`` times ``sub_centres`` rows; empty if it is."""
        if self.wrong_checkpoint:
            return self.wrong_checkpoint
        if self.missing:
            return f"found no {self.missing}, expected all shards from 0 on"
        wanted = num_classes * sub_centres
        padded = len(self.centres) * -(-num_classes // len(self.centres)) * sub_centres
        equal = len({len(array) for array in self.centres}) == 1
        if self.rows == wanted or (equal and self.rows == padded):
            return ""
        return (f"found {self.rows} rows in {_count(len(self.centres), 'shard')}, expected {wanted} for "
                f"{_count(num_classes, 'class')}" + (f" of {sub_centres} centres" if sub_centres > 1 else ""))


def rows_between(shards: Pieces, start: int, stop: int) -> list[Rows]:
    """The rows ``start .. stop - 1`` of all shards together, as slices that are not read yet."""
    bounds = np.cumsum([0, *map(len, shards)]).tolist()
    return [shard[max(start - low, 0) : stop - low] for shard, low, high in zip(shards, bounds, bounds[1:])
            if start < high and low < stop]


def rows_at(shards: Pieces, rows: np.ndarray) -> np.ndarray:
    """Read the rows numbered ``rows``, int64 (n,), of all shards together: float32 (n, D)."""
    ends = np.cumsum([len(shard) for shard in shards])
    found, owners = np.empty((len(rows), *shards[0].shape[1:]), np.float32), np.searchsorted(ends, rows, side="right")
    for i in np.unique(owners).tolist():
        mine = owners == i
        found[mine] = shards[i][rows[mine] - (ends[i] - len(shards[i]))]
    return found


def find_centres(path: Path) -> SavedCentres | None:
    """W of a checkpoint ``<prefix>-<number>.params``, from the file, else from its folder; None if there is none.

    :raises UserError: if a file cannot be read or the shards do not fit together.
    """
    return centres_in_file(path, read_arrays(path)) or centres_in_folder(path.parent, path)


def is_of_centres(name: str) -> bool:
    """True for the name of an array of W in a checkpoint."""
    return re.fullmatch(r"(?:arg:)?fc7_(?:(?:\d+_)?weight|bias)", name) is not None


def centres_in_file(path: Path, file: ParamsFile) -> SavedCentres | None:
    """W of a checkpoint's arrays named ``fc7_...``; None if it has none."""
    named = {name[4:]: array for name, array in zip(file.names, file.arrays) if name.startswith("arg:fc7_")}
    matches = (re.fullmatch(r"fc7_(0|[1-9][0-9]{0,8})_weight", name) for name in named)
    numbers = sorted(int(match[1]) for match in matches if match)
    names = ["fc7_weight"] if "fc7_weight" in named else [f"fc7_{number}_weight" for number in numbers]
    if not names:
        return None
    where = f"{path}: {names[0]}" + (f" .. {names[-1]}" if len(names) > 1 else "")
    return SavedCentres(where, [named[name] for name in names], bias=[named["fc7_bias"]] if "fc7_bias" in named else [],
                        missing="" if "fc7_weight" in named else _missing(numbers, "fc7_{}_weight"),
                        form="fc7_weight" if "fc7_weight" in named else "fc7_<i>_weight")


def centres_in_folder(folder: Path, checkpoint: Path | None = None) -> SavedCentres | None:
    """W of a folder: ``<i>_centers.param``, as Partial FC writes them, or a training state's ``centres-<i>.npy``.

    :param checkpoint: the file that W must belong to; None: any.
    :raises UserError: if a file cannot be read or does not match its checksum.
    """
    if (folder / MANIFEST).exists() and (folder / shard_file("centres", 0)).exists():
        _check_sums(folder)
        centres, momentum, bias = (_npy_shards(folder, name) for name in ("centres", "momentum", "bias"))
        form = "centres-<i>.npy"
        if _npy_shards(folder, "second_moment"):
            return SavedCentres(f"{folder}: centres-*.npy (moments of AdamW left out)", centres, bias=bias, form=form)
        return SavedCentres(f"{folder}: centres-*.npy", centres, momentum, bias, form=form)
    numbers = _numbers(folder, "*_centers.param")
    if not numbers:
        return None
    with_momentum = _numbers(folder, "*_centers_mom.param") == numbers
    return SavedCentres(f"{folder}: *_centers.param", [_only_array(folder / f"{i}_centers.param") for i in numbers],
                        [_only_array(folder / f"{i}_centers_mom.param") for i in numbers if with_momentum],
                        missing=_missing(numbers, "{}_centers.param"), form="<i>_centers.param",
                        wrong_checkpoint=_wrong_checkpoint(folder / NOTE, checkpoint) if checkpoint else "")


def named_centres(centres: Sequence[np.ndarray], biases: Sequence[np.ndarray], joined: bool) -> dict[str, np.ndarray]:
    """The arrays of W in a checkpoint, by name: one for all shards if ``joined``, else one each.

    :param centres: (rows, D) of each shard; ``biases``: (rows,) of each, none where the head has none.
    """
    if not joined:
        return {f"fc7_{i}_weight": array for i, array in enumerate(centres)}
    return {"fc7_weight": np.concatenate(centres), **({"fc7_bias": np.concatenate(biases)} if biases else {})}


def save_centres(folder: Path, rank: int, centres: np.ndarray, momentum: np.ndarray | None) -> None:
    """Write a process's rows of W and their momentum like Partial FC: ``<rank>_centers.param``, ``_centers_mom.param``.

    :param momentum: the momentum of SGD; None with AdamW, whose moments have no such file.
    """
    beside = folder / f"{rank}_centers_mom.param"
    if momentum is None:
        with writing(beside):
            forget_sum(beside)
            beside.unlink(missing_ok=True)  # an earlier run with SGD may have left it
    write_arrays(folder / f"{rank}_centers.param", [[centres]])
    if momentum is not None:
        write_arrays(beside, [[momentum]])


def shard_file(name: str, number: int) -> str:
    """The name of a shard's file in a training state: ``name`` is ``centres``, ``momentum``, ``bias``, ..."""
    return f"{name}-{number}.npy"


def begin_centres(folder: Path, shards: int) -> None:
    """Prepare a folder for new ``<i>_centers.param``: note that they belong to no checkpoint yet, and remove the files
    of shards numbered ``shards`` and up, which an earlier run left."""
    _note(folder, None)
    for name in ("centers", "centers_mom"):
        for number in _numbers(folder, f"*_{name}.param"):
            if number >= shards:
                forget_sum(folder / f"{number}_{name}.param")
                (folder / f"{number}_{name}.param").unlink()


def pair_centres(folder: Path, checkpoint: Path) -> None:
    """Note that the ``<i>_centers.param`` of ``folder`` belong to this checkpoint."""
    _note(folder, checkpoint)


def disown_centres(folder: Path) -> None:
    """Note that ``<i>_centers.param`` which the recipes or somebody left in ``folder`` do not belong to the checkpoints
    that this run saves there."""
    if _numbers(folder, "*_centers.param") and not (folder / NOTE).exists():
        _note(folder, None)


def _note(folder: Path, checkpoint: Path | None) -> None:
    note: dict[str, str | None] = {"checkpoint": None}
    if checkpoint:
        note = {"checkpoint": checkpoint.name, "sha256": sum_of(checkpoint).sha256}
    write_whole(folder / NOTE, json.dumps(note) + "\n")


def _wrong_checkpoint(note: Path, checkpoint: Path) -> str:
    """The reason why the centres beside ``note`` do not belong to ``checkpoint``; empty if they do or may."""
    if not note.exists():
        return ""
    try:
        found = json.loads(note.read_text())
        name, digest = found["checkpoint"], found.get("sha256")
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{note}: not a note of class centres: {error!r}; expected one that a run wrote") from None
    if name is not None and digest == sum_of(checkpoint).sha256:
        return ""
    whose = f"go with {name} as it was when they were saved" if name else "were saved before the checkpoints there"
    return f"they {whose}, not with {checkpoint.name}, says {note.name}"


def _numbers(folder: Path, pattern: str) -> list[int]:
    return sorted(int(path.name.split("_")[0]) for path in folder.glob(pattern) if path.name.split("_")[0].isdecimal())


def _npy_shards(folder: Path, name: str) -> list[Rows]:
    paths = [folder / shard_file(name, i) for i in range(len(list(folder.glob(f"{name}-*.npy"))))]
    try:
        return [open_npy(path) for path in paths]
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: {name}-*.npy cannot be read: {error}") from None


def _check_sums(state: Path) -> None:
    """Compare the files of W in a training state with the sums in its manifest.

    :raises UserError: if one differs or the manifest cannot be read.
    """
    try:
        with open(state / MANIFEST, encoding="utf-8", opener=regular) as file:
            files = json.load(file).get("files", {})
        sums = {name: Sum(*values) for name, values in files.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{state / MANIFEST}: not of a training state: {error}") from None
    known = {found.sha256: name for name, found in sums.items()}
    for name, wanted in sums.items():
        of_centres = name.startswith(("centres-", "momentum-", "bias-"))
        if of_centres and (problem := file_problem(state / name, wanted, known)):
            raise UserError(problem)


def _only_array(path: Path) -> Rows:
    arrays = read_arrays(path).arrays
    if len(arrays) != 1:
        raise UserError(f"{path}: found {_count(len(arrays), 'array')}, expected one, the centres of a shard")
    return arrays[0]


def _missing(numbers: list[int], form: str) -> str:
    gaps = sorted(set(range(len(numbers))) - set(numbers))
    return form.format(gaps[0]) if gaps else ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "es" if noun.endswith("s") else "s")
