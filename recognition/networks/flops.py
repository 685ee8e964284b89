# SPDX-License-Identifier: Apache-2.0
"""How much a network computes and how many parameters it has: what ``count_flops`` prints at the start."""
from __future__ import annotations

import ast
import json
import math
from collections.abc import Sequence
from typing import Any, Callable, NamedTuple

from recognition.engines.mxnet.imports import mx
from recognition.networks.passes import Node

Shape = Sequence[int]
# Operations a number of the result. Batch norm as a factor and a sum; square roots and quotients as one, as all do.
ELEMENTWISE = {
    "BatchNorm": 2, "LeakyReLU": 1, "Activation": 1, "elemwise_add": 1, "elemwise_sub": 1, "elemwise_mul": 1,
    "broadcast_add": 1, "broadcast_sub": 1, "broadcast_mul": 1, "broadcast_div": 1, "sqrt": 1, "square": 1, "clip": 1,
    "negative": 1, "_minus_scalar": 1, "_plus_scalar": 1, "_mul_scalar": 1, "_div_scalar": 1, "_rminus_scalar": 1,
    "_power_scalar": 1, "elemwise_div": 1, "_rdiv_scalar": 1, "relu": 1, "sigmoid": 1, "tanh": 1, "exp": 1, "abs": 1,
}
REDUCTIONS = ("sum", "mean", "max", "norm")  # one operation a number of the input
FREE = ("null", "_copy", "Dropout", "Flatten", "Reshape", "Concat", "SliceChannel", "transpose", "tile", "expand_dims",
        "broadcast_axis", "broadcast_like", "ones_like", "BlockGrad", "amp_cast", "Cast", "SwapAxis", "Pad",
        "slice_axis")


class Flops(NamedTuple):
    """Of one image. A multiply-add is two operations, as in the public recipes."""

    operations: int  # all operators
    products: int  # of which convolutions and fully connected layers, which is what the public recipes count
    parameters: int  # numbers in arguments but the images; without moving statistics
    unknown: tuple[str, ...]  # operators that are not counted


def count_flops(symbol: mx.sym.Symbol, image_shape: tuple[int, ...] = (3, 112, 112),
                counts: Callable[[Node], bool] = lambda node: True) -> Flops:
    """Operations of the forward pass for ``image_shape`` (3, H, W), and parameters.

    ``counts`` says which nodes of the graph to count, if not all.
    """
    internals = symbol.get_internals()
    shapes = dict(zip(internals.list_outputs(), internals.infer_shape_partial(data=(1, *image_shape))[1]))
    nodes = json.loads(symbol.tojson())["nodes"]
    operations = products = 0
    unknown: list[str] = []
    for node in filter(counts, nodes):
        inputs = [shapes[_output(nodes[entry[0]], entry[1])] for entry in node["inputs"]]
        counted = _operations(node, inputs, shapes.get(_output(node, 0), ()))
        if counted is None:
            unknown.append(node["op"])
            continue
        operations += counted
        if node["op"] in ("Convolution", "FullyConnected"):
            products += counted
    arguments = [shapes[name] for name in symbol.list_arguments() if name != "data"]
    return Flops(operations, products, sum(map(math.prod, arguments)), tuple(sorted(set(unknown))))


def _output(node: Node, number: int) -> str:
    """The name under which a symbol lists an output; of several it lists all but batch norm's statistics by number."""
    if node["op"] == "null":
        return str(node["name"])
    return f"{node['name']}_output{number if node['op'] == 'SliceChannel' else ''}"


def _operations(node: Node, inputs: list[Shape], output: Shape) -> int | None:
    """Operations of a node for shapes (1, ...); None if the operator is not known."""
    op, attrs = node["op"], node.get("attrs", {})
    if op in FREE:
        return 0
    if op in ("Convolution", "FullyConnected"):  # weight (outputs, inputs a group, kernel ...)
        weight, biases = inputs[1], 0 if attrs.get("no_bias") in ("True", "1") else 1
        return math.prod(output) * (2 * math.prod(weight[1:]) - 1 + biases)
    if op == "Pooling":
        whole = attrs.get("global_pool") in ("True", "1")
        window = inputs[0][2:] if whole else _tuple(attrs["kernel"])
        return math.prod(output) * math.prod(window)
    if op in REDUCTIONS:
        return math.prod(inputs[0])
    return ELEMENTWISE[op] * math.prod(output) if op in ELEMENTWISE else None


def _tuple(text: str) -> tuple[int, ...]:
    value: Any = ast.literal_eval(text)
    return tuple(value)


def describe(flops: Flops) -> str:
    """The line that the public recipes print, and what it leaves out."""
    rest = f"; not counted: {', '.join(flops.unknown)}" if flops.unknown else ""
    return (f"Network FLOPs: {short(flops.products)} (convolutions and fully connected layers, a multiply-add is 2; "
            f"{short(flops.operations)} with all operators; {short(flops.parameters)} parameters{rest})")


def short(number: float) -> str:
    """``24.2G``: one decimal and the largest of K, M, G, T that leaves at least 1, as the public recipes write it."""
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "K")):
        if number >= factor:
            return f"{number / factor:.1f}{letter}"
    return f"{number:.1f}"
