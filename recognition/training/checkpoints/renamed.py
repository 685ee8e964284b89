# SPDX-License-Identifier: Apache-2.0
"""Arrays of a checkpoint whose network is the run's but for names of layers: which array stands at which place.

Older recipes call some layers otherwise: the MobileFaceNet of 2018 has ``fc1_weight`` where ``y1`` has
``pre_fc1_weight``.
"""
from __future__ import annotations

import itertools
from pathlib import Path
from typing import NamedTuple

from recognition.errors import UserError
from recognition.networks.graph import Graph
from recognition.networks.operators.operator import Shape
from recognition.networks.shapes import infer_shapes
from recognition.networks.symbol_file import read_network


class _Layer(NamedTuple):
    """An operator with arrays of its own."""

    kind: tuple[str, tuple[tuple[int, Shape], ...]]  # the operator, and places and shapes of these inputs
    names: tuple[str, ...]  # of the arrays


def renamed(graph: Graph, symbol: Path, image_shape: tuple[int, int, int]) -> dict[str, str]:
    """Map the names of arrays of ``graph`` that a checkpoint lacks to its names for the arrays at the same places.

    Both networks must have layers of the same operators and shapes in the same order, and each name that is in both
    must be of the same place. Of neighbours that differ in names no two may be alike: which is which would be a guess.

    :param symbol: the file of the checkpoint's network; ``image_shape``: (3, H, W).
    :return: empty if there is no such file, if it is refused, or if the networks differ by more than names
    """
    if not symbol.is_file():
        return {}
    try:
        theirs = _layers(read_network(symbol), image_shape)
    except UserError:
        return {}
    ours = _layers(graph, image_shape)
    if [layer.kind for layer in ours] != [layer.kind for layer in theirs]:
        return {}
    pairs = [(mine, other) for layer, same in zip(ours, theirs) for mine, other in zip(layer.names, same.names)]
    in_ours, in_theirs = ({pair[side] for pair in pairs} for side in (0, 1))
    found = {mine: other for mine, other in pairs if mine != other}
    if any(mine in in_theirs or other in in_ours for mine, other in found.items()):
        return {}  # a name that both have is of different places
    if len({*pairs}) != len(in_ours) or len(in_ours) != len(in_theirs) or _ambiguous(ours, found):
        return {}
    return found


def _ambiguous(layers: list[_Layer], found: dict[str, str]) -> bool:
    """True if two layers of one kind, with no layer of known name between them, both have other names."""
    for other, run in itertools.groupby(layers, key=lambda layer: any(name in found for name in layer.names)):
        kinds = [layer.kind for layer in run]
        if other and len(set(kinds)) < len(kinds):
            return True
    return False


def _layers(graph: Graph, image_shape: tuple[int, int, int]) -> list[_Layer]:
    found = infer_shapes(graph, image_shape)
    shapes = {**found.arguments, **found.auxiliary}
    layers = []
    for node in graph.nodes:
        arrays = [(place, graph.nodes[entry.node].name) for place, entry in enumerate(node.inputs)
                  if graph.nodes[entry.node].name in shapes]
        if arrays:
            kind = (node.op, tuple((place, shapes[name]) for place, name in arrays))
            layers.append(_Layer(kind, tuple(name for _, name in arrays)))
    return layers
