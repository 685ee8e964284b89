# SPDX-License-Identifier: Apache-2.0
"""Graphs as MXNet's symbols, and symbols as graphs: the one place where either becomes the other."""
from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from recognition.engines.mxnet.imports import mx
from recognition.engines.mxnet.passes.winograd import OPERATOR
from recognition.networks.graph import MXNET_VERSION, Graph
from recognition.networks.operators import OPERATORS, Operator
from recognition.networks.operators.operator import ShapeError, Shapes, merged


def to_symbol(graph: Graph) -> mx.sym.Symbol:
    """The symbol to bind."""
    if any(node.op == "Custom" and node.attrs["op_type"] == OPERATOR for node in graph.nodes):
        from recognition.engines.mxnet.passes import winograd_operator  # noqa: F401  # registers it
    return mx.sym.load_json(graph.to_json())


def from_symbol(symbol: mx.sym.Symbol) -> Graph:
    """The graph of a symbol. MXNet is asked about operators that are not in the table.

    :raises ValueError: if it has loops or branches.
    """
    source = json.loads(symbol.tojson(remove_amp_cast=False))
    foreign = {node["op"] for node in source["nodes"] if node["op"] not in OPERATORS and node["op"] != "null"}
    if any(node["op"] == "Custom" and node["attrs"]["op_type"] != OPERATOR for node in source["nodes"]):
        foreign.add("Custom")
    return Graph.from_dict(source, {**OPERATORS, **{op: _foreign(op) for op in foreign}})


def reason(error: mx.MXNetError) -> str:
    """``LAYER says: kernel size exceed input`` from MXNet's message with its file names and checks."""
    layer = re.search(r"Error in operator ([^:\s]+)", str(error))
    return f"{layer[1] if layer else 'MXNet'} says: {_detail(error)}"


def _detail(error: mx.MXNetError) -> str:
    return str(error).strip().splitlines()[0].rsplit(": ", 1)[-1].strip()


class _Foreign(Operator):
    """An operator of which MXNet alone knows; its values are the attributes' texts."""

    def values(self, attrs: Mapping[str, str]) -> Any:
        return dict(attrs)

    def shown(self, values: Any) -> int:
        return len(self._names(values))

    def output_name(self, values: Any, output: int) -> str:
        return self._names(values)[output]

    def is_state(self, place: int, version: int = 0) -> bool:
        return bool(version)

    def _names(self, values: Any) -> list[str]:
        return [name.split("_", 1)[1] for name in _alone(self.name, values, 0).get_internals().list_outputs()]


def _foreign(op: str) -> Operator:
    def outputs(values: Any) -> int:
        rows = json.loads(_alone(op, values, 0).tojson(remove_amp_cast=False))["node_row_ptr"]
        return int(rows[-1] - rows[-2])

    def shape(values: Any, ins: Shapes, outs: Shapes) -> None:
        symbol = _alone(op, values, len(ins)).get_internals()
        known = {f"v{number}": found for number, found in enumerate(ins) if found}
        try:
            _, shapes, _ = symbol.infer_shape_partial(**known)
        except mx.MXNetError as error:
            raise ShapeError(_detail(error)) from error
        for sizes, place in ((ins, 0), (outs, len(ins))):
            for number, found in enumerate(shapes[place : place + len(sizes)]):
                sizes[number] = merged(sizes[number], tuple(found))

    return _Foreign(op, shape, variadic=True, outputs=outputs)


def _alone(op: str, attrs: Mapping[str, str], inputs: int) -> mx.sym.Symbol:
    """A symbol of one operator, ``n``, and its inputs ``v0``, ``v1``, ..."""
    nodes = [*({"op": "null", "name": f"v{number}", "inputs": []} for number in range(inputs)),
             {"op": op, "name": "n", "attrs": attrs, "inputs": [[number, 0, 0] for number in range(inputs)]}]
    return mx.sym.load_json(json.dumps({
        "nodes": nodes, "arg_nodes": list(range(inputs)), "heads": [[inputs, 0, 0]],
        "attrs": {"mxnet_version": ["int", MXNET_VERSION]}}))
