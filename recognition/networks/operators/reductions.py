# SPDX-License-Identifier: Apache-2.0
"""Operators that take many numbers together: sums, means, the largest."""
from __future__ import annotations

from recognition.networks.operators import onnx
from recognition.networks.operators.operator import (
    Operator,
    Parameter,
    Shape,
    Values,
    Writer,
    boolean,
    each_input,
    forward,
    integer,
    integer_or_none,
    place_of,
    reduced_axes,
    shape_or_none,
    words,
)


def _reduced(values: Values, data: Shape) -> Shape:
    axes = reduced_axes(values, len(data))
    if values.keepdims:
        return tuple(1 if place in axes else size for place, size in enumerate(data))
    return tuple(size for place, size in enumerate(data) if place not in axes) or (1,)


def _place(values: Values, data: Shape) -> Shape:
    """The shape of argmax and argmin, which know one axis, or all."""
    axes = range(len(data)) if values.axis is None else [place_of(values.axis, len(data))]
    if values.keepdims:
        return tuple(1 if place in axes else size for place, size in enumerate(data))
    return tuple(size for place, size in enumerate(data) if place not in axes) or (1,)


def _reduction(name: str, aliases: tuple[str, ...] = (), writer: Writer | None = None, reads: int = 3,
               counted: bool = True) -> Operator:
    return Operator(name, forward(_reduced), aliases=aliases, parameters={
        "axis": Parameter(shape_or_none, None), "keepdims": Parameter(boolean, False),
        "exclude": Parameter(boolean, False)}, flops=each_input if counted else None, reads=reads, onnx=writer)


_PLACE = {"axis": Parameter(integer_or_none, None), "keepdims": Parameter(boolean, False)}

OPERATORS = [
    _reduction("sum", ("sum_axis",), onnx.reduction("ReduceSum"), reads=0),
    _reduction("mean", (), onnx.reduction("ReduceMean"), reads=0),
    _reduction("max", ("max_axis",), onnx.reduction("ReduceMax")),
    _reduction("min", ("min_axis",), onnx.reduction("ReduceMin")), _reduction("prod", counted=False),
    Operator("norm", forward(_reduced), parameters={
        "ord": Parameter(integer, 2), "axis": Parameter(shape_or_none, None),
        "out_dtype": Parameter(words("None", "float16", "float32", "float64", "int32", "int64", "int8"), "None"),
        "keepdims": Parameter(boolean, False)},
             flops=each_input),
    Operator("argmax", forward(_place), parameters=_PLACE), Operator("argmin", forward(_place), parameters=_PLACE),
]
