# SPDX-License-Identifier: Apache-2.0
"""More of PyTorch's operators, each as several of ours, as ``operators.py`` and ``norms.py`` have the others.

What :data:`OF_TENSORS` names takes constants as PyTorch's tensors, other operators as symbols of tables.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Callable

from recognition.engines.torch.imports import torch
from recognition.engines.torch.modules.call import (
    ARITHMETIC,
    Call,
    Unknown,
    expand,
    is_number,
    permute,
    reshape,
    reshape_to,
    tuple_of,
)
from recognition.networks import sym
from recognition.networks.sym import Symbol, make


def _index(call: Call, data: Any, places: Sequence[Any]) -> Symbol:
    """Parts at constant places of neighbouring axes, taken from one axis in their stead."""
    axes = [axis for axis, place in enumerate(places) if place is not None]
    sizes, first, last = call.ins[0], axes[0], axes[-1]
    if not isinstance(data, Symbol) or not all(isinstance(places[axis], torch.Tensor) for axis in axes) \
            or axes != list(range(first, last + 1)) or not all(is_number(sizes[axis]) for axis in axes):
        raise Unknown("an index that is computed, along the batch, or of axes apart")
    masks = len(axes) == 1 and places[first].dtype == torch.bool
    found = places[first].nonzero()[:, 0] if masks else torch.zeros((), dtype=torch.int64)
    for axis in () if masks else axes:
        found = found * sizes[axis] + places[axis].long() % sizes[axis]
    if len(axes) > 1:
        data = reshape_to(call, data, (*sizes[:first], math.prod(sizes[first : last + 1]), *sizes[last + 1 :]))
    return sym.take(data, call.table(found), axis=first)


def _select_index(call: Call, data: Any, axis: int, places: Any) -> Symbol:
    return _index(call, data, [None] * (axis % len(call.ins[0])) + [places])


def _embedding(call: Call, data: Any, places: Any, *_: Any) -> Symbol:
    return _index(call, data, [places])


def _where(call: Call, mask: Any, first: Any, second: Any) -> Symbol:
    """One or the other by a constant mask."""
    if not isinstance(mask, torch.Tensor):
        raise Unknown("a choice by numbers that are computed")
    return sym.broadcast_add(_masked(call, first, mask), _masked(call, second, ~mask))


def _masked(call: Call, data: Any, mask: Any) -> Symbol:
    if isinstance(data, Symbol):
        return sym.broadcast_mul(data, call.table(mask))
    return call.table(torch.where(mask, data, 0.0))


def _masked_fill(call: Call, data: Any, mask: Any, value: Any) -> Symbol:
    return _where(call, mask, torch.as_tensor(value), data)


def _roll(call: Call, data: Symbol, shifts: Any, axes: Any = ()) -> Symbol:
    for shift, axis in zip(tuple_of(shifts), tuple_of(axes)):
        axis %= len(call.ins[0])
        size = call.ins[0][axis]
        if not is_number(size):
            raise Unknown("a roll along the batch")
        if shift % size:
            parts = [sym.slice_axis(data, axis=axis, begin=begin, end=end)
                     for begin, end in ((size - shift % size, size), (0, size - shift % size))]
            data = sym.Concat(*parts, dim=axis)
    return data


def _flip(call: Call, data: Symbol, axes: Sequence[int]) -> Symbol:
    return sym.reverse(data, axis=tuple(axis % len(call.ins[0]) for axis in axes))


def _pad(call: Call, data: Symbol, widths: Sequence[int], mode: str = "constant", value: float | None = None) -> Symbol:
    """Our padding is that of the last axes of 3 to 5, and never negative."""
    rank = len(call.ins[0])
    pairs: dict[int, tuple[int, int]] = {}
    for place in range(len(widths) // 2):
        axis, before, behind = rank - 1 - place, widths[2 * place], widths[2 * place + 1]
        if min(before, behind) < 0:
            data = sym.slice_axis(data, axis=axis, begin=max(-before, 0), end=min(behind, 0) or None)
        if max(before, behind) > 0:
            pairs[axis] = (max(before, 0), max(behind, 0))
    modes = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}
    if not pairs:
        return data
    if mode not in modes or not 3 <= rank <= 5 or len(pairs) > rank - 2:
        raise Unknown(f"a padding of {len(pairs)} of {rank} axes, {mode}")
    order = [*(axis for axis in range(rank) if axis not in pairs), *sorted(pairs)]
    ours = [width for axis in order for width in pairs.get(axis, (0, 0))]
    turned = order != list(range(rank))
    data = sym.transpose(data, axes=tuple(order)) if turned else data
    data = sym.Pad(data, mode=modes[mode], pad_width=tuple(ours), constant_value=value or 0.0)
    return sym.transpose(data, axes=tuple(map(order.index, range(rank)))) if turned else data


def _repeat(call: Call, data: Symbol, times: Sequence[Any]) -> Symbol:
    if all(map(is_number, times)):
        return sym.tile(data, reps=tuple(times))
    if any(old != 1 for old, count in zip(call.ins[0][::-1], times[::-1]) if count != 1):
        raise Unknown("a repeat as often as there are images")
    return expand(call, data)


def _resize(target: Callable[..., Any]) -> Callable[..., Any]:
    """Interpolation of maps: a product with a table for each side. The table is the interpolation of a unit matrix."""
    def resize(call: Call, data: Symbol, size: Any, *options: Any, **scales: Any) -> Symbol:
        (*_, height, width), (*_, new_height, new_width) = call.ins[0], call.out
        corners = options[:1] if options and isinstance(options[0], bool) else ()
        for old, new in ((height, new_height), (width, new_width)):  # each time the last axis, which goes in front
            data = sym.transpose(data, axes=(0, 1, 3, 2))
            unit = target(torch.eye(old)[None, :, :, None], [new, 1], *corners)[0, :, :, 0]
            data = data if torch.equal(unit, torch.eye(old)) else sym.FullyConnected(
                data, call.table(unit.T.contiguous()), num_hidden=new, no_bias=True, flatten=False)
        return data

    return resize


def _shuffle(call: Call, data: Symbol, factor: int) -> Symbol:
    channels, height, width = call.out[1:]
    parts = sym.Reshape(data, shape=(-1, channels, factor, factor, height // factor, width // factor))
    return sym.Reshape(sym.transpose(parts, axes=(0, 1, 4, 2, 5, 3)), shape=(-1, channels, height, width))


def _unshuffle(call: Call, data: Symbol, factor: int) -> Symbol:
    channels, height, width = call.ins[0][1:]
    parts = sym.Reshape(data, shape=(-1, channels, height // factor, factor, width // factor, factor))
    return sym.Reshape(sym.transpose(parts, axes=(0, 1, 3, 5, 2, 4)), shape=(-1, *call.out[1:]))


def _variance(call: Call, data: Symbol, axes: Any = None, correction: Any = 1, keepdim: bool = False) -> Symbol:
    places = tuple(range(len(call.ins[0]))) if axes is None else tuple_of(axes)
    count = math.prod(call.ins[0][axis] for axis in places)
    apart = sym.broadcast_sub(data, sym.mean(data, axis=places, keepdims=True))
    return sym.sum(sym.square(apart), axis=places, keepdims=keepdim) / float(count - correction)


def _largest(name: str) -> Callable[..., Any]:
    """The larger or smaller of two tensors."""
    return lambda call, left, right: make(f"broadcast_{name}", left, right)


def _addcmul(call: Call, data: Symbol, first: Symbol, second: Symbol, *, value: float = 1) -> Symbol:
    product = sym.broadcast_mul(first, second)
    return sym.broadcast_add(data, product if value == 1 else product * value)


def _along(name: str) -> Callable[..., Any]:
    """The largest or smallest along an axis; the place of each, which comes second, is not there."""
    return lambda call, data, axis, keepdim=False: (make(name, data, axis=axis, keepdims=keepdim), None)


def _unfolded(call: Call, data: Symbol, kernel: Any, dilation: Any, padding: Any, stride: Any) -> Symbol:
    """Windows of maps as columns (N, C * kernel, windows): a convolution with a table of zeros and ones."""
    channels, size = call.ins[0][1], math.prod(kernel)
    unit = torch.eye(size).reshape(size, 1, *kernel).repeat(channels, 1, 1, 1)
    found = sym.Convolution(data, call.table(unit), num_filter=channels * size, kernel=tuple(kernel),
                            stride=tuple(stride), pad=tuple(padding), dilate=tuple(dilation), num_group=channels,
                            no_bias=True)
    return sym.Reshape(found, shape=(0, 0, -1))


def _folded(call: Call, data: Symbol, sides: Any, kernel: Any, dilation: Any, padding: Any, stride: Any) -> Symbol:
    """The sums of columns at the places of their windows: the reverse of :func:`_unfolded`."""
    channels, size = call.out[1], math.prod(kernel)
    counts = [(side + 2 * pad - apart * (length - 1) - 1) // step + 1
              for side, pad, apart, length, step in zip(sides, padding, dilation, kernel, stride)]
    more = [side - ((count - 1) * step - 2 * pad + apart * (length - 1) + 1)
            for side, count, pad, apart, length, step in zip(sides, counts, padding, dilation, kernel, stride)]
    unit = torch.eye(size).reshape(size, 1, *kernel).repeat(channels, 1, 1, 1)
    return sym.Deconvolution(sym.Reshape(data, shape=(0, 0, *counts)), call.table(unit), num_filter=channels,
                             kernel=tuple(kernel), stride=tuple(stride), pad=tuple(padding), dilate=tuple(dilation),
                             adj=tuple(more), num_group=channels, no_bias=True)


OF_TENSORS = frozenset((*ARITHMETIC, "index", "index_select", "embedding", "where", "masked_fill",
                        "scaled_dot_product_attention"))
COMPOSED: dict[str, Callable[..., Any]] = {
    "index": _index, "index_select": _select_index, "embedding": _embedding, "where": _where,
    "masked_fill": _masked_fill, "roll": _roll, "flip": _flip, **dict.fromkeys(("pad", "constant_pad_nd"), _pad),
    "repeat": _repeat, "reshape_as": reshape,
    **{name: _resize(getattr(torch.ops.aten, name)) for name in (
        "upsample_bilinear2d", "upsample_nearest2d", "upsample_bicubic2d", "_upsample_bicubic2d_aa",
        "_upsample_bilinear2d_aa")},
    "pixel_shuffle": _shuffle, "pixel_unshuffle": _unshuffle, "var": _variance,
    "std": lambda call, *args, **options: make("sqrt", _variance(call, *args, **options)),
    "maximum": _largest("maximum"), "minimum": _largest("minimum"), "max": _along("max"), "min": _along("min"),
    "addcmul": _addcmul, "im2col": _unfolded, "col2im": _folded,
    "movedim": lambda call, data, source, place: permute(call, data, _moved(len(call.ins[0]), source, place)),
    "mish": lambda call, data: data * make("tanh", make("Activation", data, act_type="softrelu")),
    **dict.fromkeys(("t", "numpy_T"), lambda call, data: make("transpose", data)),
}


def _moved(rank: int, source: int, place: int) -> list[int]:
    axes = [axis for axis in range(rank) if axis != source % rank]
    axes.insert(place % rank, source % rank)
    return axes
