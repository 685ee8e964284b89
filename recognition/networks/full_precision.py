# SPDX-License-Identifier: Apache-2.0
"""A pass for networks that were trained in 16 bits: the same network in float32.

The recipes' fp16 option casts the images to float16, and the features back; MXNet's AMP puts casts everywhere. Without
the casts, with arrays as float32, the function is the same up to the rounding of 16 bits.
"""
from __future__ import annotations

from recognition.networks.graph import VARIABLE, Entry, Graph, GraphMaker, Node, rewrite
from recognition.networks.operators import OPERATORS

CASTS = ("Cast", "amp_cast")
_OTHER = ("float16", "bfloat16", "float64")
_OTHER_NUMBERS = ("1", "2", "12")  # the same types, as a variable's attribute has them
_FLOATS = (*_OTHER, "float32")


def full_precision(graph: Graph, output: str) -> Graph:
    """The graph in float32. One that has no other type of floating point stays as it is.

    :param output: the name of a layer that stays, also where it is a cast
    """
    if not any(_is_other(node) for node in graph.nodes):
        return graph

    def rule(maker: GraphMaker, node: Node, inputs: list[Entry]) -> Entry | None:
        if node.op in CASTS and node.values.dtype in _FLOATS:
            if node.name == output:
                return maker.append(Node(OPERATORS["_copy"], node.name, {}, tuple(inputs)))
            return inputs[0]
        if not _is_other(node):
            return None
        attrs = {key: "float32" if key == "dtype" else value for key, value in node.attrs.items()
                 if key != "__dtype__"}
        return maker.append(Node(node.operator, node.name, attrs, tuple(inputs)))

    return rewrite(graph, {node.op: rule for node in graph.nodes})


def _is_other(node: Node) -> bool:
    if node.operator is VARIABLE:
        return node.attrs.get("__dtype__") in _OTHER_NUMBERS
    return node.attrs.get("dtype") in _OTHER
