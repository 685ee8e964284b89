# SPDX-License-Identifier: Apache-2.0
"""Writers of operators in ONNX, opset 13. Batch norms are as in inference."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from recognition.errors import UserError
from recognition.networks.operators.batch_norm import batch_norm_affine
from recognition.networks.operators.operator import reduced_axes

if TYPE_CHECKING:
    from recognition.networks.graph import Node
    from recognition.networks.onnx_graph import OnnxGraph
    from recognition.networks.operators.operator import Writer

BATCH = 8191  # stands for the number of images when shapes are inferred; no layer has this size


def _refuse(node: Node, found: str) -> UserError:
    return UserError(f"layer {node.name}: {node.op} with {found} cannot be exported")


def same(graph: OnnxGraph, node: Node, inputs: list[str]) -> list[str]:
    return inputs[:1]


def direct(op: str, **attributes: Any) -> Writer:
    return lambda graph, node, inputs: graph.add(op, node.name, inputs, **attributes)


def scalar(op: str, reverse: bool = False) -> Writer:
    def write(graph: OnnxGraph, node: Node, inputs: list[str]) -> list[str]:
        pair = [inputs[0], graph.constant(node.name + "_scalar", node.values.scalar)]
        return graph.add(op, node.name, pair[::-1] if reverse else pair)

    return write


def square(graph: OnnxGraph, node: Node, inputs: list[str]) -> list[str]:
    return graph.add("Mul", node.name, inputs * 2)


def _window(node: Node) -> dict[str, Any]:
    values = node.values
    pad = values.pad or (0,) * len(values.kernel)
    return {"kernel_shape": values.kernel, "strides": values.stride or (1,) * len(values.kernel), "pads": [*pad, *pad]}


def convolution(graph: OnnxGraph, node: Node, inputs: list[str]) -> list[str]:
    values = node.values
    if values.layout not in ("None", "NCHW"):
        raise _refuse(node, f"layout {values.layout}")
    return graph.add("Conv", node.name, inputs, group=values.num_group,
                     dilations=values.dilate or (1,) * len(values.kernel), **_window(node))


def deconvolution(graph: OnnxGraph, node: Node, inputs: list[str]) -> list[str]:
    values, ones = node.values, (1,) * len(node.values.kernel)
    if values.layout not in ("None", "NCHW") or values.target_shape:
        raise _refuse(node, "layout or target_shape")
    return graph.add("ConvTranspose", node.name, inputs, group=values.num_group, dilations=values.dilate or ones,
                     output_padding=values.adj or [0 for _ in ones], **_window(node))


def fully_connected(graph: OnnxGraph, node: Node, inputs: list[str]) -> list[str]:
    if len(graph.shape(node, 0)) != 2:
        if not node.values.flatten:
            matrix = graph.constant(node.name + "_matrix", graph.value(inputs[1]).T)
            product = graph.add("MatMul", node.name, [inputs[0], matrix])
            return graph.add("Add", node.name + "_bias", [*product, inputs[2]]) if len(inputs) > 2 else product
        inputs = [*graph.add("Flatten", node.name + "_flat", inputs[:1], axis=1), *inputs[1:]]
    return graph.add("Gemm", node.name, inputs, transB=1)


def batch_norm(graph: OnnxGraph, node: Node, inputs: list[str]) -> list[str]:
    """Write its factor and offset, with mean 0, variance 1 and epsilon 0: float16 can hold all of them. None is named
    <layer>_scale: onnxruntime's quantisation gives this name to the scale of the layer's output."""
    if node.values.axis != 1:
        raise _refuse(node, f"axis {node.values.axis}")
    factor, offset = batch_norm_affine(node.values, *(graph.value(name) for name in inputs[1:]))
    named = {"factor": factor, "offset": offset, "mean": np.zeros(len(factor)), "variance": np.ones(len(factor))}
    constants = [graph.constant(f"{node.name}_{key}", value) for key, value in named.items()]
    return graph.add("BatchNormalization", node.name, [inputs[0], *constants], epsilon=0.0)


def layer_norm(graph: OnnxGraph, node: Node, inputs: list[str]) -> list[str]:
    """Write it as means, products and a root: opset 13 has no layer norm. Variances are of differences from the mean,
    which float16 can hold where the numbers' squares go beyond it."""
    values, shape = node.values, graph.shape(node, 0)
    if values.output_mean_var:
        raise _refuse(node, "output_mean_var")
    sizes = [size if axis == values.axis % len(shape) else 1 for axis, size in enumerate(shape)]
    gamma, beta = (graph.constant(f"{node.name}_{key}", graph.value(name).reshape(sizes))
                   for key, name in zip(("factor", "offset"), inputs[1:]))
    mean = graph.add("ReduceMean", node.name + "_mean", inputs[:1], axes=[values.axis], keepdims=1)
    apart = graph.add("Sub", node.name + "_apart", [inputs[0], *mean])
    squares = graph.add("Mul", node.name + "_squares", apart * 2)
    variance = graph.add("ReduceMean", node.name + "_variance", squares, axes=[values.axis], keepdims=1)
    moved = graph.add("Add", node.name + "_moved", [*variance, graph.constant(node.name + "_epsilon", values.eps)])
    spread = graph.add("Sqrt", node.name + "_spread", moved)
    unit = graph.add("Div", node.name + "_unit", [*apart, *spread])
    return graph.add("Add", node.name, [*graph.add("Mul", node.name + "_scaled", [*unit, gamma]), beta])


def softmax(graph: OnnxGraph, node: Node, inputs: list[str]) -> list[str]:
    values = node.values
    if values.temperature not in (None, 1) or values.use_length or values.dtype != "None":
        raise _refuse(node, "temperature, use_length or dtype")
    return graph.add("Softmax", node.name, inputs, axis=values.axis)


def batch_dot(graph: OnnxGraph, node: Node, inputs: list[str]) -> list[str]:
    rank = len(graph.shape(node, 0))
    swapped = [*range(rank - 2), rank - 1, rank - 2]
    pair = [graph.add("Transpose", f"{node.name}_{place}", [name], perm=swapped)[0] if turned else name
            for place, (name, turned) in enumerate(zip(inputs, (node.values.transpose_a, node.values.transpose_b)))]
    return graph.add("MatMul", node.name, pair)


def ones(graph: OnnxGraph, node: Node, inputs: list[str]) -> list[str]:
    size = graph.add("Shape", node.name + "_size", inputs)
    one = graph.onnx.numpy_helper.from_array(np.ones(1, graph.dtype))
    return graph.add("ConstantOfShape", node.name, size, value=one)


def compared(op: str) -> Writer:
    """A comparison with a number: 1 where it holds, else 0."""
    def write(graph: OnnxGraph, node: Node, inputs: list[str]) -> list[str]:
        pair = [inputs[0], graph.constant(node.name + "_scalar", node.values.scalar)]
        kind = graph.onnx.helper.np_dtype_to_tensor_dtype(graph.dtype)
        return graph.add("Cast", node.name, graph.add(op, node.name + "_holds", pair), to=kind)

    return write


def leaky(graph: OnnxGraph, node: Node, inputs: list[str]) -> list[str]:
    kind = node.values.act_type
    if kind == "prelu":
        places = len(graph.shape(node, 0)) - 2
        slopes = graph.constant(node.name + "_slopes", graph.value(inputs[1]).reshape(-1, *[1] * places))
        return graph.add("PRelu", node.name, [inputs[0], slopes])
    if kind in ("leaky", "elu"):
        return graph.add("LeakyRelu" if kind == "leaky" else "Elu", node.name, inputs, alpha=node.values.slope)
    if kind == "gelu":  # x / 2 (1 + erf(x / sqrt(2)))
        half, root, one = (graph.constant(f"{node.name}_{key}", value)
                           for key, value in (("half", 0.5), ("root", 0.5 ** 0.5), ("one", 1.0)))
        error = graph.add("Erf", node.name + "_erf", graph.add("Mul", node.name + "_scaled", [inputs[0], root]))
        part = graph.add("Mul", node.name + "_part", [inputs[0], half])
        return graph.add("Mul", node.name, [*part, *graph.add("Add", node.name + "_moved", [*error, one])])
    raise _refuse(node, f"act_type {kind}")


def activation(graph: OnnxGraph, node: Node, inputs: list[str]) -> list[str]:
    kinds = {"relu": "Relu", "sigmoid": "Sigmoid", "softrelu": "Softplus", "softsign": "Softsign", "tanh": "Tanh"}
    return graph.add(kinds[node.values.act_type], node.name, inputs)


def pooling(graph: OnnxGraph, node: Node, inputs: list[str]) -> list[str]:
    values = node.values
    if values.pool_type not in ("avg", "max"):
        raise _refuse(node, f"pool_type {values.pool_type}")
    op = {"avg": "AveragePool", "max": "MaxPool"}[values.pool_type]
    if values.global_pool:
        return graph.add(f"Global{op}", node.name, inputs)
    attributes: dict[str, Any] = {"ceil_mode": int(values.pooling_convention == "full")}
    if values.pool_type == "avg":
        attributes["count_include_pad"] = int(values.count_include_pad is not False)
    return graph.add(op, node.name, inputs, **_window(node), **attributes)


def concat(graph: OnnxGraph, node: Node, inputs: list[str]) -> list[str]:
    return graph.add("Concat", node.name, inputs, axis=node.values.dim)


def slices(graph: OnnxGraph, node: Node, inputs: list[str]) -> list[str]:
    if node.values.squeeze_axis:
        raise _refuse(node, "squeeze_axis")
    return graph.add("Split", node.name, inputs, node.values.num_outputs, axis=node.values.axis)


def slice_axis(graph: OnnxGraph, node: Node, inputs: list[str]) -> list[str]:
    values = node.values
    bounds = {"starts": values.begin, "ends": np.iinfo(np.int64).max if values.end is None else values.end,
              "axes": values.axis}
    named = [graph.constant(f"{node.name}_{key}", [value], np.int64) for key, value in bounds.items()]
    return graph.add("Slice", node.name, [inputs[0], *named])


def slice_by_steps(graph: OnnxGraph, node: Node, inputs: list[str]) -> list[str]:
    values, shape = node.values, graph.shape(node, 0)
    steps = values.step or (1,) * len(values.begin)
    bounds = zip(range(len(shape)), values.begin, values.end, [step or 1 for step in steps])
    parts = [part for part in bounds if part[1:] != (None, None, 1)]
    if not parts:
        return inputs[:1]
    far = np.iinfo(np.int64).max
    if any(step < 0 or shape[axis] == BATCH for axis, _, _, step in parts):
        raise _refuse(node, "steps back, or a part of the images")
    columns = zip(*((begin or 0, far if end is None else end, axis, step) for axis, begin, end, step in parts))
    named = [graph.constant(f"{node.name}_{key}", column, np.int64)
             for key, column in zip(("starts", "ends", "axes", "steps"), columns)]
    return graph.add("Slice", node.name, [inputs[0], *named])


def reverse(graph: OnnxGraph, node: Node, inputs: list[str]) -> list[str]:
    axes, count = node.values.axis, len(node.values.axis)
    columns = {"starts": [-1] * count, "ends": [np.iinfo(np.int64).min] * count, "axes": axes, "steps": [-1] * count}
    named = [graph.constant(f"{node.name}_{key}", column, np.int64) for key, column in columns.items()]
    return graph.add("Slice", node.name, [inputs[0], *named])


def pad(graph: OnnxGraph, node: Node, inputs: list[str]) -> list[str]:
    widths = node.values.pad_width
    named = [graph.constant(node.name + "_widths", [*widths[::2], *widths[1::2]], np.int64)]
    if node.values.mode == "constant":
        named.append(graph.constant(node.name + "_value", node.values.constant_value))
    return graph.add("Pad", node.name, [inputs[0], *named], mode=node.values.mode)


def broadcast_axis(graph: OnnxGraph, node: Node, inputs: list[str]) -> list[str]:
    sizes = [1] * len(graph.shape(node, 0))
    for axis, size in zip(node.values.axis, node.values.size):
        sizes[axis] = size
    return graph.add("Expand", node.name, [inputs[0], graph.constant(node.name + "_shape", sizes, np.int64)])


def broadcast_like(graph: OnnxGraph, node: Node, inputs: list[str]) -> list[str]:
    """Write it with the sizes that the second input has when it runs: that of the batch is open."""
    rank, values = len(graph.shape(node, 0)), node.values
    pairs = dict(zip(values.lhs_axes or range(rank), values.rhs_axes or range(rank)))
    sizes = graph.add("Shape", node.name + "_sizes", inputs[1:])
    one = graph.constant(node.name + "_one", [1], np.int64)
    parts = [graph.add("Gather", f"{node.name}_size{axis}", [*sizes, graph.constant(
        f"{node.name}_place{axis}", [pairs[axis] % len(graph.shape(node, 1))], np.int64)])[0] if axis in pairs else one
             for axis in range(rank)]
    return graph.add("Expand", node.name, [inputs[0], *graph.add("Concat", node.name + "_shape", parts, axis=0)])


def rsqrt(graph: OnnxGraph, node: Node, inputs: list[str]) -> list[str]:
    return graph.add("Reciprocal", node.name, graph.add("Sqrt", node.name + "_root", inputs))


def take(graph: OnnxGraph, node: Node, inputs: list[str]) -> list[str]:
    """Write it with its places as whole numbers, which the network must hold."""
    axis = node.values.axis % len(graph.shape(node, 0))
    size, places = graph.shape(node, 0)[axis], np.trunc(graph.value(inputs[1]))
    places = np.clip(places, 0, size - 1) if node.values.mode == "clip" else places % size
    return graph.add("Gather", node.name, [inputs[0], graph.constant(node.name + "_places", places, np.int64)],
                     axis=axis)


def reshape(graph: OnnxGraph, node: Node, inputs: list[str]) -> list[str]:
    wanted = [-1 if size % BATCH == 0 else size for size in graph.shape(node)]  # also windows of all images
    if wanted.count(-1) > 1:
        raise _refuse(node, f"the shape {node.values.shape}, which mixes images")
    return graph.add("Reshape", node.name, [inputs[0], graph.constant(node.name + "_shape", wanted, np.int64)])


def tile(graph: OnnxGraph, node: Node, inputs: list[str]) -> list[str]:
    times = list(node.values.reps)
    times = [1] * (len(graph.shape(node, 0)) - len(times)) + times
    return graph.add("Tile", node.name, [inputs[0], graph.constant(node.name + "_reps", times, np.int64)])


def transpose(graph: OnnxGraph, node: Node, inputs: list[str]) -> list[str]:
    return graph.add("Transpose", node.name, inputs, perm=node.values.axes or None)


def clip(graph: OnnxGraph, node: Node, inputs: list[str]) -> list[str]:
    bounds = [graph.constant(f"{node.name}_{key}", getattr(node.values, key)) for key in ("a_min", "a_max")]
    return graph.add("Clip", node.name, [inputs[0], *bounds])


def reduction(op: str) -> Writer:
    def write(graph: OnnxGraph, node: Node, inputs: list[str]) -> list[str]:
        axes, keep = reduced_axes(node.values, len(graph.shape(node, 0))), int(node.values.keepdims)
        if op == "ReduceSum":  # opset 13 has its axes as a tensor, and those of others as an attribute
            named = graph.constant(node.name + "_axes", axes, np.int64)
            return graph.add(op, node.name, [inputs[0], named], keepdims=keep)
        return graph.add(op, node.name, inputs, axes=axes, keepdims=keep)

    return write
