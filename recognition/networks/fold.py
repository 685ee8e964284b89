# SPDX-License-Identifier: Apache-2.0
"""A pass for networks that no longer train: batch norm folded into the layer before it.

With gamma, beta, mean and variance of a channel, and what batch norm adds to the variance, epsilon:

    BN(w x + b) = (f w) x + f (b - mean) + beta,    f = gamma / sqrt(variance + epsilon)
"""
from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping

import numpy as np

from recognition.engines.mxnet.imports import mx
from recognition.networks.passes import Entry, Graph, Node, rewrite

FOLDABLE = ("Convolution", "FullyConnected")  # their weight has one row an output
EPSILON = 1e-3  # where a graph does not say
Arrays = dict[str, np.ndarray]


def batch_norm_affine(node: Node, gamma: np.ndarray, beta: np.ndarray, mean: np.ndarray,
                      variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Factor and offset, float64 ``(C,)``, of a batch norm with moving statistics."""
    attrs = node.get("attrs", {})
    fixed = attrs.get("fix_gamma", "True") in ("True", "1")
    factor = (np.ones(len(gamma)) if fixed else gamma.astype(np.float64)) / np.sqrt(
        variance.astype(np.float64) + float(attrs.get("eps", EPSILON)))
    return factor, beta - factor * mean


def fold_batch_norms(symbol: mx.sym.Symbol, arguments: Mapping[str, np.ndarray],
                     auxiliary: Mapping[str, np.ndarray]) -> tuple[mx.sym.Symbol, Arrays, Arrays]:
    """The same function in inference with fewer layers, and its float32 parameters and auxiliary states.

    Folded is a batch norm behind a convolution or a fully connected layer that nothing else uses and that shares no
    parameters. The folded layer takes the batch norm's name, and gets a bias ``<layer>_bias`` if it had none. A batch
    norm in front of a padded convolution cannot be folded: what is padded is zero behind it, not in front.
    """
    source = json.loads(symbol.tojson())
    nodes = source["nodes"]
    uses = Counter(entry[0] for node in nodes for entry in node["inputs"])
    uses.update(head[0] for head in source["heads"])
    values: Arrays = {**arguments, **auxiliary}

    def rule(graph: Graph, node: Node, inputs: list[Entry]) -> Entry | None:
        number = node["inputs"][0][0]
        layer = nodes[number]
        parameters = [entry[0] for entry in layer["inputs"][1:]]
        if (layer["op"] not in FOLDABLE or uses[number] > 1 or node.get("attrs", {}).get("axis", "1") != "1"
                or any(uses[place] > 1 or nodes[place]["op"] != "null" for place in parameters)):
            return None
        factor, offset = batch_norm_affine(node, *(values[nodes[entry[0]]["name"]] for entry in node["inputs"][1:]))
        names = [nodes[place]["name"] for place in parameters]
        weight = values[names[0]].astype(np.float64)
        values[names[0]] = (weight * factor.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.float32)
        entries = [Entry(*entry) for entry in graph.nodes[inputs[0].node]["inputs"]]
        if len(names) == 1:
            names.append(f"{layer['name']}_bias")
            values[names[1]] = offset.astype(np.float32)
            entries.append(graph.append({"op": "null", "name": names[1]}, []))
        else:
            values[names[1]] = (values[names[1]] * factor + offset).astype(np.float32)
        return graph.append({**layer, "name": node["name"], "attrs": {**layer["attrs"], "no_bias": "False"}}, entries)

    folded = rewrite(symbol, {"BatchNorm": rule})
    return (folded, {name: values[name] for name in folded.list_arguments() if name != "data"},
            {name: values[name] for name in folded.list_auxiliary_states()})
