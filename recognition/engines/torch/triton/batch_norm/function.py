# SPDX-License-Identifier: Apache-2.0
"""Batch norm in training with PReLU or a sum behind it, as one operator of autograd that keeps its input alone.

PyTorch's own operators read and write a map eight times for the norm, seven for PReLU, and three for the sum. Here it
is three times forward (four with a sum) and five times backward, in which PReLU's input is computed again.
"""
from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

from recognition.engines.torch.imports import torch
from recognition.engines.torch.triton.batch_norm import kernels

MERGED = 8  # channels of a program that merges, 32 bytes of a row
MOST_PARTS = 1024  # which a program merges at once
WIDEST = 64  # channels of a tile
PROCESSORS = 1  # multiprocessors, where there is no card


class Cut(NamedTuple):
    """How matrices are cut for the kernels."""

    numbers: int = 4096  # of a tile
    warps: int = 8
    stages: int = 3
    programs: int = 4  # of each multiprocessor, at most


USUAL = Cut()


class Blocks(NamedTuple):
    """The cut of one matrix."""

    rows: int  # of a tile
    channels: int  # of a tile
    parts: int  # sets of tiles


def blocks_of(rows: int, channels: int, processors: int, cut: Cut) -> Blocks:
    """The cut of a matrix for a card of so many multiprocessors; no part has more than a tile less than others."""
    wide = min(WIDEST, max(8, 1 << (channels - 1).bit_length()))
    tall = cut.numbers // wide
    tiles, across = -(-rows // tall), -(-channels // wide)
    most = max(1, min(MOST_PARTS, cut.programs * processors // across))
    return Blocks(tall, wide, -(-tiles // -(-tiles // most)))


def matrix_like(data: torch.Tensor) -> bool:
    """Whether maps (N, C, H, W) are a matrix of N H W rows in memory."""
    return data.ndim == 4 and data.is_contiguous(memory_format=torch.channels_last)


@functools.cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else PROCESSORS


class _Launches:
    """Launches of the kernels for maps like ``x`` on its device."""

    def __init__(self, x: torch.Tensor, cut: Cut) -> None:
        self.rows, self.channels, self._cut = x.numel() // x.shape[1], x.shape[1], cut
        self.blocks = blocks_of(self.rows, self.channels, _processors(x.device), cut)
        self._device = torch.cuda.device(x.device) if x.device.type == "cuda" else nullcontext()

    def over_rows(self, kernel: Any, *arrays: Any, **named: Any) -> None:
        rows, channels, parts = self.blocks
        with self._device:  # Triton itself takes the current one
            kernel[(parts, -(-self.channels // channels))](
                *arrays, rows=self.rows, channels=self.channels, ROWS=rows, CHANNELS=channels,
                STAGES=self._cut.stages, num_warps=self._cut.warps, **named)

    def merge(self, kernel: Any, *arrays: Any, **named: Any) -> None:
        parts = self.blocks.parts
        with self._device:
            kernel[(-(-self.channels // MERGED),)](
                *arrays, channels=self.channels, parts=parts, PARTS=1 << (parts - 1).bit_length(), CHANNELS=MERGED,
                num_warps=8, **named)


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor, slope: torch.Tensor | None,
                added: torch.Tensor | None, eps: float, cut: Cut) -> Any:
        launches = _Launches(x, cut)
        rows, channels = launches.rows, launches.channels
        parts = torch.empty((2, launches.blocks.parts, channels), device=x.device)
        moments = torch.empty((3, channels), device=x.device)
        launches.over_rows(kernels.measure, x, *parts)
        launches.merge(kernels.merge_moments, *parts, moments, rows, eps=eps, ROWS=launches.blocks.rows)
        y = _normalised(launches, x, moments, gamma, beta, slope, added)
        ctx.save_for_backward(x, moments, gamma, beta, slope)
        ctx.added, ctx.cut = added is not None, cut
        ctx.mark_non_differentiable(moments)
        ctx.set_materialize_grads(False)
        return y, moments, x.view_as(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_y: torch.Tensor | None, _: Any, more: torch.Tensor | None) -> Any:
        if d_y is None:
            return more, *[None] * 6
        x, moments, gamma, beta, slope = ctx.saved_tensors
        active, steep, launches = slope is not None, beta if slope is None else slope, _Launches(x, ctx.cut)
        d = d_y.contiguous(memory_format=torch.channels_last)
        sums = torch.empty((3, launches.blocks.parts, launches.channels), device=x.device)
        gradients = torch.empty((3, launches.channels), device=x.device)
        launches.over_rows(kernels.sum_gradients, d, x, moments, gamma, beta, steep, sums, ACTIVE=active)
        launches.merge(kernels.merge_sums, sums, moments, gradients, ACTIVE=active)
        d_x = torch.empty_like(x)
        others = d if more is None else more.contiguous(memory_format=torch.channels_last)
        launches.over_rows(kernels.differentiate, d, x, moments, gamma, beta, steep, gradients, added=others,
                           d_x=d_x, ACTIVE=active, ADDED=more is not None)
        d_gamma, d_beta, d_slope = gradients
        return d_x, d_gamma, d_beta, d_slope if active else None, d_y if ctx.added else None, None, None


def _normalised(launches: _Launches, x: torch.Tensor, moments: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor,
                slope: torch.Tensor | None, added: torch.Tensor | None = None) -> torch.Tensor:
    y = torch.empty_like(x)
    launches.over_rows(kernels.normalise, x, moments, gamma, beta, beta if slope is None else slope,
                       x if added is None else added, y=y, ACTIVE=slope is not None, ADDED=added is not None)
    return y


class Normed(NamedTuple):
    """What :func:`batch_norm` gives."""

    y: torch.Tensor  # like x
    mean: torch.Tensor  # float32 (C,), of the batch
    var: torch.Tensor  # float32 (C,), of the batch, with n - 1; 0 where n is 1
    x: torch.Tensor  # the same numbers: what else reads x should read this, and its gradient costs no pass of its own


def batch_norm(x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor, eps: float,
               slope: torch.Tensor | None = None, added: torch.Tensor | None = None, cut: Cut = USUAL) -> Normed:
    """``prelu(norm(x)) + added`` by the batch's statistics, with a gradient for each of the five.

    :param x: (N, C, H, W), a matrix in memory (:func:`matrix_like`), float32 or 16 bits; ``added`` likewise.
    :param gamma: float32 (C,), like ``beta``; ``slope`` as well, or one for all channels. Without it there is no PReLU.
    """
    if slope is not None:
        slope = slope.flatten().expand(len(gamma)).contiguous()
    y, moments, again = _BatchNorm.apply(x, gamma, beta, slope, added, eps, cut)
    return Normed(y, moments[0], moments[1], again)


def not_kept(y: torch.Tensor) -> AbstractContextManager[Any]:
    """A context whose operators do not keep their input ``y`` for the backward pass, which computes it again.

    :param y: what :func:`batch_norm` gave without a sum; for another tensor the context does nothing.
    """
    norm: Any = y.grad_fn
    if getattr(norm, "added", True):  # another operator's, or with a sum
        return nullcontext()
    address, like = y.data_ptr(), (y.dtype, y.shape, y.stride())

    def pack(tensor: torch.Tensor) -> Any:
        return norm if (tensor.data_ptr(), (tensor.dtype, tensor.shape, tensor.stride())) == (address, like) else tensor

    def unpack(kept: Any) -> torch.Tensor:
        if isinstance(kept, torch.Tensor):
            return kept
        x, *others = kept.saved_tensors  # which the norm's own backward pass frees, after this operator's
        return _normalised(_Launches(x, kept.cut), x, *others)

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)
