# SPDX-License-Identifier: Apache-2.0
"""An operator in an exported module, and what those that say it in our words share: shapes, axes, reshapes."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable, NamedTuple

from recognition.networks import sym
from recognition.networks.sym import Symbol

ARITHMETIC = frozenset(("add", "sub", "mul", "div"))  # that take numbers for tensors
Size = Any  # of an axis: an int, or the batch's, which is no number yet


class Unknown(Exception):
    """An operator, or one of its options, that has no like in a network of ours."""


class Call(NamedTuple):
    """One operator in an exported module: the shapes of its tensors."""

    ins: list[tuple[Size, ...]]  # of the tensors among the arguments, in order
    out: tuple[Size, ...]
    images: Symbol
    table: Callable[[Any], Symbol]  # of a constant


def is_number(size: Size) -> bool:
    return isinstance(size, int)


def _alike(first: Size, second: Size) -> bool:
    return str(first) == str(second)


def reshape(call: Call, data: Symbol, *_: Any) -> Symbol:
    """Reshape as the export says: 0 keeps the batch's axis, -1 stands for another size that depends on it."""
    codes = [size if is_number(size) else 0 if place < len(call.ins[0]) and _alike(size, call.ins[0][place]) else -1
             for place, size in enumerate(call.out)]
    if codes.count(-1) > 1:
        raise Unknown(f"a reshape to {tuple(map(str, call.out))}")
    return sym.Reshape(data, shape=tuple(codes))


def reshape_to(call: Call, data: Symbol, sizes: Sequence[Size]) -> Symbol:
    """Reshape to sizes that the export does not say."""
    return reshape(call._replace(out=tuple(sizes)), data)


def pair(call: Call, numbers: Any, rank: int | None = None) -> tuple[int, ...]:
    """One number for each side of a map; PyTorch also takes one for all."""
    rank = len(call.ins[0]) - 2 if rank is None else rank
    numbers = [numbers] if is_number(numbers) else list(numbers)
    return tuple(numbers * rank if len(numbers) == 1 else numbers)


def tuple_of(axes: Any) -> tuple[int, ...]:
    return (axes,) if is_number(axes) else tuple(axes)


def expand(call: Call, data: Symbol, *_: Any) -> Symbol:
    before = (*(1 for _ in range(len(call.out) - len(call.ins[0]))), *call.ins[0])
    data = data if len(before) == len(call.ins[0]) else sym.Reshape(data, shape=before)
    grown = [axis for axis, (old, new) in enumerate(zip(before, call.out)) if not _alike(old, new)]
    numbers = [axis for axis in grown if is_number(call.out[axis])]
    if numbers:
        data = sym.broadcast_axis(data, axis=tuple(numbers), size=tuple(call.out[axis] for axis in numbers))
    if len(numbers) < len(grown):  # to as many as there are images
        if grown[0] != 0 or len(grown) - len(numbers) > 1:
            raise Unknown("an expand along the batch that is not along the first axis")
        data = sym.broadcast_like(data, call.images, lhs_axes=(0,), rhs_axes=(0,))
    return data


def permute(call: Call, data: Symbol, axes: Sequence[int]) -> Symbol:
    return sym.transpose(data, axes=tuple(axis % len(axes) for axis in axes))
