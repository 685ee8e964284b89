# SPDX-License-Identifier: Apache-2.0
"""The memory that a network's maps take in training, from the graph alone: nothing is computed or set aside.

``kept + gradients + segment`` bytes:

- *kept*: every map that a backward pass reads (the table of operators says which), once; the outputs, and the gradients
  given for them;
- *gradients*: the most that are held between two layers: of the maps that the second reads or that pass by it;
- *segment*, where the recompute pass marked layers: the maps of the largest run of marked layers, which are there again
  for its backward pass. They are not among the kept ones, unless a layer that is not marked reads them.

The sum differs from MXNet's own plan, for the presets that are convolutions, by up to 3 % on GPUs, 14 % for small
batches in 16 bits, 12 % with ``memonger``; 8 % on CPUs, 16 % in 16 bits; but DenseNets are 14 to 22 % below with either
of the last three. With ``memonger`` on CPUs MXNet lays few segments over each other, and its plan is 1.1 to 2.7 times
the sum. There the sum is multiplied by ``SCATTERING_FACTOR``: most presets are within 15 % in float32 then, and all
between -33 % and +59 %. ViTs are up to 7 % below on GPUs, 22 % in 16 bits, 30 % with ``memonger``, and 58 % above with
``memonger`` on CPUs.
"""
from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Collection

from recognition.networks.graph import Entry, Graph, Node
from recognition.networks.operators.operator import INPUTS, OUTPUT
from recognition.networks.recompute import ATTRIBUTE
from recognition.networks.shapes import all_shapes

SCATTERING_FACTOR = 1.8  # of the plan with memonger on CPUs
ITEMSIZES = {"bfloat16": 2, "float16": 2, "float64": 8, "int64": 8, "int8": 1, "uint8": 1, "bool": 1}  # others: 4


def maps_memory(graph: Graph, image_shape: tuple[int, int, int], batch: int,
                scattering: float = SCATTERING_FACTOR, not_kept: Collection[str] = ()) -> int:
    """Bytes that a training executor sets aside for ``batch`` images (3, H, W): maps and the gradients between layers.

    ``graph`` is the bound one, after the passes. Parameters, their gradients and momentum are not counted.

    :param scattering: what the sum is multiplied by with ``memonger`` on CPUs.
    :param not_kept: names of nodes whose maps the backward pass computes again one at a time.
    """
    nodes, heads = graph.nodes, [head._replace(version=0) for head in graph.heads]
    shapes, itemsizes = all_shapes(graph, (batch, *image_shape)), _itemsizes(graph)
    marked = [ATTRIBUTE in node.attrs for node in nodes]
    sees: list[bool] = []  # whether a node depends on the images; the gradients of what does not come at the end
    kept, last_use = set(heads), dict[Entry, int]()
    again: set[Entry] = set()  # read from the second run
    for number, node in enumerate(nodes):
        inputs = [entry._replace(version=0) for entry in node.inputs]
        sees.append(node.name == "data" or any(sees[entry.node] for entry in inputs))
        last_use.update(dict.fromkeys(inputs, number))
        for entry in _read(graph, number):
            (again if marked[number] and marked[entry.node] else kept).add(entry)
        if marked[number]:
            kept.update(entry for entry in inputs if not marked[entry.node])

    kept -= {entry for entry in kept if nodes[entry.node].name in not_kept}

    def size(entry: Entry) -> int:
        """Bytes of an output; 0 for variables, and for the statistics of a batch norm, which are small."""
        if nodes[entry.node].is_variable or (nodes[entry.node].op == "BatchNorm" and entry.output):
            return 0
        return math.prod(shapes[entry.node][entry.output]) * itemsizes[entry.node]

    changes = Counter[int]()  # bytes of gradients between a node and the next, less those before the node
    for entry, last in last_use.items():
        if sees[entry.node]:
            changes[entry.node] += size(entry)
            changes[last] -= size(entry)
    gradients = max(itertools.accumulate(changes[number] for number in range(len(nodes))))
    run = list(itertools.accumulate(not node.is_variable and not mark for node, mark in zip(nodes, marked)))
    segments = Counter[int]()
    for entry in again:
        segments[run[entry.node]] += size(entry)
    total = sum(map(size, [*kept, *heads])) + gradients + max(segments.values(), default=0)
    on_cpu = any(node.op == "BatchNorm" and mark for node, mark in zip(nodes, marked))  # see recompute
    return round(total * scattering) if on_cpu else total


def _read(graph: Graph, number: int) -> list[Entry]:
    """The outputs of nodes that the backward pass of node ``number`` reads."""
    node = graph.nodes[number]
    if node.is_variable:
        return []
    relu = node.op == "Activation" and node.values.act_type == "relu"
    reads = OUTPUT if relu else node.operator.reads
    outputs = [Entry(number)] if reads & OUTPUT else [Entry(number, 1)] if node.op == "Dropout" else []  # its mask
    return [*(entry._replace(version=0) for entry in node.inputs), *outputs] if reads & INPUTS else outputs


def _itemsizes(graph: Graph) -> list[int]:
    """Bytes of a number in the outputs of each node, those of its first input unless it names another type."""
    found: list[int] = []
    for node in graph.nodes:
        dtype = "float32" if node.is_variable else getattr(node.values, "dtype", "None")
        found.append(found[node.inputs[0].node] if dtype == "None" and node.inputs else ITEMSIZES.get(dtype, 4))
    return found


def heavy(node: Node) -> bool:
    """True for a convolution that multiplies much for each number that it reads, which a depthwise one does not."""
    return node.op in ("Convolution", "Convolution_v1") and node.values.num_group == 1
