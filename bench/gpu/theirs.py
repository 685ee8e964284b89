# SPDX-License-Identifier: Apache-2.0
"""Steps of arcface_torch, from its own files in a folder that the caller has fetched: iresnet.py (or
backbones/iresnet.py), partial_fc_v2.py and losses.py. Nothing of them is here.

The step is that of its train_v2.py: DistributedDataParallel with gradients in float16, a loss scale, gradients clipped
at a norm of 5, SGD over the network and W; images are on the GPU already, as its DALI loader has them.
"""
from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from recognition.engines.torch.imports import torch

MODULES = ("iresnet", "partial_fc_v2", "losses")
NETWORKS = {"r50": "iresnet50", "r100": "iresnet100"}
PORT = "12584"


def modules_of(folder: Path) -> list[Any]:
    """The three modules of arcface_torch, and a process group of one process, which they need."""
    for path in (folder, folder / "backbones"):
        if str(path) not in sys.path:
            sys.path.insert(0, str(path))
    distributed = torch.distributed
    if not distributed.is_initialized():
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", PORT)
        distributed.init_process_group("nccl", rank=0, world_size=1)
    return [importlib.import_module(name) for name in MODULES]


def head_of(folder: Path, classes: int, ratio: float = 1.0) -> Any:
    """arcface_torch's class centres under an ArcFace margin, on the GPU."""
    _, partial_fc, losses = modules_of(folder)
    with mock.patch.object(torch, "normal", _drawn_there):
        return partial_fc.PartialFC_V2(losses.CombinedMarginLoss(64, 1.0, 0.5, 0.0, 0), 512, classes, ratio,
                                       False).cuda()


def _drawn_there(mean: float, std: float, size: tuple[int, ...]) -> torch.Tensor:
    """Draw on the GPU, in place of torch.normal, which takes the host ten seconds for a million classes."""
    return torch.empty(size, device="cuda").normal_(mean, std)


def head_step(folder: Path, classes: int, ratio: float) -> Callable[[torch.Tensor, np.ndarray, np.ndarray], float]:
    """A step of its head alone, of features on the GPU and labels on the host."""
    head = head_of(folder, classes, ratio)
    optimiser = torch.optim.SGD(head.parameters(), 0.02, 0.9, weight_decay=5e-4)

    def step(x: torch.Tensor, labels: np.ndarray, coming: np.ndarray) -> float:
        features = x.detach().requires_grad_()
        loss = head(features, torch.from_numpy(labels).cuda())
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        return float(loss.detach())

    return step


def whole_step(folder: Path, network: str, count: int, classes: int) -> Callable[[], None]:
    """A step of network and head, of random images and labels."""
    iresnet = modules_of(folder)[0]
    hooks = importlib.import_module("torch.distributed.algorithms.ddp_comm_hooks.default_hooks")
    torch.backends.cudnn.benchmark = True
    made = getattr(iresnet, NETWORKS[network])(dropout=0.0, fp16=True, num_features=512).cuda()
    backbone = torch.nn.parallel.DistributedDataParallel(made, broadcast_buffers=False, device_ids=[0],
                                                         bucket_cap_mb=16, find_unused_parameters=True)
    backbone.register_comm_hook(None, hooks.fp16_compress_hook)
    backbone.train()
    backbone._set_static_graph()
    head = head_of(folder, classes)
    optimiser = torch.optim.SGD([{"params": backbone.parameters()}, {"params": head.parameters()}], 0.02, 0.9,
                                weight_decay=5e-4)
    scaler = torch.amp.GradScaler("cuda", growth_interval=100)
    images = torch.randn(count, 3, 112, 112, device="cuda")

    def step() -> None:
        loss = head(backbone(images), torch.randint(0, classes, (count,), device="cuda"))
        scaler.scale(loss).backward()
        scaler.unscale_(optimiser)
        torch.nn.utils.clip_grad_norm_(backbone.parameters(), 5)
        scaler.step(optimiser)
        scaler.update()
        optimiser.zero_grad()

    return step
