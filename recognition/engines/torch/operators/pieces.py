# SPDX-License-Identifier: Apache-2.0
"""Operators that take parts of maps, put maps together, or repeat them."""
from __future__ import annotations

from typing import Any, Callable

from recognition.engines.torch.imports import torch
from recognition.engines.torch.operators.gradients import constant
from recognition.engines.torch.operators.reshaping import shape_of


def _split(values: Any, data: torch.Tensor) -> tuple[torch.Tensor, ...]:
    parts = data.chunk(values.num_outputs, values.axis)
    return tuple(part.squeeze(values.axis) for part in parts) if values.squeeze_axis else parts


def _repeat(values: Any, data: torch.Tensor) -> torch.Tensor:
    return data.repeat_interleave(values.repeats, values.axis)


def _pad(values: Any, data: torch.Tensor) -> torch.Tensor:
    widths = values.pad_width[4:]  # those of the first two axes are 0
    pairs = [width for place in range(len(widths) - 2, -1, -2) for width in widths[place : place + 2]]
    if values.mode == "constant":
        return torch.nn.functional.pad(data, pairs, value=values.constant_value)
    return torch.nn.functional.pad(data, pairs, mode={"edge": "replicate", "reflect": "reflect"}[values.mode])


def _part(data: torch.Tensor, axis: int, begin: int | None, end: int | None, step: int | None) -> torch.Tensor:
    places = range(data.shape[axis])[begin:end:step]
    if places.step < 0:  # the numbers are made on the device: a recorded pass copies none from the host
        backwards = torch.arange(len(places), device=data.device) * places.step + places.start
        return data.index_select(axis, backwards)
    return data[(slice(None),) * axis + (slice(places.start, places.stop, places.step),)]


def _slice(values: Any, data: torch.Tensor) -> torch.Tensor:
    steps = values.step or (None,) * len(values.begin)
    for axis, (begin, end, step) in enumerate(zip(values.begin, values.end, steps)):
        data = _part(data, axis, begin, end, step)
    return data


def _slice_like(values: Any, data: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    axes = [axis % data.ndim for axis in values.axes] or range(data.ndim)
    result = data
    for axis in axes:
        result = result.narrow(axis, 0, like.shape[axis])
    return result + constant(data.new_zeros(()), like)


def _take(values: Any, data: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Slices along an axis at ``places``, whole numbers of any type; those beyond an end count as the last, or on."""
    axis, size = values.axis % data.ndim, data.shape[values.axis]
    whole = places.long()
    whole = whole.clamp(0, size - 1) if values.mode == "clip" else whole % size
    found = data.index_select(axis, whole.flatten()).reshape(*data.shape[:axis], *places.shape, *data.shape[axis + 1 :])
    return found + constant(data.new_zeros(()), places)


def _spread(name: str) -> Callable[..., torch.Tensor]:
    """An operator that repeats axes of 1; a second input says the sizes alone."""
    def spread(values: Any, data: torch.Tensor, *like: torch.Tensor) -> torch.Tensor:
        result = data.expand(shape_of(name, values, data, *like))
        return result + constant(data.new_zeros(()), *like) if like else result

    return spread


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "SliceChannel": _split, "tile": lambda values, data: data.tile(values.reps), "repeat": _repeat,
    "reverse": lambda values, data: data.flip(values.axis), "Pad": _pad,
    "Concat": lambda values, *inputs: torch.cat(inputs, values.dim),
    "stack": lambda values, *inputs: torch.stack(inputs, values.axis),
    "take": _take, "slice": _slice, "slice_like": _slice_like,
    "slice_axis": lambda values, data: _part(data, values.axis % data.ndim, values.begin, values.end, 1),
    **{name: _spread(name) for name in ("broadcast_axis", "broadcast_to", "broadcast_like")},
}
