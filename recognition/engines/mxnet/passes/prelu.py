# SPDX-License-Identifier: Apache-2.0
"""A graph pass for the CPU: PReLU in operators that oneDNN has, forward and backward.

MXNet's own PReLU is three quarters of a step of y1: it is a scalar loop in the backward pass, and brings maps back from
oneDNN's blocked layout to NCHW, as subtractions and broadcast products do, too. Depthwise 1 x 1 convolutions,
``Activation`` and additions leave them in it. What counts is how often a map is read or written:

    PReLU(x) = gamma x + (1 - gamma) relu(x)             anywhere: 9 times forward
    -PReLU(-u) = u + (gamma - 1) relu(u)                  where the signs cost nothing: 7 times

The second form is for a PReLU between a batch norm, which gives ``u = -x`` once its own factor and offset are negated,
and convolutions, which take ``-PReLU(x)`` once their weights are.
"""
from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from typing import NamedTuple

from recognition.engines.mxnet.imports import mx
from recognition.networks.passes import Entry, Graph, Node, rewrite

Shapes = dict[str, tuple[int, ...]]


class _Signs(NamedTuple):
    """Names of the layers that take part in the second form."""

    activations: set[str]
    batch_norms: set[str]
    convolutions: set[str]


def fast_prelu(symbol: mx.sym.Symbol, image_shape: tuple[int, ...] = (3, 112, 112)) -> mx.sym.Symbol:
    """``symbol`` with every PReLU of maps (N, C, H, W) in one of the forms above; PReLU of features stays as it is.

    Outputs and gradients are equal up to rounding. (``LeakyReLU`` itself gives gamma times the right gradient of gamma
    where MXNet lets it write over its input, as on maps in NCHW. The pass gives the right one.)

    To be bound with a gradient, if only that of one parameter: bound without any, MXNet 1.9.1 fuses the sums into
    convolutions and gets them wrong. ``image_shape`` (3, H, W) only tells the sizes of maps.
    """
    internals = symbol.get_internals()
    shapes = dict(zip(internals.list_outputs(), internals.infer_shape_partial(data=(1, *image_shape))[1]))
    signs = _find_signs(json.loads(symbol.tojson()), shapes)

    def activation(graph: Graph, node: Node, inputs: list[Entry]) -> Entry | None:
        slopes = graph.nodes[inputs[-1].node]
        if not _is_prelu(node, slopes, shapes):
            return None
        # Behind a reshape MXNet could not infer it any more.
        slopes["attrs"] = {**slopes.get("attrs", {}), "__shape__": str(shapes[slopes["name"]])}
        return _add_prelu(graph, node["name"], *inputs, channels=shapes[node["name"] + "_output"][1],
                          shared=shapes[slopes["name"]] == (1,), negated=node["name"] in signs.activations)

    def batch_norm(graph: Graph, node: Node, inputs: list[Entry]) -> Entry | None:
        return _with_negated(graph, node, inputs, (1, 2)) if node["name"] in signs.batch_norms else None

    def convolution(graph: Graph, node: Node, inputs: list[Entry]) -> Entry | None:
        return _with_negated(graph, node, inputs, (1,)) if node["name"] in signs.convolutions else None

    return rewrite(symbol, {"LeakyReLU": activation, "BatchNorm": batch_norm, "Convolution": convolution})


def _is_prelu(node: Node, slopes: Node, shapes: Shapes) -> bool:
    """Of maps, with ``slopes`` that are a parameter: one a channel, or one in all."""
    output = shapes.get(node["name"] + "_output", ())
    return (node["op"] == "LeakyReLU" and node.get("attrs", {}).get("act_type") == "prelu" and len(output) == 4
            and slopes["op"] == "null" and shapes.get(slopes["name"]) in ((1,), output[1:2]))


def _find_signs(graph: Node, shapes: Shapes) -> _Signs:
    """Which PReLUs stand behind a batch norm of their own and in front of convolutions alone, whose weights are no
    larger than an image's map: larger ones cost more to negate than the map's passes that are saved."""
    nodes, signs = graph["nodes"], _Signs(set(), set(), set())
    count = Counter(node["name"] for node in nodes)  # a network of the user's own may use a name twice
    users: dict[int, list[tuple[Node | None, int]]] = defaultdict(list)
    for node in nodes:
        for place, entry in enumerate(node["inputs"]):
            users[entry[0]].append((node, place))
    for head in graph["heads"]:
        users[head[0]].append((None, 0))

    def takes_sign(node: Node | None, place: int, size: int) -> bool:
        if node is None or node["op"] != "Convolution" or place or count[node["name"]] > 1:
            return False
        weight = shapes.get(nodes[node["inputs"][1][0]]["name"], ())
        return bool(weight) and math.prod(weight) <= size

    for number, node in enumerate(nodes):
        if not node["inputs"] or not _is_prelu(node, nodes[node["inputs"][-1][0]], shapes) or count[node["name"]] > 1:
            continue
        before, size = nodes[node["inputs"][0][0]], math.prod(shapes[node["name"] + "_output"])
        if (before["op"] == "BatchNorm" and before.get("attrs", {}).get("fix_gamma") in ("False", "0")
                and count[before["name"]] == 1 and len(users[node["inputs"][0][0]]) == 1
                and users[number] and all(takes_sign(user, place, size) for user, place in users[number])):
            signs.activations.add(node["name"])
            signs.batch_norms.add(before["name"])
            signs.convolutions.update(user["name"] for user, _ in users[number] if user)
    return signs


def _with_negated(graph: Graph, node: Node, inputs: list[Entry], places: tuple[int, ...]) -> Entry:
    """``node`` with some of its inputs negated."""
    changed = [graph.add("negative", f"{node['name']}_minus_{place}", entry) if place in places else entry
               for place, entry in enumerate(inputs)]
    return graph.append(node, changed)


def _add_prelu(graph: Graph, name: str, data: Entry, gamma: Entry, *, channels: int, shared: bool,
               negated: bool) -> Entry:
    """PReLU of ``data`` (N, channels, H, W); ``gamma`` (channels,), or (1,) if ``shared``, as Gluon's has it.

    If ``negated``, ``data`` is -x and the result -PReLU(x).
    """

    def product(suffix: str, data: Entry, factors: Entry) -> Entry:
        return graph.add("Convolution", name + suffix, data, factors, kernel=(1, 1), num_filter=channels,
                         num_group=channels, no_bias=True)

    slopes = graph.add("Reshape", name + "_slopes", gamma, shape=(-1, 1, 1, 1))
    if shared:
        slopes = graph.add("broadcast_axis", name + "_repeated", slopes, axis=0, size=channels)
    positive = graph.add("Activation", name + "_positive", data, act_type="relu")
    if negated:
        factors = graph.add("_minus_scalar", name + "_factors", slopes, scalar=1.0)
        return graph.add("elemwise_add", name, data, product("_scaled", positive, factors))
    factors = graph.add("_rminus_scalar", name + "_factors", slopes, scalar=1.0)
    return graph.add("elemwise_add", name, product("_sloped", data, slopes), product("_scaled", positive, factors))
