# SPDX-License-Identifier: Apache-2.0
"""``memonger`` for MXNet: its executor computes a second time what carries an attribute.

So nothing global is set, and one bound network does not change another. It never does so with dropout, whose mask would
differ.
"""
from __future__ import annotations

from recognition.networks.graph import Graph, Node
from recognition.networks.recompute import computed_again

ATTRIBUTE = "__force_mirroring__"


def recompute(graph: Graph, image_shape: tuple[int, ...] = (3, 112, 112), on_gpu: bool = False) -> Graph:
    """``graph`` marked so that a training executor keeps few maps; outputs, gradients and statistics are the same.

    ``on_gpu``: batch norm is left out, since cuDNN moves the statistics in the forward pass and would do so twice. On
    the CPU they are moved in the backward pass, once.
    """
    nodes = list(graph.nodes)
    for place in computed_again(graph, image_shape):
        node = nodes[place]
        if not (on_gpu and node.op == "BatchNorm"):
            nodes[place] = Node(node.operator, node.name, {**node.attrs, ATTRIBUTE: "True"}, node.inputs)
    return Graph(nodes, graph.heads)
