# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

from recognition.engines.mxnet.imports import mx
from recognition.engines.mxnet.symbols import from_symbol, to_symbol
from recognition.networks import sym
from recognition.networks.graph import rewrite


def test_rewrite_without_rules_is_a_copy():
    halves = mx.sym.SliceChannel(mx.sym.var("data"), num_outputs=2, name="halves")
    normed = mx.sym.BatchNorm(halves[1] - halves[0], name="norm")
    symbol = mx.sym.Group([halves[1], normed, mx.sym.var("label", init=mx.init.One())])
    assert json.loads(rewrite(from_symbol(symbol), {}).to_json()) == json.loads(symbol.tojson())


def test_rewrite_moves_every_use_of_a_replaced_node():
    data = sym.Variable("data")
    doubled = sym.square(data, name="square")
    graph = sym.group(doubled + data, doubled)

    def double(maker, node, inputs):
        return maker.add("_mul_scalar", node.name, *inputs, scalar=2)

    swapped = to_symbol(rewrite(graph, {"square": double}))
    sums, twice = swapped.bind(mx.cpu(), {"data": mx.nd.array([3.0, 5.0])}).forward()
    assert sums.asnumpy().tolist() == [9, 15]
    assert twice.asnumpy().tolist() == [6, 10]
