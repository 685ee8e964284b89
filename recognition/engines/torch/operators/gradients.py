# SPDX-License-Identifier: Apache-2.0
"""Gradients that MXNet has and PyTorch's own operators have not: zeros, all of several largest numbers, a loss's."""
from __future__ import annotations

from typing import Any

from recognition.engines.torch.imports import torch


class _Constant(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, result: torch.Tensor, *sources: torch.Tensor) -> torch.Tensor:
        ctx.sources = [(source.shape, source.dtype, source.device) for source in sources]
        return result.view_as(result)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return (None, *(torch.zeros(sizes, dtype=dtype, device=device) for sizes, dtype, device in ctx.sources))


def constant(result: torch.Tensor, *sources: torch.Tensor) -> torch.Tensor:
    """``result``, whose gradient by each of ``sources`` is a tensor of zeros, as MXNet has it, and not absent."""
    learns = [source for source in sources if source.is_floating_point()]
    return _Constant.apply(result.detach(), *learns)


class _Extreme(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, data: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(data, result)
        return result.view_as(result)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        data, result = ctx.saved_tensors
        return gradient * (data == result), None


def extreme(data: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
    """``result``, largest or smallest numbers of ``data`` with axes of 1; each number equal to it has its gradient."""
    return _Extreme.apply(data, result.detach())


def at_least_float32(data: torch.Tensor) -> torch.Tensor:
    """``data``, in float32 if it has 16 bits: for sums that 16 bits do not hold."""
    return data.float() if data.dtype in (torch.float16, torch.bfloat16) else data
