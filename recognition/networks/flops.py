# SPDX-License-Identifier: Apache-2.0
"""How much a network computes and how many parameters it has: what ``count_flops`` prints at the start."""
from __future__ import annotations

import math
from collections.abc import Container
from typing import NamedTuple

from recognition.networks.graph import Graph
from recognition.networks.shapes import all_shapes


class Flops(NamedTuple):
    """Counts for one image. A multiply-add is two operations, as in the public recipes."""

    operations: int  # all operators
    products: int  # of which convolutions and fully connected layers, which is what the public recipes count
    parameters: int  # numbers in arguments but the images; without moving statistics
    unknown: tuple[str, ...]  # operators that are not counted


def count_flops(graph: Graph, image_shape: tuple[int, ...] = (3, 112, 112),
                places: Container[int] | None = None) -> Flops:
    """Operations of the forward pass for ``image_shape`` (3, H, W), and parameters.

    ``places`` are those of the nodes to count, if not all.
    """
    shapes = all_shapes(graph, (1, *image_shape))
    operations = products = 0
    unknown: set[str] = set()
    for place, (node, outputs) in enumerate(zip(graph.nodes, shapes)):
        if node.is_variable or (places is not None and place not in places):
            continue
        if node.operator.flops is None:
            unknown.add(node.op)
            continue
        counted = node.operator.flops(node.values, [shapes[entry.node][entry.output] for entry in node.inputs],
                                      outputs[0])
        operations += counted
        products += counted if node.operator.is_product else 0
    sizes = {node.name: math.prod(outputs[0]) for node, outputs in zip(graph.nodes, shapes) if node.is_variable}
    parameters = sum(sizes[name] for name in graph.list_arguments() if name != "data")
    return Flops(operations, products, parameters, tuple(sorted(unknown)))


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
