# SPDX-License-Identifier: Apache-2.0
"""The part of a ``-symbol.json`` that one layer needs: the graph is cut to it before anything of it is judged.

Checkpoints of other trainers hold the head and the loss, too: operators that no network of images is made of, labels,
two nodes of one name. None of it counts for the embedding.
"""
from __future__ import annotations

from typing import Any


def needed(graph: dict[str, Any], layer: str) -> dict[str, Any] | None:
    """The parsed JSON with the nodes that the operator named ``layer`` needs, and its first output as the only head.

    Operators of one name get names of their own, but for ``layer``; two variables of one name stay, for the check.
    Nothing but names and inputs is looked at here.

    :raises ValueError: if the nodes are no list of nodes, or if several operators have that name.
    :return: None if no operator has that name
    """
    nodes = graph["nodes"]
    places = [place for place, node in enumerate(nodes)
              if isinstance(node, dict) and node.get("name") == layer and node.get("op") != "null"]
    if not places:
        return None
    if len(places) > 1:
        raise ValueError(f"found {len(places)} layers named {layer!r}, expected one")
    wanted: set[int] = set()
    waiting = places[:]
    while waiting:
        place = waiting.pop()
        if place not in wanted:
            wanted.add(place)
            waiting += _inputs(nodes, place)
    order = sorted(wanted)
    new = {old: place for place, old in enumerate(order)}
    kept = [{**nodes[old], "inputs": [[new[entry[0]], *entry[1:]] for entry in nodes[old].get("inputs", [])]}
            for old in order]
    _name_apart(kept, layer)
    return {**graph, "nodes": kept, "heads": [[new[places[0]], 0, 0]]}


def _inputs(nodes: list[Any], place: int) -> list[int]:
    node = nodes[place]
    inputs = node.get("inputs", []) if isinstance(node, dict) else None
    if not isinstance(inputs, list):
        raise ValueError(f"node {place}: found {repr(node)[:60]}, expected a node with a list of inputs")
    for entry in inputs:
        if not (isinstance(entry, list) and entry and type(entry[0]) is int and 0 <= entry[0] < place):
            raise ValueError(f"node {place}: found {repr(entry)[:60]}, expected [a node before this one, one of its "
                             "outputs, 0]")
    return [entry[0] for entry in inputs]


def _name_apart(nodes: list[dict[str, Any]], layer: str) -> None:
    """Give operators whose name another node has a number behind it."""
    taken = {str(node.get("name")) for node in nodes if node.get("op") == "null"} | {layer}
    for node in nodes:
        name = node.get("name")
        if node.get("op") == "null" or name == layer or not isinstance(name, str):
            continue
        number = 1
        while node["name"] in taken:
            number += 1
            node["name"] = f"{name}_{number}"
        taken.add(node["name"])
