# SPDX-License-Identifier: Apache-2.0
"""Operators that take many numbers together: sums, means, the largest. Of all numbers the result is (1,)."""
from __future__ import annotations

import functools
from typing import Any, Callable

from recognition.engines.torch.imports import torch
from recognition.engines.torch.operators.gradients import constant, extreme
from recognition.engines.torch.operators.reshaping import shape_of
from recognition.networks.operators.operator import reduced_axes


def _shaped(name: str, values: Any, data: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
    """``result`` with the axes that the operator keeps of ``data``."""
    return result.reshape(shape_of(name, values, data))


def _reduction(name: str, function: Callable[[torch.Tensor, list[int]], torch.Tensor]) -> Callable[..., torch.Tensor]:
    """:param function: of a tensor and axes; keeps them with a size of 1."""
    def reduce(values: Any, data: torch.Tensor) -> torch.Tensor:
        return _shaped(name, values, data, function(data, reduced_axes(values, data.ndim)))

    return reduce


def _largest(data: torch.Tensor, axes: list[int]) -> torch.Tensor:
    return extreme(data, data.amax(axes, keepdim=True))


def _smallest(data: torch.Tensor, axes: list[int]) -> torch.Tensor:
    return extreme(data, data.amin(axes, keepdim=True))


def _product(data: torch.Tensor, axes: list[int]) -> torch.Tensor:
    return functools.reduce(lambda found, axis: found.prod(axis, keepdim=True), axes, data)


def _norm(values: Any, data: torch.Tensor) -> torch.Tensor:
    axes = reduced_axes(values, data.ndim)
    found = data.abs().sum(axes) if values.ord == 1 else data.square().sum(axes).sqrt()
    found = _shaped("norm", values, data, found)
    return found if values.out_dtype == "None" else found.to(getattr(torch, values.out_dtype))


def _place(name: str, function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The place of the first extreme number along an axis, or among all, as a number of the input's type."""
    def find(values: Any, data: torch.Tensor) -> torch.Tensor:
        places = function(data, values.axis, keepdim=values.axis is not None).to(data.dtype)
        return constant(_shaped(name, values, data, places), data)

    return find


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "sum": _reduction("sum", lambda data, axes: data.sum(axes, keepdim=True)),
    "mean": _reduction("mean", lambda data, axes: data.mean(axes, keepdim=True)),
    "max": _reduction("max", _largest), "min": _reduction("min", _smallest), "prod": _reduction("prod", _product),
    "norm": _norm, "argmax": _place("argmax", torch.argmax), "argmin": _place("argmin", torch.argmin),
}
