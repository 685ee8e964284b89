# SPDX-License-Identifier: Apache-2.0
"""How much memory a network's maps take in training, from the graph alone: nothing is computed or set aside.

``kept + gradients + segment`` bytes:

- *kept*: every map that a backward pass reads (``READS``), once; the outputs, and the gradients given for them;
- *gradients*: those held between two layers, where they are most: by the maps that the second reads or that pass by it;
- *segment*, where the recompute pass marked layers: the maps of the largest run of marked layers, which are there again
  for its backward pass. They are not among the kept ones, unless a layer that is not marked reads them.

Off MXNet's own plan, for the 17 presets: on GPUs 3 %, 14 % for small batches in 16 bits, 11 % with ``memonger``; on
CPUs 8 %, in 16 bits 16 %; but DenseNets are 14 to 22 % below with either of the last three. With ``memonger`` on CPUs
MXNet lays few segments over each other, and its plan is 1.1 to 2.7 times the sum, which ``SCATTERED`` multiplies: 14
presets are within 15 % in float32 then, and all between -33 % and +59 %.
"""
from __future__ import annotations

import itertools
import json
import math
from collections import Counter

import numpy as np

from recognition.engines.mxnet.imports import mx
from recognition.networks.passes import Node
from recognition.networks.recompute import ATTRIBUTE

INPUTS, OUTPUT = 1, 2
# What the backward pass of an operator reads beside the gradient, as MXNet 1.9.1 has it; others count as both.
READS = {
    **dict.fromkeys(("Convolution", "FullyConnected", "BatchNorm", "Concat", "elemwise_mul", "broadcast_mul",
                     "broadcast_div", "square", "clip", "_power_scalar", "InstanceNorm", "LayerNorm",
                     "recognition_winograd"), INPUTS),
    **dict.fromkeys(("sqrt", "relu", "softmax", "L2Normalization"), OUTPUT),
    **dict.fromkeys(("elemwise_add", "elemwise_sub", "broadcast_add", "broadcast_sub", "sum", "mean", "negative",
                     "_copy", "_plus_scalar", "_minus_scalar", "_mul_scalar", "_div_scalar", "_rminus_scalar",
                     "Flatten", "Reshape", "transpose", "expand_dims", "SwapAxis", "Pad", "tile", "broadcast_axis",
                     "broadcast_like", "SliceChannel", "Cast", "amp_cast", "Dropout"), 0),
}
SCATTERED = 1.8

Entry = tuple[int, int]  # a node of the graph, and the number of its output


def maps_memory(symbol: mx.sym.Symbol, image_shape: tuple[int, int, int], batch: int) -> int:
    """Bytes that a training executor sets aside for ``batch`` images (3, H, W): maps and the gradients between layers.

    ``symbol`` is as it is bound, that is after the passes. Parameters, their gradients and momentum are not among it.
    """
    graph = json.loads(symbol.tojson(remove_amp_cast=False))
    nodes, heads = graph["nodes"], [(head[0], head[1]) for head in graph["heads"]]
    listed = sizes(symbol, image_shape, batch)
    marked = [ATTRIBUTE in node.get("attrs", {}) for node in nodes]
    sees: list[bool] = []  # whether a node depends on the images; the gradients of what does not come at the end
    kept, last_use = set(heads), dict[Entry, int]()
    again: set[Entry] = set()  # read from the second run
    for number, node in enumerate(nodes):
        inputs = [(entry[0], entry[1]) for entry in node["inputs"]]
        sees.append(node["name"] == "data" or any(sees[source] for source, _ in inputs))
        last_use.update(dict.fromkeys(inputs, number))
        for entry in _read(number, node, inputs):
            (again if marked[number] and marked[entry[0]] else kept).add(entry)
        if marked[number]:
            kept.update(entry for entry in inputs if not marked[entry[0]])

    def size(entry: Entry) -> int:
        return _size(nodes[entry[0]], entry[1], listed)

    changes = Counter[int]()  # bytes of gradients between a node and the next, less those before the node
    for entry, last in last_use.items():
        if sees[entry[0]]:
            changes[entry[0]] += size(entry)
            changes[last] -= size(entry)
    gradients = max(itertools.accumulate(changes[number] for number in range(len(nodes))))
    run = list(itertools.accumulate(node["op"] != "null" and not mark for node, mark in zip(nodes, marked)))
    segments = Counter[int]()
    for entry in again:
        segments[run[entry[0]]] += size(entry)
    total = sum(map(size, [*kept, *heads])) + gradients + max(segments.values(), default=0)
    on_cpu = any(node["op"] == "BatchNorm" and mark for node, mark in zip(nodes, marked))  # see recompute
    return round(total * SCATTERED) if on_cpu else total


def _read(number: int, node: Node, inputs: list[Entry]) -> list[Entry]:
    """The outputs of nodes that the backward pass of this one reads."""
    op, attrs = node["op"], node.get("attrs", {})
    relu = op == "Activation" and attrs["act_type"] == "relu"
    reads = OUTPUT if relu else READS.get(attrs["op_type"] if op == "Custom" else op, INPUTS | OUTPUT)
    outputs = [(number, 0)] if reads & OUTPUT else [(number, 1)] if op == "Dropout" else []  # its mask
    return [*inputs, *outputs] if reads & INPUTS else outputs


def _size(node: Node, output: int, listed: dict[str, int]) -> int:
    """Bytes of an output of a node; 0 for variables, and for the statistics of a batch norm, which are small."""
    if node["op"] == "null" or (node["op"] == "BatchNorm" and output):
        return 0
    names = f"{node['name']}_output{output}", f"{node['name']}_output"  # a mask is not listed, and is as the output
    return next(listed[name] for name in names if name in listed)


def sizes(symbol: mx.sym.Symbol, image_shape: tuple[int, int, int], batch: int) -> dict[str, int]:
    """Bytes of each output that a symbol lists, by its name there."""
    internals = symbol.get_internals()
    shapes = internals.infer_shape_partial(data=(batch, *image_shape))[1]
    types = internals.infer_type(**dict.fromkeys(symbol.list_arguments(), "float32"))[1]
    return {name: math.prod(shape) * np.dtype(dtype).itemsize
            for name, shape, dtype in zip(internals.list_outputs(), shapes, types)}
