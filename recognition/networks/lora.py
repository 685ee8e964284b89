# SPDX-License-Identifier: Apache-2.0
"""Low-rank adapters (LoRA: Hu et al., arXiv 2106.09685) on the linear layers of a transformer: ``W x + B A x``.

Those layers are fully connected ones that take each token by itself (``flatten`` False). A is random, B zero at first:
training begins at the network that it is given. A checkpoint holds ``W + B A`` and no adapters.
"""
from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from recognition.errors import UserError
from recognition.networks.graph import VARIABLE, Entry, Graph, GraphMaker, Node, rewrite

DOWN, UP = "_lora_down_weight", "_lora_up_weight"  # A (rank, inputs) and B (outputs, rank), for the end of W's name
_WEIGHT = "_weight"
_STARTS = {DOWN: '["xavier", {"rnd_type": "uniform", "factor_type": "in", "magnitude": 1}]', UP: '["zero", {}]'}


def is_adapter(name: str) -> bool:
    """True for the name of a parameter that :func:`with_adapters` adds."""
    return name.endswith((DOWN, UP))


def with_adapters(graph: Graph, rank: int) -> Graph:
    """The graph with adapters of this rank; the names of all else stay.

    :raises UserError: if the network has no layer for them.
    """

    def rule(maker: GraphMaker, node: Node, inputs: list[Entry]) -> Entry | None:
        weight = maker.nodes[inputs[1].node]
        if node.values.flatten or not weight.is_variable or not weight.name.endswith(_WEIGHT):
            return None
        stem, low = weight.name[: -len(_WEIGHT)], inputs[0]
        for end, outputs in ((DOWN, rank), (UP, node.values.num_hidden)):
            adapter = maker.append(Node(VARIABLE, stem + end, {"__init__": _STARTS[end]}))
            low = maker.add("FullyConnected", (stem + end)[: -len(_WEIGHT)], low, adapter, num_hidden=outputs,
                            no_bias=True, flatten=False)
        return maker.add("elemwise_add", f"{node.name}_lora", maker.append(node, inputs), low)

    adapted = rewrite(graph, {"FullyConnected": rule})
    if not any(map(is_adapter, adapted.list_arguments())):
        raise UserError("lora: found a network without linear layers of tokens, expected a transformer")
    return adapted


def merged(parameters: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Parameters with each adapter added to its layer's weight, float32, and without adapters."""
    found = {name: array for name, array in parameters.items() if not is_adapter(name)}
    for name in parameters:
        if name.endswith(DOWN):
            stem = name[: -len(DOWN)]
            down, up = (parameters[stem + end].astype(np.float64) for end in (DOWN, UP))
            found[stem + _WEIGHT] = (found[stem + _WEIGHT] + up @ down).astype(np.float32)
    return found
