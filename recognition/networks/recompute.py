# SPDX-License-Identifier: Apache-2.0
"""``memonger``: the choice of maps to keep for the backward pass, and of layers to compute again in it.

Between two kept maps lies a segment, which the backward pass computes anew from the first (Chen et al., arXiv
1604.06174). Only a cut of the graph can be kept, a map through which everything behind it is reached: in a residual
network, the sums. MXNet's executor computes a second time the nodes that carry an attribute, but never dropout, whose
mask would differ.
"""
from __future__ import annotations

import math
from typing import NamedTuple

from recognition.networks.cuts import cuts, depend_on_images
from recognition.networks.graph import Graph, Node
from recognition.networks.shapes import all_shapes

ATTRIBUTE = "__force_mirroring__"  # of the nodes that MXNet computes a second time
BUDGETS = 40  # sizes of a segment that are tried


class _Layer(NamedTuple):
    """A node of the graph that depends on the images."""

    node: int
    size: int  # numbers in its outputs, for one image
    cut: bool  # all later layers see the images through this one alone


def computed_again(graph: Graph, image_shape: tuple[int, ...] = (3, 112, 112)) -> list[int]:
    """Places of the nodes to compute a second time, for images (3, H, W). Of the choices of segments that are tried,
    it is the one with the smallest sum of kept maps and largest segment."""
    layers = _layers(graph, image_shape)
    total = sum(layer.size for layer in layers)
    choices = [_segments(layers, total * 0.8 ** step) for step in range(BUDGETS)]
    kept = min(choices, key=lambda choice: choice[0])[1]
    return [layer.node for layer in layers if layer.node not in kept]


def recompute(graph: Graph, image_shape: tuple[int, ...] = (3, 112, 112), on_gpu: bool = False) -> Graph:
    """Mark ``graph`` so that a training executor keeps few maps; outputs, gradients and statistics stay the same.

    ``on_gpu``: batch norm is left out, since cuDNN moves the statistics in the forward pass and would do so twice. On
    the CPU they are moved in the backward pass, once.
    """
    nodes = list(graph.nodes)
    for place in computed_again(graph, image_shape):
        node = nodes[place]
        if not (on_gpu and node.op == "BatchNorm"):
            nodes[place] = Node(node.operator, node.name, {**node.attrs, ATTRIBUTE: "True"}, node.inputs)
    return Graph(nodes, graph.heads)


def _layers(graph: Graph, image_shape: tuple[int, ...]) -> list[_Layer]:
    shapes = all_shapes(graph, (1, *image_shape))
    seen = depend_on_images(graph)
    cut = cuts(graph, seen)
    return [_Layer(place, sum(map(math.prod, shapes[place][: len(graph.nodes[place].outputs())])), place in cut)
            for place in sorted(seen) if not graph.nodes[place].is_variable]


def _segments(layers: list[_Layer], budget: float) -> tuple[int, set[int]]:
    """Cut wherever a segment has grown to ``budget``; returns the numbers held at once, and the nodes kept."""
    kept, held, segment, largest = set(), 0, 0, 0
    for layer in layers:
        segment += layer.size
        largest = max(largest, segment)
        if layer.cut and segment >= budget:
            kept.add(layer.node)
            held, segment = held + layer.size, 0
    return held + largest, kept
