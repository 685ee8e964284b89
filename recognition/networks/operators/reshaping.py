# SPDX-License-Identifier: Apache-2.0
"""Operators that give the same numbers other axes: reshapes, transposes, blocks of pixels as channels."""
from __future__ import annotations

import math
from collections.abc import Sequence

from recognition.networks.operators import onnx
from recognition.networks.operators.operator import (
    Operator,
    Parameter,
    Shape,
    ShapeError,
    Shapes,
    Values,
    boolean,
    forward,
    free,
    integer,
    integer_or_none,
    merged,
    place_of,
    shape,
    shape_or_none,
)

PAIR = ("lhs", "rhs")


def _flatten(values: Values, data: Shape) -> Shape:
    return data[0], math.prod(data[1:])


def _reshape(values: Values, data: Shape) -> Shape:
    if values.shape:
        codes, sizes = (values.shape[::-1], data[::-1]) if values.reverse else (values.shape, data)
        found = _filled(_coded(codes, sizes), sizes)
        found = found[::-1] if values.reverse else found
    elif values.target_shape:
        wanted = [-1 if size == 0 else size for size in values.target_shape]
        if values.keep_highest:
            wanted[0] = data[0]
        found = _filled(wanted, data)
    else:
        raise ShapeError("found no shape")
    if math.prod(found) != math.prod(data) and 0 not in data:
        raise ShapeError(f"makes {math.prod(found)} numbers of {math.prod(data)}, expected the same number")
    return found


def _coded(codes: Sequence[int], sizes: Shape) -> list[int]:
    """Sizes by MXNet's codes: 0 keeps an axis, -1 is what is left, -2 keeps the rest, -3 joins two, -4 splits one."""
    found: list[int] = []
    left, place = list(codes), 0
    try:
        while left:
            code = left.pop(0)
            if code > 0:
                found.append(code)
                place += 1
            elif code == 0:
                found.append(sizes[place])
                place += 1
            elif code == -1:
                found.append(-1)
                place += 1
            elif code == -2:
                found += sizes[place:]
                place = len(sizes)
            elif code == -3:
                found.append(sizes[place] * sizes[place + 1])
                place += 2
            elif code == -4:
                first, second = left.pop(0), left.pop(0)
                whole = sizes[place]
                place += 1
                if first == second == -1:
                    raise ShapeError("split dims cannot both be -1")
                first = whole // second if first == -1 else first
                second = whole // first if second == -1 else second
                if first * second != whole:
                    raise ShapeError(f"split dims {first}, {second} do not divide the original dim {whole}")
                found += [first, second]
            else:
                raise ShapeError(f"found {code} in the shape, expected at least -4")
    except (IndexError, ZeroDivisionError):
        raise ShapeError(f"found the shape {tuple(codes)} for an input {sizes}, which has no such axes") from None
    return found


def _filled(wanted: Sequence[int], data: Shape) -> Shape:
    if wanted.count(-1) > 1:
        raise ShapeError(f"found {tuple(wanted)}, expected one size to be inferred at most")
    rest = -math.prod(wanted)
    return tuple(math.prod(data) // rest if size == -1 and rest else max(size, 0) for size in wanted)


def _reshape_like(values: Values, ins: Shapes, outs: Shapes) -> None:
    if not all(ins):
        return
    spans = []
    for found, begin, end in zip(ins, (values.lhs_begin, values.rhs_begin), (values.lhs_end, values.rhs_end)):
        first, last = begin or 0, len(found) if end is None else end
        first, last = (place + len(found) if place < 0 else place for place in (first, last))
        if not 0 <= first <= last <= len(found):
            raise ShapeError(f"found the axes {first} to {last} of {found}")
        spans.append((first, last))
    (first, last), (begin, end) = spans
    found = (*ins[0][:first], *ins[1][begin:end], *ins[0][last:])
    if math.prod(found) != math.prod(ins[0]) and 0 not in (*ins[0], *ins[1]):
        raise ShapeError(f"makes {found} of {ins[0]}, expected the same number of numbers")
    outs[0] = merged(outs[0], found)


def _transpose(values: Values, data: Shape) -> Shape:
    axes = values.axes or tuple(range(len(data)))[::-1]
    places = [place_of(axis, len(data)) for axis in axes]
    if sorted(places) != list(range(len(data))):
        raise ShapeError(f"found the axes {axes} for an input {data}, expected each of its axes once")
    return tuple(data[place] for place in places)


def _swap(values: Values, data: Shape) -> Shape:
    first, second = (place_of(axis, len(data)) for axis in (values.dim1, values.dim2))
    sizes = list(data)
    sizes[first], sizes[second] = sizes[second], sizes[first]
    return tuple(sizes)


def _expand(values: Values, data: Shape) -> Shape:
    axis = place_of(values.axis, len(data) + 1)
    return (*data[:axis], 1, *data[axis:])


def _squeeze(values: Values, data: Shape) -> Shape:
    if values.axis is None:
        return tuple(size for size in data if size != 1) or (1,)
    places = {place_of(axis, len(data)) for axis in values.axis}
    if len(places) != len(values.axis) or any(data[place] > 1 for place in places):
        raise ShapeError(f"cannot select the axes {values.axis} of {data} to squeeze out, expected sizes of one")
    return tuple(size for place, size in enumerate(data) if place not in places) or (1,)


def _blocks(values: Values, data: Shape) -> int:
    if len(data) != 4 or values.block_size < 1:
        raise ShapeError(f"found an input {data} and the block_size {values.block_size}, expected maps (N, C, H, W)")
    return int(values.block_size)


def _depth_to_space(values: Values, data: Shape) -> Shape:
    side = _blocks(values, data)
    if data[1] % side ** 2:
        raise ShapeError(f"found {data[1]} channels, expected a multiple of the block's {side ** 2}")
    return data[0], data[1] // side ** 2, data[2] * side, data[3] * side


def _space_to_depth(values: Values, data: Shape) -> Shape:
    side = _blocks(values, data)
    if data[2] % side or data[3] % side:
        raise ShapeError(f"found maps of {data[2]}x{data[3]}, expected multiples of the block's {side}")
    return data[0], data[1] * side ** 2, data[2] // side, data[3] // side


OPERATORS = [
    Operator("Flatten", forward(_flatten), aliases=("flatten",), flops=free, reads=0,
             follows=("float16",), onnx=onnx.direct("Flatten", axis=1)),
    Operator("Reshape", forward(_reshape), aliases=("reshape",), parameters={
        "shape": Parameter(shape, ()), "reverse": Parameter(boolean, False), "target_shape": Parameter(shape, ()),
        "keep_highest": Parameter(boolean, False)},
             flops=free, reads=0, follows=("float16",), onnx=onnx.reshape),
    Operator("transpose", forward(_transpose), parameters={"axes": Parameter(shape, ())}, flops=free, reads=0,
             onnx=onnx.transpose),
    Operator("SwapAxis", forward(_swap), aliases=("swapaxes",), parameters={
        "dim1": Parameter(integer, 0), "dim2": Parameter(integer, 0)}, flops=free, reads=0),
    Operator("expand_dims", forward(_expand), parameters={"axis": Parameter(integer)}, flops=free, reads=0),
    Operator("squeeze", forward(_squeeze), parameters={"axis": Parameter(shape_or_none, None)}),
    Operator("depth_to_space", forward(_depth_to_space), parameters={"block_size": Parameter(integer)}),
    Operator("space_to_depth", forward(_space_to_depth), parameters={"block_size": Parameter(integer)}),
    Operator("reshape_like", _reshape_like, PAIR, parameters=dict.fromkeys(
        ("lhs_begin", "lhs_end", "rhs_begin", "rhs_end"), Parameter(integer_or_none, None))),
]
