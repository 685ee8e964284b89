# SPDX-License-Identifier: Apache-2.0
"""Graph passes: how a symbol runs, never what it computes. Run before binding; the result is never saved.

A pass is a set of rules, one an operator, that :func:`rewrite` applies to each node of the graph. The names of
variables and outputs stay as they are, and so does the order of arguments and auxiliary states.
"""
from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Callable, NamedTuple, Optional

from recognition.mxnet_compat import mx

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


def fast_prelu(symbol: mx.sym.Symbol, image_shape: tuple[int, ...] = (3, 112, 112)) -> mx.sym.Symbol:
    """PReLU of maps as ``relu(x) - gamma * (relu(x) - x)``, in operators that oneDNN has, for the CPU.

    The product, and the difference as a sum with -1 times x, are depthwise 1 x 1 convolutions: these, ``Activation``
    and additions leave maps in oneDNN's blocked layout, while ``LeakyReLU``, subtractions and broadcast products bring
    them back to NCHW, and the gradient of a broadcast slope is a slow sum. Outputs are equal, save that infinity gives
    NaN; gradients are equal up to rounding. (``LeakyReLU`` itself gives gamma times the right gradient of gamma where
    MXNet lets it write over its input, as on maps in NCHW. The pass gives the right one.)

    ``image_shape`` (3, H, W) only tells the number of channels of each map. PReLU of anything but maps (N, C, H, W),
    that is of features behind a fully connected layer, stays as it is.
    """
    internals = symbol.get_internals()
    shapes = dict(zip(internals.list_outputs(), internals.infer_shape_partial(data=(1, *image_shape))[1]))

    def rule(graph: Graph, node: Node, inputs: list[Entry]) -> Entry | None:
        shape = shapes[node["name"] + "_output"]
        if node.get("attrs", {}).get("act_type") != "prelu" or len(shape) != 4:
            return None
        data, gamma = inputs
        slopes = graph.nodes[gamma.node]
        # Behind a reshape MXNet could not infer it any more.
        slopes["attrs"] = {**slopes.get("attrs", {}), "__shape__": str(shapes[slopes["name"]])}
        return _add_prelu(graph, node["name"], data, gamma, shape[1], shared=shapes[slopes["name"]] == (1,))

    return rewrite(symbol, {"LeakyReLU": rule})


def _add_prelu(graph: Graph, name: str, data: Entry, gamma: Entry, channels: int, shared: bool) -> Entry:
    """PReLU of ``data`` (N, channels, H, W); ``gamma`` (channels,), or (1,) if ``shared``, as Gluon's has it."""

    def product(suffix: str, data: Entry, factors: Entry) -> Entry:
        return graph.add("Convolution", name + suffix, data, factors, kernel=(1, 1), num_filter=channels,
                         num_group=channels, no_bias=True)

    slopes = graph.add("Reshape", name + "_slopes", gamma, shape=(-1, 1, 1, 1))
    if shared:
        slopes = graph.add("broadcast_axis", name + "_repeated", slopes, axis=0, size=channels)
    minus_slopes = graph.add("negative", name + "_minus_slopes", slopes)
    minus_one = graph.add("negative", name + "_minus_one", graph.add("ones_like", name + "_one", slopes))
    positive = graph.add("Activation", name + "_positive", data, act_type="relu")
    # Not x - relu(x): bound for inference, MXNet fuses that sum into the convolution and gets it wrong.
    excess = graph.add("elemwise_add", name + "_excess", positive, product("_minus_data", data, minus_one))
    return graph.add("elemwise_add", name, positive, product("_scaled", excess, minus_slopes))
