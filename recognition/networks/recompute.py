# SPDX-License-Identifier: Apache-2.0
"""``memonger``: a graph pass that trades time for memory. Most maps are computed a second time in the backward pass.

Between two kept maps lies a segment, which the backward pass computes anew from the first (Chen et al., arXiv
1604.06174). Only a cut of the graph can be kept, a map through which everything behind it is reached: in a residual
network, the sums. MXNet's executor recomputes what carries the attribute ``__force_mirroring__``, so that nothing
global is set and one bound network does not change another. It never does so with dropout, whose mask would differ.
"""
from __future__ import annotations

import json
import math
from typing import NamedTuple

from recognition.engines.mxnet.imports import mx
from recognition.networks.passes import Node

ATTRIBUTE = "__force_mirroring__"
BUDGETS = 40  # sizes of a segment that are tried


class _Layer(NamedTuple):
    """A node of the graph that depends on the images."""

    node: int
    size: int  # numbers in its outputs, for one image
    cut: bool  # all later layers see the images through this one alone


def recompute(symbol: mx.sym.Symbol, image_shape: tuple[int, ...] = (3, 112, 112), on_gpu: bool = False,
              ) -> mx.sym.Symbol:
    """``symbol`` marked so that a training executor keeps few maps; outputs, gradients and statistics are the same.

    ``on_gpu``: batch norm is left out, since cuDNN moves the statistics in the forward pass and would do so twice. On
    the CPU they are moved in the backward pass, once.
    """
    graph = json.loads(symbol.tojson(remove_amp_cast=False))  # or it would be of float32 again
    layers = _layers(symbol, graph["nodes"], image_shape)
    kept = _kept(layers)
    for layer in layers:
        node = graph["nodes"][layer.node]
        if layer.node not in kept and not (on_gpu and node["op"] == "BatchNorm"):
            node.setdefault("attrs", {})[ATTRIBUTE] = "True"
    return mx.sym.load_json(json.dumps(graph))


def _layers(symbol: mx.sym.Symbol, nodes: list[Node], image_shape: tuple[int, ...]) -> list[_Layer]:
    internals = symbol.get_internals()
    shapes = dict(zip(internals.list_outputs(), internals.infer_shape_partial(data=(1, *image_shape))[1]))
    last_use: dict[int, int] = {}  # of each node that depends on the images
    for number, node in enumerate(nodes):
        sources = [entry[0] for entry in node["inputs"] if entry[0] in last_use]
        if sources or node["name"] == "data":
            last_use[number] = number
            last_use.update(dict.fromkeys(sources, number))
    layers, reach = [], 0  # reach: the last node that uses anything before this one
    for number, use in last_use.items():
        if nodes[number]["op"] != "null":
            size = math.prod(shapes.get(nodes[number]["name"] + "_output", ()))
            layers.append(_Layer(number, size, cut=reach <= number))
        reach = max(reach, use)
    return layers


def _kept(layers: list[_Layer]) -> set[int]:
    """The nodes to keep: of the choices tried, the one with the least kept maps and largest segment together."""
    total = sum(layer.size for layer in layers)
    choices = [_segments(layers, total * 0.8 ** step) for step in range(BUDGETS)]
    return min(choices, key=lambda choice: choice[0])[1]


def _segments(layers: list[_Layer], budget: float) -> tuple[int, set[int]]:
    """Cut wherever a segment has grown to ``budget``: the memory that takes, and the nodes kept."""
    kept, held, segment, largest = set(), 0, 0, 0
    for layer in layers:
        segment += layer.size
        largest = max(largest, segment)
        if layer.cut and segment >= budget:
            kept.add(layer.node)
            held, segment = held + layer.size, 0
    return held + largest, kept
