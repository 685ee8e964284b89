# SPDX-License-Identifier: Apache-2.0
"""arcface_torch's training checkpoints, ``checkpoint_gpu_<rank>.pt`` of each rank, as a state to go on from.

Each file is a dictionary: ``epoch`` and ``global_step``, both done; ``state_dict_backbone``; ``state_dict_softmax_fc``
with the rank's rows of W, ``weight``; ``state_optimizer`` of both, whose parameters are numbered, W last;
``state_lr_scheduler``, of which nothing is needed. Rank r of P has the r-th of P ranges of classes, larger ones first.

PyTorch's momentum ``b = mu b + g`` moves a parameter by ``-lr b``; ours is that movement, by the rate of the next step,
which ``state_optimizer`` holds.
"""
from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recognition.engines.interface import Arrays, BackboneState
from recognition.errors import UserError
from recognition.head.shard import Shard, ShardState, pieces, split_classes
from recognition.io.torch_file import read_object
from recognition.networks.torch_weights.of_torch import from_torch, moments_from_torch, parameters_of
from recognition.networks.torch_weights.vit_weights import OUR_TOKEN, TOKEN
from recognition.training.states.state import Progress

NAME = "checkpoint_gpu_{}.pt"
ADAM = ("exp_avg", "exp_avg_sq")
_FORM = {"epoch": int, "global_step": int, "state_dict_backbone": dict, "state_dict_softmax_fc": dict,
         "state_optimizer": dict}


def find_ranks(folder: Path) -> int:
    """The number of ranks whose checkpoints lie in a folder; 0 if there are none.

    :raises UserError: if one is missing.
    """
    there = sorted(int(path.stem.rpartition("_")[2]) for path in folder.glob(NAME.format("*"))
                   if path.stem.rpartition("_")[2].isdecimal())
    if there != list(range(len(there))):
        missing = next(rank for rank in range(len(there)) if rank not in there)
        raise UserError(f"{folder}: found no {NAME.format(missing)}, expected those of all ranks from 0 to {there[-1]}")
    return len(there)


@dataclass(frozen=True)
class RankFile:
    """The contents of one rank's checkpoint, checked."""

    path: Path
    epoch: int
    step: int
    backbone: dict[str, np.ndarray]
    centres: np.ndarray  # (rows, D)
    moments: dict[int, dict[str, Any]]  # of the optimiser, by the number of the parameter
    rates: tuple[float, float]  # of the next step: of the backbone and of W

    @property
    def with_adam(self) -> bool:
        return any(ADAM[0] in moments for moments in self.moments.values())


def read_rank(path: Path) -> RankFile:
    """Read a checkpoint.

    :raises UserError: if it is none, or damaged.
    """
    content = read_object(path)
    for key, kind in _FORM.items():
        if not isinstance(content, dict) or not isinstance(content.get(key), kind):
            raise UserError(f"{path}: found no {key}, expected a checkpoint of arcface_torch with {', '.join(_FORM)}")
    centres, groups = content["state_dict_softmax_fc"].get("weight"), content["state_optimizer"].get("param_groups")
    try:
        moments = {int(number): dict(values) for number, values in content["state_optimizer"]["state"].items()}
        rates = (float(groups[0]["lr"]), float(groups[1]["lr"]))
    except (TypeError, ValueError, KeyError, IndexError):
        raise UserError(f"{path}: state_optimizer: found no rates and moments of two groups of parameters, expected "
                        "those of the backbone and of W") from None
    arrays = [*content["state_dict_backbone"].values(), centres]
    if not all(isinstance(array, np.ndarray) for array in arrays) or centres.ndim != 2:
        raise UserError(f"{path}: found no tensors in state_dict_backbone and state_dict_softmax_fc")
    return RankFile(path, content["epoch"], content["global_step"], dict(content["state_dict_backbone"]), centres,
                    moments, rates)


class ArcfaceTorchState:
    """The checkpoints of all ranks in a folder, with the interface of
    :class:`recognition.training.states.state.SavedState`. A rank's file is read when its rows are needed."""

    def __init__(self, folder: Path, ranks: int) -> None:
        self.path, self._ranks = folder / NAME.format("*"), ranks
        self._rank = functools.lru_cache(maxsize=1)(lambda rank: read_rank(folder / NAME.format(rank)))
        first = self._rank(0)
        self.progress = Progress(step=first.step, epoch=first.epoch)
        self._num_classes = 0

    @property
    def shards(self) -> int:
        """The number of ranks, each of which has a range of classes."""
        return self._ranks

    def absent(self, ranges: Sequence[tuple[int, int]]) -> str:
        """'': all ranks' files are there."""
        return ""

    def require_identity(self, identity: Mapping[str, Any]) -> None:
        """Compare what the checkpoints say with a run.

        :raises UserError: if they are of another run.
        """
        first = self._rank(0)
        self._num_classes = identity["num_classes"]
        found = {"emb_size": first.centres.shape[1], "optimizer": "adamw" if first.with_adam else "sgd", "loss_K": 1}
        for key, value in found.items():
            if identity[key] != value:
                raise UserError(f"--resume: {first.path} was saved with {key} {value!r}, this run has "
                                f"{identity[key]!r}")

    def backbone(self) -> BackboneState:
        """The backbone's arrays, with the movements of the next step for a momentum."""
        first = self._rank(0)
        _, _, parameters, auxiliary = from_torch(first.backbone, str(first.path))
        names = parameters_of(first.backbone)
        if TOKEN in names and first.moments and names.index(TOKEN) not in first.moments:
            del parameters[OUR_TOKEN]  # of a ViT without masks, which never reads it
        kinds = {kind: {name: first.moments[number][kind] for number, name in enumerate(names)
                        if kind in first.moments.get(number, {})} for kind in ("momentum_buffer", *ADAM)}

        def moments(kind: str, power: int) -> Arrays:
            found = moments_from_torch(kinds[kind], first.backbone, power)
            return {name: found[name] for name in parameters}

        if not first.with_adam:
            momentum = {n: np.float32(-first.rates[0]) * m for n, m in moments("momentum_buffer", 1).items()}
            return BackboneState(parameters, momentum, [auxiliary])
        firsts, seconds = (moments(kind, power) for kind, power in zip(ADAM, (-1, -2)))
        return BackboneState(parameters, firsts, [auxiliary], second_moment=seconds,
                             updates={name: np.array(first.step) for name in parameters})

    def data(self) -> dict[str, np.ndarray]:
        """The loader's arrays: none, as a checkpoint stands at the beginning of an epoch."""
        return {}

    def fill(self, shard: Shard, sub_centres: int) -> None:
        """Load the rows of a shard from the files of the ranks that have them.

        :raises UserError: if a rank has other rows than its range of classes.
        """
        for rank, (low, high) in enumerate(split_classes(self._num_classes, self._ranks)):
            first, last = max(low, shard.start), min(high, shard.stop)
            if first >= last:
                continue
            found = self._rank(rank)
            if len(found.centres) != high - low:
                raise UserError(f"{found.path}: found {len(found.centres)} class centres, expected {high - low}, the "
                                f"part of rank {rank} of {self._ranks} of {self._num_classes} classes")
            for start, stop in pieces(first, last, sub_centres):
                shard.load(_rows(found, slice(start - low, stop - low)), start)


def _rows(rank: RankFile, rows: slice) -> ShardState:
    """Some rows of W with their moments; the optimiser numbers W behind the backbone."""
    centres = np.ascontiguousarray(rank.centres[rows], np.float32)
    moments = rank.moments.get(len(parameters_of(rank.backbone)), {})
    of_kind = {kind: np.ascontiguousarray(moments[kind][rows], np.float32)
               for kind in ("momentum_buffer", *ADAM) if kind in moments}
    zeros, none = np.zeros_like(centres), np.zeros(len(centres), np.float32)
    if not rank.with_adam:
        return ShardState(centres, np.float32(-rank.rates[1]) * of_kind.get("momentum_buffer", zeros), none, none)
    return ShardState(centres, of_kind.get(ADAM[0], zeros), none, none, of_kind.get(ADAM[1], zeros), none)
