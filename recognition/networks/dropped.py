# SPDX-License-Identifier: Apache-2.0
"""Passes for training alone: dropout before the embedding, and stochastic depth in residual networks.

They are for the graph that is trained, not for the one that a checkpoint holds: after training both compute the same.
"""
from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from recognition.errors import UserError
from recognition.networks.cuts import cuts, depend_on_images
from recognition.networks.graph import Entry, Graph, GraphMaker, Node, rewrite
from recognition.networks.lora import with_adapters


def as_trained(graph: Graph, config: Any) -> Graph:
    """The graph with what the options ``dropout``, ``drop_path`` and ``lora`` ask for.

    :raises UserError: if the network has no place for it.
    """
    graph = with_dropout(graph, config.dropout) if config.dropout >= 0 else graph
    graph = with_drop_path(graph, config.drop_path) if config.drop_path else graph
    return with_adapters(graph, config.lora) if config.lora else graph


def with_dropout(graph: Graph, share: float) -> Graph:
    """Dropout of this ``share`` before the embedding: in the place of the network's own, or before its last fully
    connected layer if it has none. 0: none.

    :raises UserError: if there is no place for it.
    """
    before = _needed_by(graph, (place for place, node in enumerate(graph.nodes) if node.op == "Convolution"))
    tail = [place for place in range(len(graph.nodes)) if place not in before]
    cut = cuts(graph, depend_on_images(graph))  # a dropout that is none belongs to a block
    own = {id(graph.nodes[place]) for place in tail if graph.nodes[place].op == "Dropout" and place in cut}
    layers = [graph.nodes[place] for place in tail if graph.nodes[place].op == "FullyConnected"]
    if not own and not layers:
        raise UserError("dropout: found a network without a fully connected layer behind its convolutions, expected "
                        "one, or dropout, before the embedding")

    def dropped(maker: GraphMaker, name: str, data: Entry) -> Entry:
        return maker.add("Dropout", name, data, p=share) if share else data

    def of_dropout(maker: GraphMaker, node: Node, inputs: list[Entry]) -> Entry | None:
        return dropped(maker, node.name, inputs[0]) if id(node) in own else None

    def of_layer(maker: GraphMaker, node: Node, inputs: list[Entry]) -> Entry | None:
        if own or node is not layers[-1]:
            return None
        return maker.append(node, [dropped(maker, f"{node.name}_dropout", inputs[0]), *inputs[1:]])

    return rewrite(graph, {"Dropout": of_dropout, "FullyConnected": of_layer})


def with_drop_path(graph: Graph, share: float) -> Graph:
    """Stochastic depth (Huang et al., arXiv 1603.09382): in training the n-th of N residual branches gives zero for
    ``share * n / (N - 1)`` of the images, from n = 0 on, and the more for the others. A branch is the longer of the
    two inputs of a sum through which all that follows sees the images.

    :raises UserError: if the network has no such sum.
    """
    branches = _branches(graph)
    if not branches:
        raise UserError("drop_path: found a network without residual sums, expected one that has them")
    shares = {place: share * number / max(1, len(branches) - 1) for number, place in enumerate(branches)}
    by_node = {id(graph.nodes[place]): (branches[place], shares[place]) for place in branches if shares[place]}

    def rule(maker: GraphMaker, node: Node, inputs: list[Entry]) -> Entry | None:
        if id(node) not in by_node:
            return None
        which, dropped = by_node[id(node)]
        inputs[which] = maker.add("Dropout", f"{node.name}_path", inputs[which], p=dropped, axes=(1, 2, 3))
        return maker.append(node, inputs)

    return rewrite(graph, dict.fromkeys((graph.nodes[place].op for place in branches), rule))


def _needed_by(graph: Graph, places: Iterable[int]) -> set[int]:
    """The nodes that those at ``places`` read, through others, and these themselves."""
    found, stack = set[int](), list(places)
    while stack:
        place = stack.pop()
        if place not in found:
            found.add(place)
            stack += [entry.node for entry in graph.nodes[place].inputs]
    return found


def _branches(graph: Graph) -> dict[int, int]:
    """The residual sums by their places in the graph, each with the number of its input that is the branch."""
    seen = depend_on_images(graph)
    cut, depth, found = cuts(graph, seen), dict[int, int](), dict[int, int]()  # depth: nodes on the longest way
    for place in sorted(seen):
        inputs = [entry.node for entry in graph.nodes[place].inputs]
        depth[place] = 1 + max((depth[source] for source in inputs if source in seen), default=-1)
        if graph.nodes[place].operator.is_sum and place in cut and seen.issuperset(inputs):
            depths = [depth[source] for source in inputs]
            if depths[0] != depths[1]:
                found[place] = depths.index(max(depths))
    return found
