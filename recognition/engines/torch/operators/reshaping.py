# SPDX-License-Identifier: Apache-2.0
"""Operators that give the same numbers other axes. Shapes come from the table, which knows MXNet's codes."""
from __future__ import annotations

from typing import Any, Callable

from recognition.engines.torch.imports import torch
from recognition.engines.torch.operators.gradients import constant
from recognition.networks.operators import OPERATORS
from recognition.networks.operators.operator import Shape


def shape_of(name: str, values: Any, *inputs: torch.Tensor) -> Shape:
    """The shape that the operator ``name`` gives inputs of these shapes."""
    outs: list[Shape] = [()]
    OPERATORS[name].shape(values, [tuple(data.shape) for data in inputs], outs)
    return outs[0]


def reshaped(name: str) -> Callable[..., torch.Tensor]:
    return lambda values, data: data.reshape(shape_of(name, values, data))


def _reshape_like(values: Any, data: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return data.reshape(shape_of("reshape_like", values, data, like)) + constant(data.new_zeros(()), like)


def _transpose(values: Any, data: torch.Tensor) -> torch.Tensor:
    return data.permute(values.axes or tuple(range(data.ndim))[::-1])


def _depth_to_space(values: Any, data: torch.Tensor) -> torch.Tensor:
    batch, channels, height, width = data.shape
    side = values.block_size
    blocks = data.reshape(batch, side, side, channels // side ** 2, height, width).permute(0, 3, 4, 1, 5, 2)
    return blocks.reshape(batch, channels // side ** 2, height * side, width * side)


def _space_to_depth(values: Any, data: torch.Tensor) -> torch.Tensor:
    batch, channels, height, width = data.shape
    side = values.block_size
    blocks = data.reshape(batch, channels, height // side, side, width // side, side).permute(0, 3, 5, 1, 2, 4)
    return blocks.reshape(batch, channels * side ** 2, height // side, width // side)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: reshaped(name) for name in ("Flatten", "Reshape", "expand_dims", "squeeze")},
    "transpose": _transpose, "SwapAxis": lambda values, data: data.transpose(values.dim1, values.dim2),
    "depth_to_space": _depth_to_space, "space_to_depth": _space_to_depth, "reshape_like": _reshape_like,
}
