# SPDX-License-Identifier: Apache-2.0
"""The part of a graph that depends on the images, and its cuts: nodes through which all behind them is reached."""
from __future__ import annotations

from recognition.networks.graph import Graph


def depend_on_images(graph: Graph) -> set[int]:
    """Places of the nodes that depend on the images. One that only has their shape, and what is computed from it, does
    not: a mask for example, which many layers may read."""
    found = set[int]()
    for place, node in enumerate(graph.nodes):
        shape_alone = node.operator.shape_alone and all(graph.nodes[entry.node].is_variable for entry in node.inputs)
        if node.name == "data" or (not shape_alone and any(entry.node in found for entry in node.inputs)):
            found.add(place)
    return found


def cuts(graph: Graph, seen: set[int]) -> set[int]:
    """The nodes among ``seen``, which depend on the images, through which alone all later ones see them."""
    last_use = {entry.node: place for place in sorted(seen) for entry in graph.nodes[place].inputs}
    found, reach = set[int](), 0  # reach: the last node that reads what is before this one
    for place in sorted(seen):
        if reach <= place:
            found.add(place)
        reach = max(reach, last_use.get(place, place))
    return found
