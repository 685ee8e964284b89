# SPDX-License-Identifier: Apache-2.0
"""A training state as arcface_torch's checkpoints: ``checkpoint_gpu_<rank>.pt`` of each rank, and ``model.pt``.

What they hold: :mod:`recognition.training.states.arcface_torch`, which reads them. ``train_v2.py`` goes on from them
with ``config.resume``, in as many processes, at the beginning of an epoch.
"""
from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from recognition.engines.interface import Arrays, BackboneState
from recognition.errors import UserError
from recognition.head.shard import ShardState, split_classes
from recognition.io.torch_file import write_object, write_tensors
from recognition.networks.graph import Graph
from recognition.networks.torch_weights.of_torch import moments_to_torch, parameters_of, to_torch
from recognition.optim.adamw import AdamW
from recognition.training.states.arcface_torch import ADAM, NAME
from recognition.training.states.state import Progress, SavedState

MODEL = "model.pt"
MOST_PROCESSES = 1 << 16


def batches_an_epoch(progress: Progress, each: int) -> int:
    """The batches of an epoch in the run of a state, by the images that it has consumed.

    :param each: images of a process in a batch.
    :raises UserError: if its batch was not the same all the time.
    """
    images = progress.identity["images"]
    for processes in range(1, min(images // each, MOST_PROCESSES) + 1):
        batch = each * processes
        if progress.epoch * (images // batch) * batch + progress.offset == progress.step * batch:
            return int(images // batch)
    raise UserError(f"state of step {progress.step}: found {progress.epoch} epochs of {images} images and "
                    f"{progress.offset} images, which no one size of batch gives, expected a run of one size")


def write_checkpoints(state: SavedState, graph: Graph, group: dict[str, Any], folder: Path, ranks: int) -> list[Path]:
    """Write the files of all ranks, and model.pt; returns their paths, model.pt last.

    :param group: the numbers of the optimiser, as :func:`sgd_group` and :func:`adamw_group` have them; ``lr`` is that
        of the next step.
    :raises UserError: if the network is none of arcface_torch, or W has sub-centres or a bias.
    """
    progress, backbone, lr = state.progress, state.backbone(), group["lr"]
    if progress.identity["loss_K"] > 1 or progress.identity["bias"]:
        raise UserError(f"{state.path}: found class centres with sub-centres or a bias, which arcface_torch has not")
    auxiliary = {name: np.asarray(np.mean([one[name] for one in backbone.auxiliary], axis=0, dtype=np.float32))
                 for name in backbone.auxiliary[0]}
    _, tensors = to_torch(graph, backbone.parameters, auxiliary, str(state.path))
    moments = _moments(backbone, lr, progress.step, parameters_of(tensors))
    paths = []
    for rank, (start, stop) in enumerate(split_classes(progress.identity["num_classes"], ranks)):
        rows = state.rows(start, stop, 1)
        last = len(parameters_of(tensors))
        content = {
            "epoch": progress.epoch, "global_step": progress.step, "state_dict_backbone": OrderedDict(tensors),
            "state_dict_softmax_fc": OrderedDict(weight=rows.centres),
            "state_optimizer": {"state": {**moments, **_of_rows(rows, lr, progress.step, last)},
                                "param_groups": [{**group, "params": list(range(last))}, {**group, "params": [last]}]},
            "state_lr_scheduler": {"last_epoch": progress.step, "_step_count": progress.step + 1,
                                   "_last_lr": [lr, lr]},
        }
        paths.append(folder / NAME.format(rank))
        write_object(paths[-1], content)
    write_tensors(folder / MODEL, tensors)
    return [*paths, folder / MODEL]


def sgd_group(lr: float, base: float, wd: float, mom: float) -> dict[str, Any]:
    """The numbers of ``torch.optim.SGD``; what is left out has its default there. ``base`` is the rate that the
    schedule falls from."""
    return {"lr": lr, "initial_lr": base, "weight_decay": wd, "momentum": mom, "dampening": 0, "nesterov": False}


def adamw_group(lr: float, base: float, wd: float, adamw: AdamW) -> dict[str, Any]:
    """The numbers of ``torch.optim.AdamW``."""
    return {"lr": lr, "initial_lr": base, "weight_decay": wd, "betas": (adamw.beta1, adamw.beta2), "eps": adamw.eps,
            "amsgrad": False}


def _moments(backbone: BackboneState, lr: float, step: int, names: list[str]) -> dict[int, dict[str, Any]]:
    """The optimiser's state of the backbone, by the numbers of its parameters."""
    if backbone.second_moment is None:
        kinds = {"momentum_buffer": _buffers(moments_to_torch(backbone.momentum, 1), lr)}
    else:
        pairs = zip(ADAM, (backbone.momentum, backbone.second_moment), (-1, -2))
        kinds = {kind: moments_to_torch(moments, power) for kind, moments, power in pairs}
    return {number: {**_step(step, ADAM[0] in kinds), **{kind: arrays[name] for kind, arrays in kinds.items()}}
            for number, name in enumerate(names) if all(name in arrays for arrays in kinds.values())}


def _of_rows(rows: ShardState, lr: float, step: int, number: int) -> dict[int, dict[str, Any]]:
    if not len(rows.second_moment):
        return {number: _buffers({"momentum_buffer": rows.momentum}, lr)} if lr > 0 else {}
    return {number: {**_step(step, True), ADAM[0]: rows.momentum, ADAM[1]: rows.second_moment}}


def _buffers(movements: Mapping[str, np.ndarray], lr: float) -> Arrays:
    """PyTorch's momentum, by whose product with the rate a parameter moves; none at the end, where the rate is 0."""
    return {name: movement / np.float32(-lr) for name, movement in movements.items()} if lr > 0 else {}


def _step(step: int, with_adam: bool) -> dict[str, np.ndarray]:
    return {"step": np.array(step, np.float32)} if with_adam else {}
