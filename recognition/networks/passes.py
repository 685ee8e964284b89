# SPDX-License-Identifier: Apache-2.0
"""Graph passes: how a symbol runs, never what it computes. Run before binding; the result is never saved.

A pass is a set of rules, one an operator, that :func:`rewrite` applies to each node of the graph. The names of
variables and outputs stay as they are, and so does the order of arguments and auxiliary states.
"""
from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Callable, NamedTuple, Optional

from recognition.engines.mxnet.imports import mx

Node = dict[str, Any]


class Entry(NamedTuple):
    """An output of a node: the node's place in the graph, the output's number, and MXNet's version (1: a state)."""

    node: int
    output: int = 0
    version: int = 0


class Graph:
    """A graph in the making: nodes as in a symbol's JSON, each after its inputs."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []

    def add(self, op: str, name: str, *inputs: Entry, **attrs: Any) -> Entry:
        """Append an operator; returns its first output."""
        return self.append({"op": op, "name": name, "attrs": {key: str(value) for key, value in attrs.items()}}, inputs)

    def append(self, node: Node, inputs: Any) -> Entry:
        self.nodes.append({**node, "inputs": [list(entry) for entry in inputs]})
        return Entry(len(self.nodes) - 1)

    def symbol(self, heads: list[Entry], attrs: Node) -> mx.sym.Symbol:
        variables = [index for index, node in enumerate(self.nodes) if node["op"] == "null"]
        return mx.sym.load_json(json.dumps({"nodes": self.nodes, "arg_nodes": variables, "attrs": attrs,
                                            "heads": [list(head) for head in heads]}))


# From a node and its inputs in the new graph: the output that takes the place of its only one, or None to keep it.
Rule = Callable[[Graph, Node, list[Entry]], Optional[Entry]]


def rewrite(symbol: mx.sym.Symbol, rules: Mapping[str, Rule]) -> mx.sym.Symbol:
    """A new symbol in which each node whose operator has a rule is replaced by what the rule adds to the graph."""
    source = json.loads(symbol.tojson())
    graph = Graph()
    places: list[Entry] = []  # of each old node's first output

    def moved(entry: list[int]) -> Entry:
        place = places[entry[0]]
        return Entry(place.node, place.output + entry[1], *entry[2:])

    for node in source["nodes"]:
        inputs = [moved(entry) for entry in node["inputs"]]
        rule = rules.get(node["op"])
        replaced = rule(graph, node, inputs) if rule else None
        places.append(replaced or graph.append(node, inputs))
    return graph.symbol([moved(head) for head in source["heads"]], source["attrs"])
