# SPDX-License-Identifier: Apache-2.0
"""Graphs of our own and their JSON: byte for byte what MXNet writes, and what MXNet reads of all its versions."""
from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from recognition.engines.mxnet.imports import mx
from recognition.engines.mxnet.symbols import from_symbol, to_symbol
from recognition.networks import build_symbol, sym
from recognition.networks.graph import Graph
from recognition.networks.operators import OPERATORS
from recognition.networks.shapes import all_shapes

LEGACY_GRAPHS = json.loads((Path(__file__).parent / "legacy_graphs.json").read_text())


@pytest.mark.parametrize(("family", "options"), [
    pytest.param(family, options, marks=pytest.mark.slow if number % 8 else (), id=f"{family} {options}")
    for number, (family, options, _) in enumerate(LEGACY_GRAPHS)])
def test_a_network_is_what_mxnet_reads_and_writes(family, options, configuration):
    """The JSON, the lists of names, and the shapes of all parameters and maps."""
    graph = build_symbol(configuration(net_name=family, **options))
    symbol = mx.sym.load_json(graph.to_json())
    assert symbol.tojson() == graph.to_json() == Graph.from_dict(json.loads(graph.to_json())).to_json()
    assert symbol.list_arguments() == graph.list_arguments()
    assert symbol.list_auxiliary_states() == graph.list_auxiliary_states()
    assert symbol.list_inputs() == graph.list_inputs() and symbol.list_outputs() == graph.list_outputs()
    inner, shapes = symbol.get_internals(), all_shapes(graph, (2, 3, 112, 112))
    listed = [(name, shape) for node, found in zip(graph.nodes, shapes) for name, shape in zip(node.outputs(), found)]
    assert listed == list(zip(inner.list_outputs(), inner.infer_shape(data=(2, 3, 112, 112))[1]))


def test_the_golden_files_come_out_as_they_went_in(shared):
    paths = sorted((shared / "legacy" / "symbols").glob("*.json"))
    assert len(paths) > 10
    for path in paths:
        assert Graph.from_dict(json.loads(path.read_text())).to_json() == mx.sym.load(str(path)).tojson(), path


def layers(sym, variable):
    """A network in the words of ``mx.sym``: names given and counted, inputs shared, several outputs, states."""
    data = variable("data")
    x = sym.identity(2 * (data - 127.5) / 128, name="id")
    weight = variable("shared_weight", shape=(4, 0, 3, 3), lr_mult=2.0)
    x = sym.Convolution(x, weight=weight, kernel=(3, 3), num_filter=4, no_bias=True)
    x = sym.LeakyReLU(sym.BatchNorm(x, eps=2e-5, fix_gamma=False), act_type="prelu", name="relu")
    first, second = (sym.SliceChannel(x, num_outputs=2)[place] for place in (0, 1))
    x = sym.Concat(first * second + 1, 1 - first, sym.Pooling(second, kernel=(1, 1)), sym.Dropout(first, p=0.1), dim=1)
    x = sym.Reshape(sym.flatten(x), shape=(0, -1))
    return x, sym.FullyConnected(x, num_hidden=3, name="fc1"), sym.sum(data, axis=(1, 2), keepdims=True)


def test_expressions_give_the_symbols_of_mxnet():
    outputs = layers(sym, sym.Variable)
    with mx.name.NameManager():
        theirs = mx.sym.Group(list(layers(mx.sym, mx.sym.var)))
    assert sym.group(*outputs).to_json() == theirs.tojson()
    assert from_symbol(theirs).to_json() == theirs.tojson()
    assert to_symbol(sym.group(*outputs)).tojson() == theirs.tojson()


@pytest.mark.parametrize(("build", "message"), [
    (lambda: sym.Convolution(sym.Variable("data"), kernel=(3, 3), filters=4), "has the attribute 'filters', expected"),
    (lambda: sym.Convolution(sym.Variable("data"), kernel="three", num_filter=4), "has the kernel 'three'"),
    (lambda: sym.Activation(sym.Variable("data"), act_type="relux"), "Activation has the act_type 'relux'"),
    (lambda: sym.Activation(sym.Variable("data"), weight=sym.Variable("w"), act_type="relu"), "takes the inputs data"),
    (lambda: sym.Flatten(*[sym.Variable("data")] * 2), "Flatten takes the inputs data"),
])
def test_what_an_operator_does_not_have_is_said(build, message):
    with pytest.raises(ValueError, match=message):
        build()
    with pytest.raises(AttributeError, match="no attribute 'Convolutions'"):
        sym.Convolutions  # noqa: B018


@pytest.mark.parametrize("version", [None, 800, 903, 904, 905, 10400, 10901])
def test_files_of_older_versions_are_read_as_mxnet_reads_them(version):
    """States that are left out, argmax over all by axis -1, attributes under three names, two numbers an input, nodes
    in another order and some that nothing needs."""
    old = version is None or version < 900
    states = [] if old else [[5, 0, 1], [6, 0, 1]]
    nodes = [
        {"op": "null", "name": "gamma", "inputs": []}, {"op": "null", "name": "data", "inputs": []},
        {"op": "null", "name": "beta", "inputs": []}, {"op": "null", "name": "unused", "inputs": []},
        {"op": "flatten", "name": "flat", "param": {}, "inputs": [[1, 0]]},
        {"op": "null", "name": "mean", "inputs": []}, {"op": "null", "name": "variance", "inputs": []},
        {"op": "BatchNorm", "name": "norm", "param": {"eps": "0.001"}, "attr": {"fix_gamma": "False"},
         "inputs": [[4, 0], [0, 0], [2, 0], *states]},
        {"op": "argmax", "name": "best", "attrs": {"keepdims": "True"}, "inputs": [[7, 0]]},
        {"op": "argmax", "name": "first", "attrs": {"axis": "-1"}, "inputs": [[7, 0, 0]]}]
    text = json.dumps({"nodes": nodes, "arg_nodes": [0, 1, 2, 3, 5, 6], "heads": [[9, 0, 0], [8, 0, 0]],
                       **({"attrs": {"mxnet_version": ["int", version]}} if version else {})})
    symbol, graph = mx.sym.load_json(text), Graph.from_dict(json.loads(text))
    assert symbol.list_auxiliary_states() == graph.list_auxiliary_states() and "unused" not in graph.list_inputs()
    found, expected = json.loads(graph.to_json()), json.loads(symbol.tojson())
    if old:  # MXNet writes the number 0 for the states that it adds itself
        for node in (*found["nodes"], *expected["nodes"]):
            node["inputs"] = [entry[:2] for entry in node["inputs"]]
    assert found == expected
    assert symbol.infer_shape(data=(5, 7))[1] == [all_shapes(graph, (5, 7))[head.node][0] for head in graph.heads]


def test_a_cut_is_the_symbol_of_an_inner_output(configuration):
    graph = build_symbol(configuration("y1"))
    name = "res_3_block1_conv_dw_relu_output"
    assert graph.cut(name).to_json() == to_symbol(graph).get_internals()[name].tojson()
    with pytest.raises(KeyError):
        graph.cut("nothing_output")


def test_names_are_counted_for_each_network_by_itself():
    assert [node.name for node in (sym.Variable("data") + 1).graph().nodes] == \
           [node.name for node in (sym.Variable("data") + 1).graph().nodes] == ["data", "_plusscalar0"]


def test_every_row_of_the_table_is_whole():
    """Operators whose FLOPs are counted say so for a small map; those that run in 16 bits for a type that there is."""
    for operator in OPERATORS.values():
        assert {*operator.heavy, *operator.follows} <= {"bfloat16", "float16"}
        assert len(operator.inputs) > operator.optional >= 0 and operator.fewest <= operator.most
        if operator.flops and not operator.parameters:
            assert operator.flops(None, [(2, 3)] * 2, (2, 3)) in (0, math.prod((2, 3)))
