# SPDX-License-Identifier: Apache-2.0
"""A pass for networks that no longer train: batch norm folded into the layer before it.

Once its statistics no longer move, batch norm is a factor f and an offset:

    BN(w x + b) = (f w) x + f b + offset
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from recognition.io.params import Arrays
from recognition.networks.graph import VARIABLE, Entry, Graph, GraphMaker, Node, rewrite
from recognition.networks.operators.batch_norm import batch_norm_affine

FOLDABLE = ("Convolution", "FullyConnected")  # their weight has one row an output


def fold_batch_norms(graph: Graph, arguments: Mapping[str, np.ndarray],
                     auxiliary: Mapping[str, np.ndarray]) -> tuple[Graph, Arrays, Arrays]:
    """The same function in inference with fewer layers, and its float32 parameters and auxiliary states.

    A batch norm is folded if it is behind a convolution or a fully connected layer that nothing else uses and that
    shares no parameters. The folded layer takes the batch norm's name, and gets a bias ``<layer>_bias`` if it had none.
    A batch norm in front of a padded convolution cannot be folded: the padding is zero behind it, not in front.
    """
    nodes = graph.nodes
    uses = Counter(entry.node for node in nodes for entry in node.inputs)
    uses.update(head.node for head in graph.heads)
    values: Arrays = {**arguments, **auxiliary}

    def rule(maker: GraphMaker, node: Node, inputs: list[Entry]) -> Entry | None:
        number = node.inputs[0].node
        layer = nodes[number]
        parameters = [entry.node for entry in layer.inputs[1:]]
        if (layer.op not in FOLDABLE or uses[number] > 1 or node.values.axis != 1
                or any(uses[place] > 1 or not nodes[place].is_variable for place in parameters)):
            return None
        factor, offset = batch_norm_affine(node.values, *(values[nodes[entry.node].name] for entry in node.inputs[1:]))
        names = [nodes[place].name for place in parameters]
        weight = values[names[0]].astype(np.float64)
        values[names[0]] = (weight * factor.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.float32)
        entries = list(maker.nodes[inputs[0].node].inputs)
        if len(names) == 1:
            names.append(f"{layer.name}_bias")
            values[names[1]] = offset.astype(np.float32)
            entries.append(maker.append(Node(VARIABLE, names[1], {})))
        else:
            values[names[1]] = (values[names[1]] * factor + offset).astype(np.float32)
        return maker.append(Node(layer.operator, node.name, {**layer.attrs, "no_bias": "False"}), entries)

    folded = rewrite(graph, {"BatchNorm": rule})
    return (folded, {name: values[name] for name in folded.list_arguments() if name != "data"},
            {name: values[name] for name in folded.list_auxiliary_states()})
