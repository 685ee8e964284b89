# SPDX-License-Identifier: Apache-2.0
"""What each of MXNet's operators becomes in ONNX, opset 13. Batch norms are as in inference."""
from __future__ import annotations

import ast
from typing import Any, Callable

import numpy as np

from common.export.onnx_graph import BATCH, OnnxGraph
from recognition.engines.mxnet.imports import mx
from recognition.errors import UserError
from recognition.networks.fold import batch_norm_affine, fold_batch_norms
from recognition.networks.passes import Node

# From the graph, a node of the symbol and the tensors that it reads: the tensors that stand for its outputs.
Operator = Callable[[OnnxGraph, Node, list[str]], list[str]]


def to_onnx(symbol: mx.sym.Symbol, arguments: dict[str, np.ndarray], auxiliary: dict[str, np.ndarray],
            image_shape: tuple[int, int, int] = (3, 112, 112), float16: bool = False, fold: bool = True) -> Any:
    """The ``onnx.ModelProto`` of a network: ``data`` float32 (batch, 3, H, W) to ``fc1`` float32 (batch, dim).

    The batch may have any size. With ``float16`` parameters and all between are float16; ``fold`` folds batch norms.

    :raises UserError: if the onnx package is missing, or an operator or a use of it cannot be exported.
    """
    if fold:
        symbol, arguments, auxiliary = fold_batch_norms(symbol, arguments, auxiliary)
    return OnnxGraph(symbol, {**arguments, **auxiliary}, image_shape, float16).model(OPERATORS)


def _get(node: Node, key: str, default: Any = None) -> Any:
    """An attribute as Python has it: a number, a tuple, None, or the text itself."""
    text = node.get("attrs", {}).get(key)
    if text is None:
        return default
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _refuse(node: Node, found: str) -> UserError:
    return UserError(f"layer {node['name']}: {node['op']} with {found} cannot be exported")


def _same(graph: OnnxGraph, node: Node, inputs: list[str]) -> list[str]:
    return inputs[:1]


def _direct(op: str, **attributes: Any) -> Operator:
    return lambda graph, node, inputs: graph.add(op, node["name"], inputs, **attributes)


def _scalar(op: str, reverse: bool = False) -> Operator:
    def write(graph: OnnxGraph, node: Node, inputs: list[str]) -> list[str]:
        pair = [inputs[0], graph.constant(node["name"] + "_scalar", float(_get(node, "scalar", 0)))]
        return graph.add(op, node["name"], pair[::-1] if reverse else pair)

    return write


def _square(graph: OnnxGraph, node: Node, inputs: list[str]) -> list[str]:
    return graph.add("Mul", node["name"], inputs * 2)


def _pads(pad: tuple[int, ...]) -> list[int]:
    return [*pad, *pad]


def _convolution(graph: OnnxGraph, node: Node, inputs: list[str]) -> list[str]:
    kernel = _get(node, "kernel")
    ones, layout = (1,) * len(kernel), _get(node, "layout")
    if layout not in (None, "NCHW"):
        raise _refuse(node, f"layout {layout}")
    return graph.add("Conv", node["name"], inputs, kernel_shape=kernel, group=_get(node, "num_group", 1),
                     strides=_get(node, "stride") or ones, dilations=_get(node, "dilate") or ones,
                     pads=_pads(_get(node, "pad") or (0,) * len(kernel)))


def _fully_connected(graph: OnnxGraph, node: Node, inputs: list[str]) -> list[str]:
    if len(graph.shape(node, 0)) != 2:
        if not _get(node, "flatten", True):
            raise _refuse(node, "flatten=False")
        inputs = [*graph.add("Flatten", node["name"] + "_flat", inputs[:1], axis=1), *inputs[1:]]
    return graph.add("Gemm", node["name"], inputs, transB=1)


def _batch_norm(graph: OnnxGraph, node: Node, inputs: list[str]) -> list[str]:
    """Its factor and offset, with mean 0, variance 1 and epsilon 0: nothing there that float16 could not hold."""
    if _get(node, "axis", 1) != 1:
        raise _refuse(node, f"axis {_get(node, 'axis')}")
    factor, offset = batch_norm_affine(node, *(graph.value(name) for name in inputs[1:]))
    named = {"scale": factor, "offset": offset, "mean": np.zeros(len(factor)), "variance": np.ones(len(factor))}
    constants = [graph.constant(f"{node['name']}_{key}", value) for key, value in named.items()]
    return graph.add("BatchNormalization", node["name"], [inputs[0], *constants], epsilon=0.0)


def _leaky(graph: OnnxGraph, node: Node, inputs: list[str]) -> list[str]:
    kind, slope = _get(node, "act_type", "leaky"), _get(node, "slope", 0.25)
    if kind == "prelu":
        places = len(graph.shape(node, 0)) - 2
        slopes = graph.constant(node["name"] + "_slopes", graph.value(inputs[1]).reshape(-1, *[1] * places))
        return graph.add("PRelu", node["name"], [inputs[0], slopes])
    if kind in ("leaky", "elu"):
        return graph.add("LeakyRelu" if kind == "leaky" else "Elu", node["name"], inputs, alpha=float(slope))
    raise _refuse(node, f"act_type {kind}")


def _activation(graph: OnnxGraph, node: Node, inputs: list[str]) -> list[str]:
    kinds = {"relu": "Relu", "sigmoid": "Sigmoid", "softrelu": "Softplus", "softsign": "Softsign", "tanh": "Tanh"}
    kind = _get(node, "act_type")
    if kind not in kinds:
        raise _refuse(node, f"act_type {kind}")
    return graph.add(kinds[kind], node["name"], inputs)


def _pooling(graph: OnnxGraph, node: Node, inputs: list[str]) -> list[str]:
    kind = _get(node, "pool_type", "max")
    if kind not in ("avg", "max"):
        raise _refuse(node, f"pool_type {kind}")
    op = {"avg": "AveragePool", "max": "MaxPool"}[kind]
    if _get(node, "global_pool", False):
        return graph.add(f"Global{op}", node["name"], inputs)
    kernel = _get(node, "kernel")
    attributes: dict[str, Any] = {"ceil_mode": int(_get(node, "pooling_convention", "valid") == "full")}
    if kind == "avg":
        attributes["count_include_pad"] = int(_get(node, "count_include_pad", True))
    return graph.add(op, node["name"], inputs, kernel_shape=kernel, pads=_pads(_get(node, "pad") or (0,) * len(kernel)),
                     strides=_get(node, "stride") or (1,) * len(kernel), **attributes)


def _concat(graph: OnnxGraph, node: Node, inputs: list[str]) -> list[str]:
    return graph.add("Concat", node["name"], inputs, axis=_get(node, "dim", 1))


def _slices(graph: OnnxGraph, node: Node, inputs: list[str]) -> list[str]:
    if _get(node, "squeeze_axis", False):
        raise _refuse(node, "squeeze_axis")
    return graph.add("Split", node["name"], inputs, _get(node, "num_outputs"), axis=_get(node, "axis", 1))


def _slice_axis(graph: OnnxGraph, node: Node, inputs: list[str]) -> list[str]:
    end = _get(node, "end")
    bounds = {"starts": _get(node, "begin"), "ends": np.iinfo(np.int64).max if end is None else end,
              "axes": _get(node, "axis")}
    named = [graph.constant(f"{node['name']}_{key}", [value], np.int64) for key, value in bounds.items()]
    return graph.add("Slice", node["name"], [inputs[0], *named])


def _reshape(graph: OnnxGraph, node: Node, inputs: list[str]) -> list[str]:
    shape = graph.shape(node)
    if graph.shape(node, 0)[0] == BATCH and shape[0] != BATCH:
        raise _refuse(node, f"the shape {_get(node, 'shape')}, which mixes images")
    wanted = [-1 if size == BATCH else size for size in shape]
    return graph.add("Reshape", node["name"], [inputs[0], graph.constant(node["name"] + "_shape", wanted, np.int64)])


def _tile(graph: OnnxGraph, node: Node, inputs: list[str]) -> list[str]:
    times = list(_get(node, "reps"))
    times = [1] * (len(graph.shape(node, 0)) - len(times)) + times
    return graph.add("Tile", node["name"], [inputs[0], graph.constant(node["name"] + "_reps", times, np.int64)])


def _transpose(graph: OnnxGraph, node: Node, inputs: list[str]) -> list[str]:
    return graph.add("Transpose", node["name"], inputs, perm=_get(node, "axes"))


def _clip(graph: OnnxGraph, node: Node, inputs: list[str]) -> list[str]:
    bounds = [graph.constant(f"{node['name']}_{key}", float(_get(node, key))) for key in ("a_min", "a_max")]
    return graph.add("Clip", node["name"], [inputs[0], *bounds])


def _reduction(op: str) -> Operator:
    def write(graph: OnnxGraph, node: Node, inputs: list[str]) -> list[str]:
        axis, rank = _get(node, "axis"), len(graph.shape(node, 0))
        axes = list(range(rank)) if axis in (None, ()) else [axis] if isinstance(axis, int) else list(axis)
        if _get(node, "exclude", False):
            axes = [place for place in range(rank) if place not in [number % rank for number in axes]]
        keep = int(_get(node, "keepdims", False))
        if op == "ReduceSum":  # opset 13 has its axes as a tensor, and those of others as an attribute
            named = graph.constant(node["name"] + "_axes", axes, np.int64)
            return graph.add(op, node["name"], [inputs[0], named], keepdims=keep)
        return graph.add(op, node["name"], inputs, axes=axes, keepdims=keep)

    return write


OPERATORS: dict[str, Operator] = {
    "Convolution": _convolution, "FullyConnected": _fully_connected, "BatchNorm": _batch_norm, "LeakyReLU": _leaky,
    "Activation": _activation, "Pooling": _pooling, "Flatten": _direct("Flatten", axis=1), "Concat": _concat,
    "SliceChannel": _slices, "slice_axis": _slice_axis, "Reshape": _reshape, "tile": _tile, "transpose": _transpose,
    "clip": _clip, "sum": _reduction("ReduceSum"), "mean": _reduction("ReduceMean"), "max": _reduction("ReduceMax"),
    "square": _square, "sqrt": _direct("Sqrt"), "negative": _direct("Neg"), "exp": _direct("Exp"),
    "relu": _direct("Relu"), "sigmoid": _direct("Sigmoid"), "tanh": _direct("Tanh"), "abs": _direct("Abs"),
    **dict.fromkeys(("_copy", "Dropout", "BlockGrad"), _same),
    **{f"{kind}_{short}": _direct(op) for kind in ("elemwise", "broadcast") for short, op in (
        ("add", "Add"), ("sub", "Sub"), ("mul", "Mul"), ("div", "Div"))},
    "_plus_scalar": _scalar("Add"), "_minus_scalar": _scalar("Sub"), "_mul_scalar": _scalar("Mul"),
    "_div_scalar": _scalar("Div"), "_rminus_scalar": _scalar("Sub", reverse=True),
    "_rdiv_scalar": _scalar("Div", reverse=True), "_power_scalar": _scalar("Pow"),
}
