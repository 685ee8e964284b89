# SPDX-License-Identifier: Apache-2.0
"""Symbols from strangers: those of the recipes pass as they are, and nothing that MXNet would run or crash on does."""
from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from recognition.engines.mxnet.imports import mx
from recognition.engines.mxnet.symbols import to_symbol
from recognition.errors import UserError
from recognition.networks.graph import Graph
from recognition.networks.operators import OPERATORS
from recognition.networks.shapes import infer_shapes
from recognition.networks.symbol_file import MOST_NODES, checked_graph, read_network, read_symbol

FC = {"op": "FullyConnected", "name": "fc1", "attrs": {"num_hidden": "4"}, "inputs": [[0, 0, 0], [1, 0, 0], [2, 0, 0]]}
GRAPH: dict[str, Any] = {
    "nodes": [*({"op": "null", "name": name, "inputs": []} for name in ("data", "w", "b")), FC],
    "arg_nodes": [0, 1, 2], "heads": [[3, 0, 0]], "attrs": {"mxnet_version": ["int", 10901]}}


def changed(**keys: Any) -> dict[str, Any]:
    """The graph with other keys of its layer."""
    graph = copy.deepcopy(GRAPH)
    graph["nodes"][3].update(keys)
    return graph


def write(folder: Path, content: Any) -> Path:
    path = folder / "model-symbol.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_graphs_of_the_recipes_stay_as_they_are(shared: Path) -> None:
    found = sorted((shared / "legacy" / "symbols").glob("*.json"))
    assert len(found) > 10
    for path in found:
        before, after = mx.sym.load(str(path)), to_symbol(read_symbol(path))
        assert before.list_arguments() == after.list_arguments()
        assert before.list_auxiliary_states() == after.list_auxiliary_states()
        assert before.infer_shape(data=(2, 3, 112, 112)) == after.infer_shape(data=(2, 3, 112, 112))


def test_files_of_older_versions(tmp_path: Path) -> None:
    """Before 1.0 attributes had two names, inputs two numbers, variables hints without underscores."""
    old = copy.deepcopy(GRAPH)
    del old["attrs"]
    old["nodes"][3]["param"] = old["nodes"][3].pop("attrs")
    old["nodes"][3]["attr"] = {"lr_mult": "1.0", "ctx_group": "dev1"}
    old["nodes"][3]["inputs"] = [[0, 0], [1, 0], [2, 0]]
    old["heads"] = [[3, 0]]
    symbol = to_symbol(read_symbol(write(tmp_path, old)))
    assert symbol.infer_shape(data=(2, 3))[1] == [(2, 4)] and symbol.attr_dict() == {"fc1": {"num_hidden": "4"}}


@pytest.mark.parametrize("keys, message", [
    ({"op": "Custom", "attrs": {"op_type": "evil"}}, r"node 3 \('fc1'\): the operator 'Custom', expected one of"),
    ({"op": "_Native", "attrs": {"info": "140737488355328"}}, "the operator '_Native'"),
    ({"op": "_NDArray", "attrs": {"info": "140737488355328"}}, "the operator '_NDArray'"),
    ({"op": "_CustomFunction"}, "the operator '_CustomFunction'"),
    ({"op": "_subgraph_op"}, "the operator '_subgraph_op'"),
    ({"op": "_foreach", "subgraphs": []}, "the operator '_foreach'"),
    ({"op": "_sg_mkldnn_conv"}, "the operator '_sg_mkldnn_conv'"),
    ({"op": ["Custom"]}, r"the operator \['Custom'\]"),
    ({"subgraphs": [GRAPH]}, "it has subgraphs"),
    ({"inputs": [[3, 0, 0], [1, 0, 0]]}, r"found \[3, 0, 0\], expected \[a node before this one"),
    ({"inputs": [[99, 0, 0], [1, 0, 0]]}, r"found \[99, 0, 0\]"),
    ({"inputs": [[-1, 0, 0], [1, 0, 0]]}, r"found \[-1, 0, 0\]"),
    ({"inputs": [[0, 7, 0], [1, 0, 0]]}, r"found \[0, 7, 0\]"),
    ({"inputs": [[0, 0, 2 ** 40], [1, 0, 0]]}, r"found \[0, 0, 1099511627776\]"),
    ({"inputs": [[0.0, 0, 0], [1, 0, 0]]}, r"found \[0.0, 0, 0\]"),
    ({"inputs": [[0, 0, 0]]}, "FullyConnected has 1 inputs, expected 2 to 3"),
    ({"inputs": {"0": 1}}, "expected a list of inputs"),
    ({"attrs": {"num_hidden": "99999999999999999999"}}, "num_hidden is '99999999999999999999', expected numbers up to"),
    ({"attrs": {"num_hidden": "0"}}, "num_hidden is '0', expected numbers above 0"),
    ({"attrs": {"num_hidden": "/tmp/lib.so"}}, "num_hidden is '/tmp/lib.so', expected a number, a word or a tuple"),
    ({"attrs": {"num_hidden": "9" * 5000}}, "expected a short text"),
    ({"attrs": {"num_hidden": 4}}, "expected a short text"),
    ({"attrs": {"num_hidden": "4\n"}}, "expected a number, a word"),
    ({"attrs": {"../x": "4"}}, "expected a short text"),
    ({"attrs": [1]}, "expected a few attributes"),
    ({"name": "a\nb"}, "its name is no printable text"),
    ({"name": ""}, "its name is no printable text"),
    ({"name": "w"}, "another node has the same name"),
    ({"op": "SliceChannel", "inputs": [[0, 0, 0]], "attrs": {}}, "num_outputs is '', expected a number"),
    ({"op": "Concat", "attrs": {"num_args": "9"}}, "num_args 9 with 3 inputs"),
])
def test_what_mxnet_must_not_see(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"model-symbol\.json: not a symbol that MXNet can be given: .*{message}"):
        read_symbol(write(tmp_path, changed(**keys)))


@pytest.mark.parametrize("content, message", [
    ("", "Expecting value"), ("{}", "found no list of nodes"), ("[" * 100_000, "nested too deep"),
    ('{"nodes": []}', "found 0 nodes"), ({**GRAPH, "heads": []}, "found no heads"),
    ({**GRAPH, "heads": [[9, 0, 0]]}, r"found \[9, 0, 0\]"), ({**GRAPH, "nodes": [7]}, "found 7, expected a node"),
    ({**GRAPH, "nodes": [{"op": "null", "name": "x", "inputs": []}] * (MOST_NODES + 1)}, "nodes, expected 1 to"),
    ({**GRAPH, "attrs": {"mxnet_version": ["int", 10 ** 30]}}, "the version"), ("\x00\xff", "Expecting value|decode")])
def test_files_that_are_no_graphs(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(UserError, match=f"not a symbol that MXNet can be given: .*({message})"):
        read_symbol(write(tmp_path, content))


def test_hints_and_unknown_keys_are_left_out() -> None:
    graph = changed(attrs={"num_hidden": "4", "__ctx_group__": "dev1", "__init__": '["evil", {}]'}, control_deps=[9])
    graph["nodes"][1]["attrs"] = {"__shape__": "(4, 3)", "__init__": "x", "num_hidden": "4"}
    checked = checked_graph(graph)
    assert checked["nodes"][3] == FC and checked["nodes"][1]["attrs"] == {"__shape__": "(4, 3)"}


def test_factors_and_statistics_that_are_a_layer_or_something_else_too() -> None:
    """MXNet 1.9.1 writes over other memory when it runs such a graph, as it takes their shapes for those that it wants:
    found by fuzzing."""
    norm = {"op": "BatchNorm", "name": "norm", "inputs": [[0, 0, 0], [1, 0, 0], [4, 0, 0], [3, 0, 1], [5, 0, 1]]}
    variables = [{"op": "null", "name": name, "inputs": []} for name in ("beta", "variance", "mean", "gamma")]
    graph = {**GRAPH, "nodes": [*GRAPH["nodes"], *variables, norm], "heads": [[8, 0, 0]]}

    def found(*inputs: int) -> str:
        norm["inputs"] = [[place, 0, 0] for place in inputs]
        try:
            checked_graph(graph)
        except ValueError as error:
            return str(error)
        return ""

    assert found(3, 7, 4, 6, 5) == ""
    assert "'norm'): BatchNorm has statistics or factors that are no variables" in found(3, 7, 4, 3, 5)
    assert found(3, 1, 4, 6, 5) == "'w' is a factor or a statistic of 'norm' and something else, too"
    assert found(3, 7, 4, 6, 6) == "'mean' is a factor or a statistic of 'norm' and something else, too"
    assert found(7, 7, 4, 6, 5) == "'gamma' is a factor or a statistic of 'norm' and something else, too"


@pytest.mark.parametrize("shape", ["(1, 2, 3)", "1", "7"])
def test_reshaping_to_another_number_of_numbers(shape: str) -> None:
    """MXNet 1.9.1 finds no fault with it, and writes over other memory: found by fuzzing."""
    graph = changed(op="Reshape", attrs={"shape": shape}, inputs=[[0, 0, 0]])
    symbol = Graph.from_dict(checked_graph(graph))
    with pytest.raises(UserError, match=r"fc1 makes \d numbers of 96, expected the same|fc1 says"):
        infer_shapes(symbol, (3, 4, 4), 2)


def test_maps_of_more_numbers_than_mxnet_can_count() -> None:
    graph = changed(op="UpSampling", attrs={"scale": "64", "sample_type": "nearest", "num_args": "1"},
                    inputs=[[0, 0, 0]])
    symbol = Graph.from_dict(checked_graph(graph))
    with pytest.raises(UserError, match="fc1_output would have 51380224000 numbers"):
        infer_shapes(symbol, (250, 224, 224), 1)


def test_upsampling_by_the_nearest_alone_and_no_where() -> None:
    """MXNet 1.9.1 divides by zero in the other kind at some scales, and in a where of several shapes: found by
    others' fuzzing."""
    weight = [{"op": "null", "name": "w", "inputs": []}]
    up = {"op": "UpSampling", "name": "fc1", "attrs": {"scale": "1", "sample_type": "bilinear", "num_filter": "3"},
          "inputs": [[0, 0, 0], [1, 0, 0]]}
    graph = {"nodes": [GRAPH["nodes"][0], *weight, up], "heads": [[2, 0, 0]]}
    with pytest.raises(ValueError, match="UpSampling has 2 inputs"):
        checked_graph(graph)
    up["inputs"] = [[0, 0, 0]]
    with pytest.raises(ValueError, match="UpSampling has the sample_type bilinear, expected nearest"):
        checked_graph(graph)
    up["attrs"] = {"scale": "2", "sample_type": "nearest"}
    assert checked_graph(graph)["nodes"][2]["attrs"] == up["attrs"]
    graph["nodes"][2] = {"op": "where", "name": "fc1", "inputs": [[0, 0, 0]] * 3}
    with pytest.raises(ValueError, match="the operator 'where', expected one of those"):
        checked_graph(graph)


@pytest.mark.parametrize("name", [
    "Plus", "Minus", "RMinus", "Mul", "Div", "RDiv", "Power", "RPower", "Maximum", "Minimum", "Mod", "RMod", "Hypot",
    "Equal", "NotEqual", "Greater", "GreaterEqual", "Lesser", "LesserEqual", "LogicalAnd", "LogicalOr", "LogicalXor"])
def test_scalar_operators_by_their_names_before_0_9(name: str, tmp_path: Path) -> None:
    """All of MXNet's that end in ``Scalar``."""
    graph = {"nodes": [{"op": "null", "param": {}, "name": "data", "inputs": [], "backward_source_id": -1},
                       {"op": f"_{name}Scalar", "param": {"scalar": "127.5"}, "name": "_scaled0", "inputs": [[0, 0]],
                        "backward_source_id": -1},
                       *({"op": "null", "param": {}, "name": f"fc1_{kind}", "inputs": [], "backward_source_id": -1}
                         for kind in ("weight", "bias")),
                       {"op": "FullyConnected", "param": {"num_hidden": "4"}, "name": "fc1", "backward_source_id": -1,
                        "inputs": [[1, 0], [2, 0], [3, 0]]}],
             "arg_nodes": [0, 2, 3], "heads": [[4, 0]]}
    (node,) = [node for node in read_network(write(tmp_path, graph)).nodes if node.name == "_scaled0"]
    new = re.sub("(?<=[a-z])(?=[A-Z])", "_", name).lower()  # GreaterEqual: greater_equal
    assert node.op == f"_{new}_scalar" and node.values.scalar == 127.5


@pytest.mark.parametrize("name", [
    "Plus", "Minus", "Mul", "Div", "Power", "Maximum", "Minimum", "Mod", "Hypot", "Equal", "Not_Equal", "Greater",
    "Greater_Equal", "Lesser", "Lesser_Equal", "Logical_And", "Logical_Or", "Logical_Xor"])
def test_operators_of_two_maps_by_their_names_before_0_9(name: str) -> None:
    elementwise = {"Plus": "elemwise_add", "Minus": "elemwise_sub", "Mul": "elemwise_mul", "Div": "elemwise_div"}
    assert OPERATORS[f"_{name}"].name == elementwise.get(name, f"_{name.lower()}")
