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

import math
from collections import Counter, defaultdict
from typing import NamedTuple

from recognition.networks.graph import Entry, Graph, GraphMaker, Node, rewrite
from recognition.networks.operators.operator import Shape
from recognition.networks.shapes import all_shapes


class _Signs(NamedTuple):
    """Names of the layers that take part in the second form."""

    activations: set[str]
    batch_norms: set[str]
    convolutions: set[str]


def fast_prelu(graph: Graph, image_shape: tuple[int, ...] = (3, 112, 112)) -> Graph:
    """``graph`` with every PReLU of maps (N, C, H, W) in one of the forms above; PReLU of features stays as it is.

    Outputs and gradients are equal up to rounding. (``LeakyReLU`` itself gives gamma times the right gradient of gamma
    where MXNet lets it write over its input, as on maps in NCHW. The pass gives the right one.)

    To be bound with a gradient, if only that of one parameter: bound without any, MXNet 1.9.1 fuses the sums into
    convolutions and gets them wrong. ``image_shape`` (3, H, W) only tells the sizes of maps.
    """
    shapes = {node.output_name(0): found[0] for node, found in zip(graph.nodes, all_shapes(graph, (1, *image_shape)))}
    signs = _find_signs(graph, shapes)

    def activation(maker: GraphMaker, node: Node, inputs: list[Entry]) -> Entry | None:
        slopes = maker.nodes[inputs[-1].node]
        if not _is_prelu(node, slopes, shapes):
            return None
        # Behind a reshape MXNet could not infer it any more.
        maker.mark(inputs[-1], __shape__=str(shapes[slopes.name]))
        return _add_prelu(maker, node.name, *inputs, channels=shapes[node.output_name(0)][1],
                          shared=shapes[slopes.name] == (1,), negated=node.name in signs.activations)

    def batch_norm(maker: GraphMaker, node: Node, inputs: list[Entry]) -> Entry | None:
        return _with_negated(maker, node, inputs, (1, 2)) if node.name in signs.batch_norms else None

    def convolution(maker: GraphMaker, node: Node, inputs: list[Entry]) -> Entry | None:
        return _with_negated(maker, node, inputs, (1,)) if node.name in signs.convolutions else None

    return rewrite(graph, {"LeakyReLU": activation, "BatchNorm": batch_norm, "Convolution": convolution})


def _is_prelu(node: Node, slopes: Node, shapes: dict[str, Shape]) -> bool:
    """Whether it is a PReLU of maps, with ``slopes`` that are a parameter: one a channel, or one in all."""
    output = shapes[node.output_name(0)]
    return (node.op == "LeakyReLU" and node.values.act_type == "prelu" and len(output) == 4 and slopes.is_variable
            and shapes[slopes.name] in ((1,), output[1:2]))


def _find_signs(graph: Graph, shapes: dict[str, Shape]) -> _Signs:
    """Which PReLUs stand behind a batch norm of their own and in front of convolutions alone, whose weights are no
    larger than an image's map: larger ones cost more to negate than the map's passes that are saved."""
    nodes, signs = graph.nodes, _Signs(set(), set(), set())
    count = Counter(node.name for node in nodes)  # a network of the user's own may use a name twice
    users: dict[int, list[tuple[Node | None, int]]] = defaultdict(list)
    for node in nodes:
        for place, entry in enumerate(node.inputs):
            users[entry.node].append((node, place))
    for head in graph.heads:
        users[head.node].append((None, 0))

    def takes_sign(node: Node | None, place: int, size: int) -> bool:
        if node is None or node.op != "Convolution" or place or count[node.name] > 1:
            return False
        weight = nodes[node.inputs[1].node]
        return weight.is_variable and math.prod(shapes[weight.name]) <= size

    for number, node in enumerate(nodes):
        if not node.inputs or not _is_prelu(node, nodes[node.inputs[-1].node], shapes) or count[node.name] > 1:
            continue
        before, size = nodes[node.inputs[0].node], math.prod(shapes[node.output_name(0)])
        if (before.op == "BatchNorm" and not before.values.fix_gamma
                and count[before.name] == 1 and len(users[node.inputs[0].node]) == 1
                and users[number] and all(takes_sign(user, place, size) for user, place in users[number])):
            signs.activations.add(node.name)
            signs.batch_norms.add(before.name)
            signs.convolutions.update(user.name for user, _ in users[number] if user)
    return signs


def _with_negated(maker: GraphMaker, node: Node, inputs: list[Entry], places: tuple[int, ...]) -> Entry:
    """``node`` with some of its inputs negated."""
    changed = [maker.add("negative", f"{node.name}_minus_{place}", entry) if place in places else entry
               for place, entry in enumerate(inputs)]
    return maker.append(node, changed)


def _add_prelu(maker: GraphMaker, name: str, data: Entry, gamma: Entry, *, channels: int, shared: bool,
               negated: bool) -> Entry:
    """PReLU of ``data`` (N, channels, H, W); ``gamma`` (channels,), or (1,) if ``shared``, as Gluon's has it.

    If ``negated``, ``data`` is -x and the result -PReLU(x).
    """

    def product(suffix: str, data: Entry, factors: Entry) -> Entry:
        return maker.add("Convolution", name + suffix, data, factors, kernel=(1, 1), num_filter=channels,
                         num_group=channels, no_bias=True)

    slopes = maker.add("Reshape", name + "_slopes", gamma, shape=(-1, 1, 1, 1))
    if shared:
        slopes = maker.add("broadcast_axis", name + "_repeated", slopes, axis=0, size=channels)
    positive = maker.add("Activation", name + "_positive", data, act_type="relu")
    if negated:
        factors = maker.add("_minus_scalar", name + "_factors", slopes, scalar=1.0)
        return maker.add("elemwise_add", name, data, product("_scaled", positive, factors))
    factors = maker.add("_rminus_scalar", name + "_factors", slopes, scalar=1.0)
    return maker.add("elemwise_add", name, product("_sloped", data, slopes), product("_scaled", positive, factors))
