# SPDX-License-Identifier: Apache-2.0
"""Norms of class centres, and the optimisers' steps over a chunk of them, in place: the formulas of ``engines/cpu``."""
from __future__ import annotations

from recognition.engines.torch.imports import torch
from recognition.head.shard import SGD
from recognition.optim.adamw import AdamWStep


def step(optimiser: SGD | AdamWStep, w: torch.Tensor, gradient: torch.Tensor, *moments: torch.Tensor) -> None:
    """Update an array and its moments, two with AdamW, all float32 of one shape; ``gradient`` is overwritten."""
    if isinstance(optimiser, AdamWStep):
        _adamw(optimiser, w, gradient, *moments)
    else:
        momentum, = moments
        gradient.add_(w, alpha=optimiser.wd)
        momentum.mul_(optimiser.mu).add_(gradient, alpha=-optimiser.lr)
        w.add_(momentum)


def _adamw(adamw: AdamWStep, w: torch.Tensor, gradient: torch.Tensor, first: torch.Tensor,
           second: torch.Tensor) -> None:
    first.mul_(adamw.beta1).add_(gradient, alpha=1 - adamw.beta1)
    second.mul_(adamw.beta2).addcmul_(gradient, gradient, value=1 - adamw.beta2)
    move = torch.sqrt(second, out=gradient).add_(adamw.eps)
    torch.div(first, move, out=move).mul_(adamw.lr * adamw.factor).add_(w, alpha=adamw.lr * adamw.wd)
    w.sub_(move)


def lengths(rows: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The norms of rows (n, D): (n,)."""
    return torch.linalg.vector_norm(rows, dim=1, dtype=dtype)
