# SPDX-License-Identifier: Apache-2.0
"""One pass through a network: what operators need to know of it beside their inputs, and the statistics it leaves."""
from __future__ import annotations

from typing import Any, NamedTuple

from recognition.engines.torch.imports import torch


class BatchStatistics(NamedTuple):
    """The statistics that a batch norm saw in a pass, to be mixed into its moving statistics ``(C,)``."""

    moving_mean: torch.Tensor
    moving_var: torch.Tensor
    mean: torch.Tensor  # (C,)
    var: torch.Tensor  # (C,), with n - 1
    numbers: int  # n, those of a channel
    momentum: float


class Pass:
    """A forward pass: training or inference, the generator of dropout, and the batch statistics so far."""

    def __init__(self, training: bool, generator: torch.Generator | None) -> None:
        self.training, self.generator = training, generator
        self.statistics: list[BatchStatistics] = []

    def uniform(self, sizes: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        """Random numbers in [0, 1), float32 on the device of ``like``; float64 if that is."""
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        return torch.rand(sizes, generator=self.generator, device=like.device, dtype=dtype)

    def again(self) -> Pass:
        """The same pass once more from here on: the same random numbers; statistics that nobody reads."""
        if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
            return _WithoutDraws(self.training, None)
        return Pass(self.training, self.generator.clone_state() if self.generator is not None else None)

    def move_statistics(self) -> None:
        """Move the moving statistics towards those of the batch, with the biased variance, as MXNet does on CPUs:

            moving = momentum * moving + (1 - momentum) * batch
        """
        if not self.statistics:
            return
        moving: list[Any] = []
        batch: list[Any] = []
        kept: list[float] = []
        added: list[float] = []
        for found in self.statistics:
            moving += [found.moving_mean, found.moving_var]
            batch += [found.mean, found.var]
            kept += [found.momentum] * 2
            share = 1 - found.momentum
            added += [share, share * (found.numbers - 1) / found.numbers]
        with torch.no_grad():
            torch._foreach_mul_(moving, kept)
            torch._foreach_add_(moving, torch._foreach_mul(batch, added))


class _WithoutDraws(Pass):
    """A pass that is recorded in a CUDA graph, where a generator cannot be set back."""

    def uniform(self, sizes: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("random numbers are drawn between layers that are computed again")

    def again(self) -> Pass:
        return self
