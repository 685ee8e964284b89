# SPDX-License-Identifier: Apache-2.0
"""Operators that take parts of maps, put maps together, or repeat them: slices, concatenations, tiles, padding."""
from __future__ import annotations

import math

from recognition.networks.operators import onnx
from recognition.networks.operators.operator import (
    INPUTS,
    Operator,
    Parameter,
    Shape,
    ShapeError,
    Shapes,
    Values,
    boolean,
    bounds,
    forward,
    free,
    integer,
    integer_or_none,
    merged,
    place_of,
    shape,
    shape_or_none,
    words,
)

PAIR = ("lhs", "rhs")


def _split(values: Values, ins: Shapes, outs: Shapes) -> None:
    if not ins[0]:
        return
    axis = place_of(values.axis, len(ins[0]))
    size, count = ins[0][axis], values.num_outputs
    if count < 1 or size % count or (values.squeeze_axis and size != count):
        raise ShapeError(f"found {size} on the axis {axis} of an input {ins[0]}, expected to split it into {count} "
                         "equal parts")
    middle = () if values.squeeze_axis else (size // count,)
    outs[:] = [merged(out, (*ins[0][:axis], *middle, *ins[0][axis + 1 :])) for out in outs]


def _tile(values: Values, data: Shape) -> Shape:
    rank = max(len(data), len(values.reps))
    sizes = (1,) * (rank - len(data)) + data
    return tuple(size * times for size, times in zip(sizes, (1,) * (rank - len(values.reps)) + values.reps))


def _repeat(values: Values, data: Shape) -> Shape:
    if values.repeats < 1:
        raise ShapeError(f"found repeats {values.repeats}, expected at least 1")
    if values.axis is None:
        return (math.prod(data) * values.repeats,)
    axis = place_of(values.axis, len(data))
    return (*data[:axis], data[axis] * values.repeats, *data[axis + 1 :])


def _reverse(values: Values, data: Shape) -> Shape:
    for axis in values.axis:
        place_of(axis, len(data))
    return data


def _pad(values: Values, data: Shape) -> Shape:
    widths = values.pad_width
    if len(data) not in (3, 4, 5) or len(widths) != 2 * len(data) or any(widths[:4]) or min(widths) < 0:
        raise ShapeError(f"found the pad_width {widths} for an input {data}, expected two numbers an axis, 0 for the "
                         "first two axes")
    if values.mode == "reflect" and any(max(widths[2 * i : 2 * i + 2]) >= size for i, size in enumerate(data) if i > 1):
        raise ShapeError(f"found the pad_width {widths} for an input {data}, expected less than a side to reflect")
    return tuple(size + before + behind if size else 0
                 for size, before, behind in zip(data, widths[::2], widths[1::2]))


def _stack(values: Values, ins: Shapes, outs: Shapes) -> None:
    found: Shape = ()
    for known in ins:
        found = merged(found, known)
    if found:
        ins[:] = [found] * len(ins)
        axis = place_of(values.axis, len(found) + 1)
        outs[0] = merged(outs[0], (*found[:axis], len(ins), *found[axis:]))


def _concat(values: Values, ins: Shapes, outs: Shapes) -> None:
    known = [found for found in ins if found]
    if not known:
        return
    axis = place_of(values.dim, len(known[0]))
    rest: Shape = ()
    for found in known:
        if len(found) != len(known[0]):
            raise ShapeError(f"found inputs {', '.join(map(str, known))}, expected as many axes in each")
        rest = merged(rest, (*found[:axis], 0, *found[axis + 1 :]))
    ins[:] = [(*rest[:axis], found[axis] if found else 0, *rest[axis + 1 :]) for found in ins]
    sizes = [found[axis] for found in ins]
    outs[0] = merged(outs[0], (*rest[:axis], 0 if 0 in sizes else sum(sizes), *rest[axis + 1 :]))


def _part(size: int, begin: int | None, end: int | None, step: int | None) -> int:
    """The length of ``range(size)[begin:end:step]``; 0 where the size is not known."""
    if step == 0:
        raise ShapeError("found a step of 0")
    return len(range(size)[begin:end:step])


def _slice(values: Values, data: Shape) -> Shape:
    begin, end, step = values.begin, values.end, values.step
    if not len(begin) == len(end) <= len(data) or len(step) not in (0, len(begin)):
        raise ShapeError(f"found begin {begin}, end {end} and step {step} for an input {data}")
    parts = zip(begin, end, step or (1,) * len(begin))
    return (*(_part(size, *part) for size, part in zip(data, parts)), *data[len(begin) :])


def _slice_axis(values: Values, data: Shape) -> Shape:
    axis = place_of(values.axis, len(data))
    size = data[axis]
    begin = values.begin + size if values.begin < 0 else values.begin
    end = size if values.end is None else values.end + size if values.end < 0 else values.end
    if size and not 0 <= begin < end <= size:
        raise ShapeError(f"found begin {values.begin} and end {values.end} on an axis of {size}")
    return (*data[:axis], end - begin if size else 0, *data[axis + 1 :])


def _slice_like(values: Values, ins: Shapes, outs: Shapes) -> None:
    if not all(ins):
        return
    data, like = ins
    if not values.axes and len(data) != len(like):
        raise ShapeError(f"found inputs {data} and {like}, expected as many axes")
    places = [place_of(axis, len(data)) for axis in values.axes] or range(len(data))
    if any(place >= len(like) or like[place] > data[place] > 0 for place in places):
        raise ShapeError(f"found inputs {data} and {like}, expected the second not to be larger")
    outs[0] = merged(outs[0], tuple(like[place] if place in places else size for place, size in enumerate(data)))


def _broadcast_axis(values: Values, data: Shape) -> Shape:
    if len(values.axis) != len(values.size):
        raise ShapeError(f"found the axes {values.axis} and sizes {values.size}, expected as many")
    sizes = list(data)
    for axis, size in zip(values.axis, values.size):
        place = place_of(axis, len(data))
        if sizes[place] > 1:
            raise ShapeError(f"found {data}, expected a size of 1 on the axis {axis} to broadcast")
        sizes[place] = size
    return tuple(sizes)


def _spread(data: Shape, wanted: Shape) -> Shape:
    if len(data) != len(wanted) or any(a > 1 and a != b and b for a, b in zip(data, wanted)):
        raise ShapeError(f"found {data}, which cannot be broadcast to {wanted}")
    return wanted


def _broadcast_to(values: Values, data: Shape) -> Shape:
    return _spread(data, tuple(wanted or size for wanted, size in zip(values.shape, data))
                   if len(values.shape) == len(data) else values.shape)


def _broadcast_like(values: Values, ins: Shapes, outs: Shapes) -> None:
    if not all(ins):
        return
    wanted = ins[1]
    if values.lhs_axes is not None and values.rhs_axes is not None:
        if len(values.lhs_axes) != len(values.rhs_axes) or not values.lhs_axes:
            raise ShapeError(f"found lhs_axes {values.lhs_axes} and rhs_axes {values.rhs_axes}, expected as many")
        sizes = list(ins[0])
        for own, other in zip(values.lhs_axes, values.rhs_axes):
            place = place_of(own, len(sizes))
            if sizes[place] > 1:
                raise ShapeError(f"found {ins[0]}, expected a size of 1 on the axis {own} to broadcast")
            sizes[place] = ins[1][place_of(other, len(ins[1]))]
        wanted = tuple(sizes)
    outs[0] = merged(outs[0], _spread(ins[0], wanted))


def _take(values: Values, ins: Shapes, outs: Shapes) -> None:
    if all(ins):
        axis = place_of(values.axis, len(ins[0]))
        outs[0] = merged(outs[0], (*ins[0][:axis], *ins[1], *ins[0][axis + 1 :]))


_COUNT = {"num_args": Parameter(integer)}

OPERATORS = [
    Operator("SliceChannel", _split, aliases=("split",), parameters={
        "num_outputs": Parameter(integer), "axis": Parameter(integer, 1), "squeeze_axis": Parameter(boolean, False)},
             outputs=lambda values: int(values.num_outputs), flops=free, reads=0, onnx=onnx.slices),
    Operator("tile", forward(_tile), parameters={"reps": Parameter(shape)}, flops=free, reads=0, onnx=onnx.tile),
    Operator("repeat", forward(_repeat), parameters={
        "repeats": Parameter(integer), "axis": Parameter(integer_or_none, None)}),
    Operator("reverse", forward(_reverse), aliases=("flip",), parameters={"axis": Parameter(shape)},
             flops=free, reads=0, onnx=onnx.reverse),
    Operator("Pad", forward(_pad), aliases=("pad",), parameters={
        "mode": Parameter(words("constant", "edge", "reflect")), "pad_width": Parameter(shape),
        "constant_value": Parameter(float, 0.0)}, flops=free, reads=0, onnx=onnx.pad),
    Operator("Concat", _concat, aliases=("concat",), variadic=True, parameters={**_COUNT, "dim": Parameter(integer, 1)},
             flops=free, reads=1, follows=("bfloat16", "float16"), onnx=onnx.concat),
    Operator("stack", _stack, variadic=True, parameters={**_COUNT, "axis": Parameter(integer, 0)}),
    Operator("slice", forward(_slice), parameters={
        "begin": Parameter(bounds), "end": Parameter(bounds), "step": Parameter(bounds, ())},
             flops=free, reads=0, onnx=onnx.slice_by_steps),
    Operator("slice_axis", forward(_slice_axis), parameters={
        "axis": Parameter(integer), "begin": Parameter(integer), "end": Parameter(integer_or_none)},
             flops=free, onnx=onnx.slice_axis),
    Operator("take", _take, ("a", "indices"), parameters={
        "axis": Parameter(integer, 0), "mode": Parameter(words("clip", "wrap"), "clip")},
             flops=free, reads=INPUTS, onnx=onnx.take),
    Operator("slice_like", _slice_like, ("data", "shape_like"), parameters={"axes": Parameter(shape, ())}),
    Operator("broadcast_axis", forward(_broadcast_axis), aliases=("broadcast_axes",), parameters={
        "axis": Parameter(shape, ()), "size": Parameter(shape, ())}, flops=free, reads=0, onnx=onnx.broadcast_axis),
    Operator("broadcast_to", forward(_broadcast_to), parameters={"shape": Parameter(shape, ())}),
    Operator("broadcast_like", _broadcast_like, PAIR, parameters={
        "lhs_axes": Parameter(shape_or_none, None), "rhs_axes": Parameter(shape_or_none, None)}, flops=free, reads=0,
             onnx=onnx.broadcast_like),
]
