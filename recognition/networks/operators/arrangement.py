# SPDX-License-Identifier: Apache-2.0
"""Operators that only move numbers: reshapes, slices, transposes, repetitions, concatenations."""
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


_COUNT = {"num_args": Parameter(integer)}

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
    Operator("SliceChannel", _split, aliases=("split",), parameters={
        "num_outputs": Parameter(integer), "axis": Parameter(integer, 1), "squeeze_axis": Parameter(boolean, False)},
             outputs=lambda values: int(values.num_outputs), flops=free, reads=0, onnx=onnx.slices),
    Operator("expand_dims", forward(_expand), parameters={"axis": Parameter(integer)}, flops=free, reads=0),
    Operator("squeeze", forward(_squeeze), parameters={"axis": Parameter(shape_or_none, None)}),
    Operator("tile", forward(_tile), parameters={"reps": Parameter(shape)}, flops=free, reads=0, onnx=onnx.tile),
    Operator("repeat", forward(_repeat), parameters={
        "repeats": Parameter(integer), "axis": Parameter(integer_or_none, None)}),
    Operator("reverse", forward(_reverse), aliases=("flip",), parameters={"axis": Parameter(shape)}),
    Operator("Pad", forward(_pad), aliases=("pad",), parameters={
        "mode": Parameter(words("constant", "edge", "reflect")), "pad_width": Parameter(shape),
        "constant_value": Parameter(float, 0.0)}, flops=free, reads=0),
    Operator("depth_to_space", forward(_depth_to_space), parameters={"block_size": Parameter(integer)}),
    Operator("space_to_depth", forward(_space_to_depth), parameters={"block_size": Parameter(integer)}),
    Operator("Concat", _concat, aliases=("concat",), variadic=True, parameters={**_COUNT, "dim": Parameter(integer, 1)},
             flops=free, reads=1, follows=("bfloat16", "float16"), onnx=onnx.concat),
    Operator("stack", _stack, variadic=True, parameters={**_COUNT, "axis": Parameter(integer, 0)}),
    Operator("slice", forward(_slice), parameters={
        "begin": Parameter(bounds), "end": Parameter(bounds), "step": Parameter(bounds, ())}),
    Operator("slice_axis", forward(_slice_axis), parameters={
        "axis": Parameter(integer), "begin": Parameter(integer), "end": Parameter(integer_or_none)},
             flops=free, onnx=onnx.slice_axis),
    Operator("slice_like", _slice_like, ("data", "shape_like"), parameters={"axes": Parameter(shape, ())}),
    Operator("reshape_like", _reshape_like, PAIR, parameters=dict.fromkeys(
        ("lhs_begin", "lhs_end", "rhs_begin", "rhs_end"), Parameter(integer_or_none, None))),
    Operator("broadcast_axis", forward(_broadcast_axis), aliases=("broadcast_axes",), parameters={
        "axis": Parameter(shape, ()), "size": Parameter(shape, ())}, flops=free, reads=0),
    Operator("broadcast_to", forward(_broadcast_to), parameters={"shape": Parameter(shape, ())}),
    Operator("broadcast_like", _broadcast_like, PAIR, parameters={
        "lhs_axes": Parameter(shape_or_none, None), "rhs_axes": Parameter(shape_or_none, None)}, flops=free, reads=0),
]
