# SPDX-License-Identifier: Apache-2.0
"""One row of the table of operators: inputs, attributes, shapes, costs, gradients, 16 bits, ONNX.

Shapes follow MXNet: ``()`` is a shape of which nothing is known, and 0 a size that is not known.
"""
from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Callable, NamedTuple

if TYPE_CHECKING:
    from recognition.networks.graph import Node
    from recognition.networks.onnx_graph import OnnxGraph

Shape = tuple[int, ...]
Shapes = list[Shape]
Values = Any  # the parsed attributes of a node, as fields
# From the values and the shapes known of inputs and outputs, which it completes in place.
Rule = Callable[[Values, Shapes, Shapes], None]
# Operations for the values, the shapes of the inputs and that of the output.
Count = Callable[[Values, Sequence[Shape], Shape], int]
# From the graph in the making, a node and the tensors that it reads: the tensors that stand for its outputs.
Writer = Callable[["OnnxGraph", "Node", list[str]], list[str]]

INPUTS, OUTPUT = 1, 2  # what a backward pass reads beside the gradient
MOST_INPUTS = 1024  # of an operator that takes any number
REQUIRED: Any = object()


class ShapeError(ValueError):
    """Error about a layer that cannot take maps of the shape it would get."""


class Parameter(NamedTuple):
    """An attribute: the reader of its text, and the value if a graph has none."""

    read: Callable[[str], Any]
    default: Any = REQUIRED


def _any_inputs(values: Values, names: Sequence[str]) -> Sequence[str]:
    return names


@dataclass(frozen=True, eq=False)
class Operator:
    """One row of the table. The default of a field is what holds for most operators."""

    name: str
    shape: Rule
    inputs: tuple[str, ...] = ("data",)
    states: tuple[str, ...] = ()  # inputs behind the others, which the operator itself changes
    chosen: Callable[[Values, Sequence[str]], Sequence[str]] = _any_inputs  # the inputs that a node of these values has
    optional: int = 0  # inputs that a file may leave out, of the last ones
    variadic: bool = False  # takes any number of inputs, which ``num_args`` counts
    limit: int = MOST_INPUTS  # of a variadic operator's inputs in files that are not ours
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    outputs: Callable[[Values], int] = lambda values: 1
    visible: Callable[[Values], int] | None = None  # outputs that others may use, if not all
    output_names: tuple[str, ...] = ("output",)  # of those that are visible, where not all are
    own_inputs: bool = False  # inputs behind the first are variables that no other node uses
    starts: Mapping[str, str] = field(default_factory=dict)  # ``__init__`` of inputs that have no other
    flops: Count | None = None
    is_sum: bool = False  # of two maps, of a residual branch and the way past it for example
    is_product: bool = False  # counts among the FLOPs of the public recipes
    reads: int = INPUTS | OUTPUT
    shape_alone: bool = False  # the result depends on the input's shape, not on its numbers
    heavy: tuple[str, ...] = ()  # 16-bit types in which it always runs where they are asked for
    follows: tuple[str, ...] = ()  # 16-bit types in which it runs where an input is of that type already
    onnx: Writer | None = None
    in_untrusted_files: bool = True  # files that are not ours may name it

    def values(self, attrs: Mapping[str, str]) -> Values:
        """The attributes' texts as Python values, defaults filled in; hints such as ``__lr_mult__`` are left out.

        :raises ValueError: if one is not known or missing, or its text is no such value.
        """
        found = {name: parameter.default for name, parameter in self.parameters.items()}
        for key, text in attrs.items() if self.parameters else ():
            if key.startswith("__"):
                continue
            if key not in found:
                raise ValueError(f"{self.name} has the attribute {key!r}, expected one of {', '.join(found)}")
            try:
                found[key] = self.parameters[key].read(text)
            except (ValueError, SyntaxError, KeyError):
                raise ValueError(f"{self.name} has the {key} {text!r}, which is no such value") from None
        missing = [key for key, value in found.items() if value is REQUIRED]
        if missing:
            raise ValueError(f"{missing[0]} is '', expected a number, a word or a tuple of numbers")
        return SimpleNamespace(**found)

    def input_names(self, values: Values) -> Sequence[str]:
        """Names of the inputs that a node of these values has, states last; for a variadic operator none."""
        return () if self.variadic else [*self.chosen(values, self.inputs), *self.states]

    @property
    def fewest(self) -> int:
        """The least number of inputs that a file may give a node; old files leave states out."""
        return 1 if self.variadic else len(self.inputs) - self.optional

    @property
    def most(self) -> int:
        return self.limit if self.variadic else len(self.inputs) + len(self.states)

    def is_state(self, place: int, version: int = 0) -> bool:
        """True if an input is a state; ``version`` is the one that MXNet wrote for the input."""
        return bool(self.states) and place >= len(self.inputs)

    def shown(self, values: Values) -> int:
        """The number of outputs that a graph lists."""
        return self.outputs(values) if self.visible is None else self.visible(values)

    def output_name(self, values: Values, output: int) -> str:
        """The end of an output's name: mostly ``output``, or ``output0`` and so on where there are several."""
        if self.visible is None:
            return f"output{output}" if self.outputs(values) != 1 else "output"
        return self.output_names[output] if output < len(self.output_names) else f"output{output}"


# How attributes are read.


def boolean(text: str) -> bool:
    return {"true": True, "1": True, "false": False, "0": False}[text.lower()]


def integer(text: str) -> int:
    return int(text.rstrip("L"))


def integer_or_none(text: str) -> int | None:
    return None if text == "None" else integer(text)


def real_or_none(text: str) -> float | None:
    return None if text == "None" else float(text)


def boolean_or_none(text: str) -> bool | None:
    return None if text == "None" else boolean(text)


def bounds(text: str) -> Any:
    """The tuple that a text stands for, like :func:`shape`, but None may stand for a number."""
    value = ast.literal_eval(re.sub(r"(?<=\d)L", "", text))
    items = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if not all(item is None or type(item) is int for item in items):
        raise ValueError(text)
    return items


def shape(text: str) -> Any:
    """The tuple of numbers that ``(3, 3)``, ``[3, 3]`` or ``3`` stand for."""
    items = bounds(text)
    if None in items:
        raise ValueError(text)
    return items


def written_shape(attrs: Mapping[str, str]) -> Shape:
    """The shape written on a variable: sizes, 0 for one that is not known; () if none is written.

    :raises ValueError: if it is no shape.
    """
    text = attrs.get("__shape__", "()")
    try:
        sizes = shape(text)
        if all(size >= 0 for size in sizes):
            return tuple(sizes)
    except (ValueError, SyntaxError):
        pass
    raise ValueError(f"the attribute __shape__ is {text!r}, expected a tuple of sizes")


def shape_or_none(text: str) -> Any:
    return None if text == "None" else shape(text)


def words(*known: str) -> Callable[[str], str]:
    return lambda text: known[known.index(text)]


# Rules that several operators share.


def merged(first: Shape, second: Shape) -> Shape:
    """The common shape of two that must be the same, each of which may lack sizes.

    :raises ShapeError: if they differ.
    """
    if not first or not second:
        return first or second
    if len(first) != len(second) or any(a and b and a != b for a, b in zip(first, second)):
        raise ShapeError(f"found the shapes {first} and {second}, expected the same")
    return tuple(a or b for a, b in zip(first, second))


def same(values: Values, ins: Shapes, outs: Shapes) -> None:
    """Rule: all inputs and outputs have one shape."""
    found: Shape = ()
    for known in (*ins, *outs):
        found = merged(found, known)
    ins[:], outs[:] = [found] * len(ins), [found] * len(outs)


def forward(rule: Callable[[Values, Shape], Shape]) -> Rule:
    """Rule: the output's shape follows from that of the first input alone, once it is known."""

    def infer(values: Values, ins: Shapes, outs: Shapes) -> None:
        if ins[0]:
            outs[0] = merged(outs[0], rule(values, ins[0]))

    return infer


def place_of(axis: int, rank: int) -> int:
    """An axis counted from the first.

    :raises ShapeError: if there is none.
    """
    if not -rank <= axis < rank:
        raise ShapeError(f"found the axis {axis}, expected one of {rank}")
    return axis % rank


def reduced_axes(values: Values, rank: int) -> list[int]:
    """The axes over which a reduction runs, ascending: ``axis``, or all others by ``exclude``; all without ``axis``."""
    if not values.axis:
        return list(range(rank))
    places = {place_of(axis, rank) for axis in values.axis}
    return [place for place in range(rank) if (place in places) != getattr(values, "exclude", False)]


def each_output(operations: int) -> Count:
    """Count: ``operations`` operations for each number of the result."""
    return lambda values, ins, out: operations * _numbers(out)


def each_input(values: Values, ins: Sequence[Shape], out: Shape) -> int:
    return _numbers(ins[0])


def free(values: Values, ins: Sequence[Shape], out: Shape) -> int:
    return 0


def _numbers(sizes: Shape) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total
