# SPDX-License-Identifier: Apache-2.0
"""A graph pass that runs a network's heavy layers in 16 bits: bfloat16 on a CPU, float16 on a GPU.

Parameters, their gradients and the output stay float32: each parameter is cast where it is used, so that its gradient
comes back through the cast and the optimiser works on what are called master weights.
"""
from __future__ import annotations

import json

from recognition.engines.mxnet.imports import mx
from recognition.networks.passes import Entry, Graph, Node

# Always in 16 bits. On a CPU a fully connected layer gains less by bfloat16 than casting its weight costs.
HEAVY = {"bfloat16": ("Convolution",), "float16": ("Convolution", "FullyConnected")}
NARROW = 8  # input channels below which oneDNN has no fast convolution of bfloat16, and leaves its layout
# In 16 bits where an input is so already. All other operators run in float32: for bfloat16 MXNet has no dropout, no
# LeakyReLU, and no gradient of what shapes and scales.
FOLLOWING = {
    "bfloat16": ("Activation", "BatchNorm", "Concat", "Pooling", "_copy", "elemwise_add"),
    "float16": ("Activation", "BatchNorm", "Concat", "Dropout", "Flatten", "LeakyReLU", "Pooling", "Reshape", "_copy",
                "broadcast_mul", "elemwise_add", "elemwise_mul"),
}


def low_precision(symbol: mx.sym.Symbol, dtype: str, image_shape: tuple[int, ...] = (3, 112, 112)) -> mx.sym.Symbol:
    """``symbol`` with its heavy layers in ``dtype``, "bfloat16" or "float16".

    Arguments, auxiliary states and outputs keep their names and are float32, and so are the layer that gives an output
    and, in bfloat16, a convolution of the images themselves. Comes after the passes that add layers. ``image_shape``
    (3, H, W) only tells the channels of maps.
    """
    source, caster = json.loads(symbol.tojson()), _Caster(dtype)
    wide = {head[0] for head in source["heads"]}
    if dtype == "bfloat16":
        wide.update(_narrow_convolutions(symbol, source["nodes"], image_shape))
    for number, node in enumerate(source["nodes"]):
        caster.add(node, allowed=number not in wide)
    return caster.graph.symbol([caster.moved(head) for head in source["heads"]], source["attrs"])


def _narrow_convolutions(symbol: mx.sym.Symbol, nodes: list[Node], image_shape: tuple[int, ...]) -> list[int]:
    """The convolutions, not depthwise ones, that read a map of few channels."""
    internals = symbol.get_internals()
    shapes = dict(zip(internals.list_outputs(), internals.infer_shape_partial(data=(1, *image_shape))[1]))

    def channels(node: Node) -> int:
        source = nodes[node["inputs"][0][0]]
        name = source["name"] if source["op"] == "null" else source["name"] + "_output"
        shape: tuple[int, ...] = shapes.get(name) or ()
        return shape[1] if len(shape) > 1 else NARROW

    return [number for number, node in enumerate(nodes) if node["op"] == "Convolution"
            and node["attrs"].get("num_group", "1") == "1" and channels(node) < NARROW]


class _Caster:
    """The graph in the making, and which of its nodes are low, that is of 16 bits."""

    def __init__(self, dtype: str) -> None:
        self.graph, self._dtype = Graph(), dtype
        self._places: list[int] = []  # of each old node
        self._low: list[bool] = []  # of each new node
        self._casts: dict[tuple[Entry, bool], Entry] = {}

    def moved(self, entry: list[int]) -> Entry:
        return Entry(self._places[entry[0]], *entry[1:])

    def _cast(self, entry: Entry, low: bool) -> Entry:
        """The entry in 16 bits or in float32; one cast serves all who use it."""
        if self._low[entry.node] == low:
            return entry
        if (entry, low) not in self._casts:
            name = f"{self.graph.nodes[entry.node]['name']}_{entry.output}_{'low' if low else 'float32'}"
            self._casts[entry, low] = self.graph.add("amp_cast", name, entry,
                                                     dtype=self._dtype if low else "float32")
            self._low.append(low)
        return self._casts[entry, low]

    def add(self, node: Node, allowed: bool) -> None:
        """Append a node of the old graph; in 16 bits only if ``allowed``."""
        inputs = [self.moved(entry) for entry in node["inputs"]]
        follows = node["op"] in FOLLOWING[self._dtype] and any(self._low[entry.node] for entry in inputs)
        low = allowed and (node["op"] in HEAVY[self._dtype] or follows)
        # Batch norm takes its parameters and statistics in float32 whatever the map.
        mapped = 1 if node["op"] == "BatchNorm" else len(inputs)
        inputs = [self._cast(entry, low and place < mapped) for place, entry in enumerate(inputs)]
        self._places.append(self.graph.append(node, inputs).node)
        self._low.append(low)
