# SPDX-License-Identifier: Apache-2.0
"""Whether the head's Triton kernels can be used on a device: by what the head needs, by the card, and by a trial."""
from __future__ import annotations

import functools

import numpy as np

from recognition.engines.shards import why_no_low_products
from recognition.engines.torch.imports import torch
from recognition.engines.torch.sampling import drawn
from recognition.engines.torch.shard import TorchShard
from recognition.engines.torch.triton.card import trial, why_no_kernels
from recognition.head.margin import Margin
from recognition.head.sharded import ShardedHead
from recognition.processes.communicator import SingleProcess

TRIAL_CLASSES, TRIAL_BATCH, ALLOWED = 300, 48, 0.02  # of the norm; products in 16 bits err by 0.001 to 0.01


@functools.cache
def why_not(device: torch.device, dim: int, on_host: bool, normalised: bool) -> str:
    """Why the kernels cannot compute such a head on ``device``; empty if they can."""
    return (why_no_low_products(dim, on_host, normalised) or why_no_kernels(device)
            or trial(functools.partial(small_steps, device, dim), ALLOWED))


def small_steps(device: torch.device, dim: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The features' gradient and the momentum of a step of a small head, and a draw: the kernels', and PyTorch's."""
    from recognition.engines.torch.triton.draw import drawn as drawn_by_kernel
    from recognition.engines.torch.triton.shard import TritonShard

    random = np.random.default_rng(0)
    x = random.standard_normal((TRIAL_BATCH, dim), dtype=np.float32)
    labels, found = random.integers(0, TRIAL_CLASSES, TRIAL_BATCH), []
    for kind in (TritonShard, TorchShard):
        shard = kind(device, 0, TRIAL_CLASSES, dim, normalised=True, scale=64.0)
        head = ShardedHead([shard], Margin(), SingleProcess())
        gradient = head.forward_backward(x, labels).d_features
        head.step(0.1)
        found.append((gradient, shard.state().momentum))
    draws = [draw(1, 1 << 31, 0, TRIAL_CLASSES, device).cpu().numpy().astype(np.float32)
             for draw in (drawn_by_kernel, drawn)]
    return [*zip(*found), (draws[0], draws[1])]
