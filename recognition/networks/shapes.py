# SPDX-License-Identifier: Apache-2.0
"""The shapes of a network's parameters and maps for images of a given size, as MXNet infers them."""
from __future__ import annotations

import math
from typing import NamedTuple

from recognition.errors import UserError
from recognition.networks.graph import Graph, Node
from recognition.networks.operators.operator import Shape, ShapeError, merged

MOST_NUMBERS = 2 ** 31 - 1  # of an array: MXNet 1.9.1 counts them in 32 bits, and does not notice when it cannot
MOST_AN_IMAGE = 1 << 31  # of all layers and parameters: r2060 has 0.7 of it


class Shapes(NamedTuple):
    """Shapes by name, in the order in which the graph lists them; ``data`` is not among the arguments."""

    arguments: dict[str, Shape]
    auxiliary: dict[str, Shape]
    output: Shape


class LayerError(UserError):
    """Error about a layer that cannot take what it would get; ``layer says: why``."""


def infer_shapes(graph: Graph, image_shape: tuple[int, int, int], batch: int = 1) -> Shapes:
    """Shapes for ``data`` of ``batch`` images (3, H, W); ``output`` is that of the first output, (batch, emb_size).

    :raises UserError: if the network cannot take images of this size; it names the layer.
    """
    try:
        found = all_shapes(graph, (batch, *image_shape))
    except LayerError as error:
        channels, height, width = image_shape
        raise UserError(f"image_shape: found {height}x{width}x{channels}, expected images that all layers can take; "
                        f"{error}") from error
    _check_sizes(graph, found, (batch, *image_shape))
    by_name = {node.name: shapes[0] for node, shapes in zip(graph.nodes, found) if node.is_variable}
    return Shapes({name: by_name[name] for name in graph.list_arguments() if name != "data"},
                  {name: by_name[name] for name in graph.list_auxiliary_states()},
                  found[graph.heads[0].node][graph.heads[0].output])


def all_shapes(graph: Graph, data: Shape) -> list[list[Shape]]:
    """The shapes of each node's outputs, in the order of nodes, for ``data`` (N, 3, H, W).

    A shape of which nothing is known is (), and a size that is not known 0.

    :raises UserError: if a layer cannot take what it gets, or gives nothing.
    """
    found = [[_written(node, data)] if node.is_variable else [()] * node.operator.outputs(node.values)
             for node in graph.nodes]
    order = [place for place, node in enumerate(graph.nodes) if not node.is_variable]
    while True:  # forward, and where that leaves something open, backward and forward again
        changed = [_infer(graph.nodes[place], found, place, data) for place in order]
        if not any(changed) or all(shape and 0 not in shape for shapes in found for shape in shapes):
            return found
        order.reverse()


def _written(node: Node, data: Shape) -> Shape:
    return data if node.name == "data" else tuple(node.values)


def _infer(node: Node, found: list[list[Shape]], place: int, data: Shape) -> bool:
    """Complete the shapes around a node; returns whether anything changed."""
    ins, outs = [found[entry.node][entry.output] for entry in node.inputs], list(found[place])
    known = list(ins)
    complete = all(shape and 0 not in shape for shape in ins)
    try:
        node.operator.shape(node.values, ins, outs)
        for entry, before, after in zip(node.inputs, known, ins):
            if before != after:
                found[entry.node][entry.output] = merged(found[entry.node][entry.output], after)
    except ShapeError as error:
        raise LayerError(f"{node.name} says: {error}") from error
    # MXNet divides by zero in a layer behind one that gives nothing, which ends the process.
    if complete and any(0 in out for out in outs):
        raise UserError(f"{node.name} has an output of {next(out for out in outs if 0 in out)} for images {data}, "
                        "expected some numbers in it")
    changed = outs != found[place] or ins != known
    found[place] = outs
    return changed


def _check_sizes(graph: Graph, found: list[list[Shape]], data: Shape) -> None:
    """Check sizes, which MXNet does not: it writes over other memory if an array has too many numbers.

    :raises UserError: with the name of the layer.
    """
    sizes = [(name, math.prod(shape)) for node, shapes in zip(graph.nodes, found)
             for name, shape in zip(node.outputs(), shapes)]
    for name, size in sizes:
        if size > MOST_NUMBERS:
            raise UserError(f"{name} would have {size} numbers for images {data}, expected at most {MOST_NUMBERS}")
    total = sum(size for _, size in sizes)
    if total > MOST_AN_IMAGE * data[0]:
        raise UserError(f"all layers together have {total:,} numbers for images {data}, expected at most "
                        f"{MOST_AN_IMAGE:,} an image")
