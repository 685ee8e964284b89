# SPDX-License-Identifier: Apache-2.0
"""Operators that compute number by number, and products of matrices."""
from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from recognition.networks.operators import onnx
from recognition.networks.operators.operator import (
    INPUTS,
    OUTPUT,
    Count,
    Operator,
    Parameter,
    Shape,
    ShapeError,
    Shapes,
    Values,
    Writer,
    boolean,
    boolean_or_none,
    each_output,
    free,
    integer,
    merged,
    real_or_none,
    same,
    words,
)

PAIR = ("lhs", "rhs")
BOTH = ("bfloat16", "float16")
_DTYPES = Parameter(words("float32", "float16", "bfloat16", "float64", "int32", "int64", "int8", "uint8", "bool"))


def broadcast(first: Shape, second: Shape) -> Shape:
    """The shape of a sum of arrays of two shapes that may have sides of 1, counted from the last.

    :raises ShapeError: if they do not go together.
    """
    rank = max(len(first), len(second))
    pairs = zip((1,) * (rank - len(first)) + first, (1,) * (rank - len(second)) + second)
    sizes = []
    for a, b in pairs:
        if a != b and 1 not in (a, b) and a and b:
            raise ShapeError(f"operands could not be broadcast together with shapes {first} {second}")
        sizes.append(b if a == 1 else a if b == 1 else a and b and a)
    return tuple(sizes)


def _broadcast(values: Values, ins: Shapes, outs: Shapes) -> None:
    if all(ins):
        outs[0] = merged(outs[0], broadcast(*ins))


def _sides(shape: Shape, swapped: bool) -> tuple[Shape, Shape]:
    """The axes that a product keeps of its first input, and the one that is summed."""
    return (shape[1:], shape[:1]) if swapped else (shape[:-1], shape[-1:])


def _dot(values: Values, ins: Shapes, outs: Shapes) -> None:
    if not all(ins):
        return
    left, inner = _sides(ins[0], values.transpose_a)
    right, other = _sides(ins[1], not values.transpose_b)
    _check_inner(ins, inner, other)
    outs[0] = merged(outs[0], (*left, *right) or (1,))


def _batch_dot(values: Values, ins: Shapes, outs: Shapes) -> None:
    if not all(ins):
        return
    if any(len(found) < 3 for found in ins) or len(ins[0]) != len(ins[1]) or ins[0][:-2] != ins[1][:-2]:
        raise ShapeError(f"found matrices {ins[0]} and {ins[1]}, expected as many of each")
    left, inner = _sides(ins[0][-2:], values.transpose_a)
    right, other = _sides(ins[1][-2:], not values.transpose_b)
    _check_inner(ins, inner, other)
    outs[0] = merged(outs[0], (*ins[0][:-2], *left, *right))


def _batch_products(values: Values, ins: Sequence[Shape], out: Shape) -> int:
    """Operations of products of matrices, two for a multiply-add."""
    return math.prod(out) * (2 * ins[0][-2 if values.transpose_a else -1] - 1)


def _check_inner(ins: Shapes, inner: Shape, other: Shape) -> None:
    if inner != other and inner[0] and other[0]:
        raise ShapeError(f"found the shapes {ins[0]} and {ins[1]}, expected sides that can be multiplied")


def _each(values: Values, ins: Shapes, outs: Shapes) -> None:
    ins[:] = outs[:] = [merged(found, out) for found, out in zip(ins, outs)]


def _unary(names: str, **fields: object) -> Iterable[Operator]:
    return [Operator(name, same, **fields) for name in names.split()]  # type: ignore[arg-type]


def _direct(name: str, onnx_name: str, reads: int = INPUTS | OUTPUT, **fields: object) -> Operator:
    return Operator(name, same, flops=each_output(1), reads=reads, onnx=onnx.direct(onnx_name),
                    **fields)  # type: ignore[arg-type]


def _scalar(name: str, alias: str, writer: Writer | None = None, flops: Count | None = None,
            reads: int = INPUTS | OUTPUT) -> Operator:
    return Operator(f"_{name}_scalar", same, aliases=(f"_{alias}Scalar",), flops=flops, reads=reads,
                    onnx=writer,
                    parameters={"scalar": Parameter(float, 1.0), "is_int": Parameter(boolean, True)})


def _two(kind: str, onnx_name: str, aliases: tuple[str, ...], **fields: object) -> Operator:
    return Operator(kind, _broadcast if kind.startswith("broadcast") else same, PAIR, aliases=aliases,
                    flops=each_output(1), onnx=onnx.direct(onnx_name), **fields)  # type: ignore[arg-type]


_ONE_OPERATION = each_output(1)
_MATRICES = {"transpose_a": Parameter(boolean, False), "transpose_b": Parameter(boolean, False),
             "forward_stype": Parameter(words("None", "default", "csr", "row_sparse"), "None")}
_SOFTMAX = {
    "axis": Parameter(integer, -1), "temperature": Parameter(real_or_none, None),
    "dtype": Parameter(words("None", "float16", "float32", "float64"), "None"),
    "use_length": Parameter(boolean_or_none, False),
}

OPERATORS = [
    Operator("_copy", same, aliases=("identity",), flops=free, reads=0, follows=BOTH, onnx=onnx.same),
    Operator("BlockGrad", same, aliases=("stop_gradient",), flops=free, onnx=onnx.same),
    Operator("ones_like", same, flops=free, reads=0, shape_alone=True, onnx=onnx.ones),
    Operator("zeros_like", same, shape_alone=True),
    *_unary("softsign floor ceil round sign _contrib_div_sqrt_dim"),
    _direct("log", "Log"), _direct("reciprocal", "Reciprocal"), _direct("erf", "Erf"),
    Operator("rsqrt", same, flops=each_output(1), onnx=onnx.rsqrt),
    Operator("hard_sigmoid", same, parameters={"alpha": Parameter(float, 0.2), "beta": Parameter(float, 0.5)}),
    Operator("Cast", same, aliases=("cast",), parameters={"dtype": _DTYPES}, flops=free, reads=0),
    Operator("amp_cast", same, parameters={"dtype": _DTYPES}, flops=free, reads=0),
    Operator("amp_multicast", _each, variadic=True, outputs=lambda values: int(values.num_outputs), parameters={
        "num_outputs": Parameter(integer), "cast_narrow": Parameter(boolean, False)}),
    Operator("softmax", same, parameters=_SOFTMAX, flops=each_output(4), reads=OUTPUT, onnx=onnx.softmax),
    Operator("log_softmax", same, parameters=_SOFTMAX),
    Operator("clip", same, parameters={"a_min": Parameter(float), "a_max": Parameter(float)}, flops=_ONE_OPERATION,
             reads=INPUTS, onnx=onnx.clip),
    Operator("square", same, flops=_ONE_OPERATION, reads=INPUTS, onnx=onnx.square),
    _direct("sqrt", "Sqrt", OUTPUT), _direct("relu", "Relu", OUTPUT),
    _direct("negative", "Neg", 0), _direct("sigmoid", "Sigmoid"), _direct("tanh", "Tanh"),
    _direct("exp", "Exp"), _direct("abs", "Abs"),
    _scalar("plus", "Plus", onnx.scalar("Add"), _ONE_OPERATION, 0),
    _scalar("minus", "Minus", onnx.scalar("Sub"), _ONE_OPERATION, 0),
    _scalar("rminus", "RMinus", onnx.scalar("Sub", reverse=True), _ONE_OPERATION, 0),
    _scalar("mul", "Mul", onnx.scalar("Mul"), _ONE_OPERATION, 0),
    _scalar("div", "Div", onnx.scalar("Div"), _ONE_OPERATION, 0),
    _scalar("rdiv", "RDiv", onnx.scalar("Div", reverse=True), _ONE_OPERATION),
    _scalar("power", "Power", onnx.scalar("Pow"), _ONE_OPERATION, INPUTS),
    _scalar("greater", "Greater", onnx.compared("Greater"), _ONE_OPERATION, 0),
    _scalar("lesser", "Lesser", onnx.compared("Less"), _ONE_OPERATION, 0),
    _scalar("maximum", "Maximum", onnx.scalar("Max"), _ONE_OPERATION),
    _scalar("minimum", "Minimum", onnx.scalar("Min"), _ONE_OPERATION),
    *(_scalar(name, alias) for name, alias in (
        ("rpower", "RPower"), ("mod", "Mod"), ("rmod", "RMod"),
        ("hypot", "Hypot"), ("equal", "Equal"), ("not_equal", "NotEqual"),
        ("greater_equal", "GreaterEqual"), ("lesser_equal", "LesserEqual"),
        ("logical_and", "LogicalAnd"), ("logical_or", "LogicalOr"), ("logical_xor", "LogicalXor"))),
    _two("elemwise_add", "Add", ("_Plus", "_plus"), is_sum=True, reads=0, follows=BOTH),
    _two("elemwise_sub", "Sub", ("_Minus", "_minus"), reads=0),
    _two("elemwise_mul", "Mul", ("_Mul", "_mul"), reads=INPUTS, follows=("float16",)),
    _two("elemwise_div", "Div", ("_Div", "_div")),
    _two("broadcast_add", "Add", ("broadcast_plus",), is_sum=True, reads=0),
    _two("broadcast_sub", "Sub", ("broadcast_minus",), reads=0),
    _two("broadcast_mul", "Mul", (), reads=INPUTS, follows=("float16",)),
    _two("broadcast_div", "Div", (), reads=INPUTS),
    *(Operator(f"_{name.lower()}", same, PAIR, aliases=(f"_{name}",)) for name in (
        "Maximum", "Minimum", "Power", "Mod", "Hypot", "Equal", "Not_Equal", "Greater", "Greater_Equal", "Lesser",
        "Lesser_Equal", "Logical_And", "Logical_Or", "Logical_Xor")),
    Operator("_grad_add", same, PAIR, is_sum=True),
    _two("broadcast_maximum", "Max", ()), _two("broadcast_minimum", "Min", ()),
    Operator("broadcast_power", _broadcast, PAIR),
    Operator("add_n", same, variadic=True, aliases=("ElementWiseSum",), parameters={"num_args": Parameter(integer)}),
    Operator("dot", _dot, PAIR, parameters=_MATRICES),
    Operator("batch_dot", _batch_dot, PAIR, parameters=_MATRICES, flops=_batch_products, reads=INPUTS,
             onnx=onnx.batch_dot),
]
