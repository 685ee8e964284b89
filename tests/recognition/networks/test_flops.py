# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from recognition.config.options import Config
from recognition.config.presets import ROOT, open_config
from recognition.engines.mxnet.imports import mx
from recognition.engines.mxnet.symbols import from_symbol
from recognition.networks import build_symbol, sym
from recognition.networks.families import fresnet
from recognition.networks.flops import Flops, count_flops, describe, short

DATA = sym.Variable("data")
NETWORKS = open_config(str(ROOT / "sample_config.py")).presets("network")


@pytest.mark.parametrize(("symbol", "products", "rest", "parameters"), [
    # 8 filters of 3 x 3 x 3 at 4 x 4 places: 27 products and 26 sums each, and one sum more with a bias
    (sym.Convolution(DATA, kernel=(3, 3), pad=(1, 1), num_filter=8, no_bias=True), 8 * 16 * 53, 0, 216),
    (sym.Convolution(DATA, kernel=(3, 3), pad=(1, 1), num_filter=8), 8 * 16 * 54, 0, 216 + 8),
    (sym.Convolution(DATA, kernel=(2, 2), stride=(2, 2), num_filter=6, num_group=3, no_bias=True), 6 * 4 * 7, 0, 24),
    (sym.FullyConnected(DATA, num_hidden=5), 5 * 2 * 48, 0, 5 * 48 + 5),
    (sym.FullyConnected(DATA, num_hidden=5, no_bias=True), 5 * (2 * 48 - 1), 0, 5 * 48),
    (sym.BatchNorm(DATA), 0, 2 * 48, 6),
    (sym.LeakyReLU(DATA, act_type="prelu"), 0, 48, 3),
    (sym.Pooling(DATA, kernel=(2, 2), stride=(2, 2), pool_type="max"), 0, 12 * 4, 0),
    (sym.Pooling(DATA, global_pool=True, kernel=(7, 7), pool_type="avg"), 0, 48, 0),
    (sym.mean(DATA, axis=1), 0, 48, 0),
    (sym.Flatten(sym.Dropout(DATA)), 0, 0, 0),
])
def test_by_hand(symbol, products, rest, parameters):
    """For one image of 3 x 4 x 4, 48 numbers."""
    assert count_flops(symbol.graph(), (3, 4, 4)) == Flops(products + rest, products, parameters, ())


@pytest.mark.parametrize(("name", "products", "parameters"), [
    ("r100", 24.2e9, 65.2e6), ("r50", 12.6e9, 43.6e6), ("y1", 0.4387e9, 1.0e6)])
def test_known_totals(name, products, parameters):
    """As the papers and model zoos give them, to the digits given there: twice 12.1 G multiply-adds for r100."""
    found = count_flops(build_symbol(Config(**NETWORKS[name])))
    assert found.products == pytest.approx(products, rel=5e-3)
    assert found.parameters == pytest.approx(parameters, rel=2e-2)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_operator_of_the_presets_is_known(name):
    symbol = build_symbol(Config(**NETWORKS[name]))
    assert all(node.is_variable or node.operator.flops for node in symbol.nodes)
    assert count_flops(symbol).unknown == ()


def test_the_parts_that_presets_do_not_use():
    for net_output in ("GNAP", "GAP", "SFC", "GDC", "F", "H"):
        assert count_flops(fresnet.get_symbol(num_layers=18, net_output=net_output, net_se=1)).unknown == ()


def test_an_unknown_operator_is_named():
    layer = mx.sym.FullyConnected(mx.sym.var("data"), num_hidden=5, no_bias=True)
    flops = count_flops(from_symbol(mx.sym.arccos(layer)), (3, 4, 4))
    assert flops == Flops(475, 475, 240, ("arccos",))
    assert describe(flops) == ("Network FLOPs: 475.0 (convolutions and fully connected layers, a multiply-add is 2; "
                               "475.0 with all operators; 240.0 parameters; not counted: arccos)")


@pytest.mark.parametrize(("number", "text"), [(24.21e9, "24.2G"), (438.7e6, "438.7M"), (999, "999.0"), (1e12, "1.0T")])
def test_short(number, text):
    assert short(number) == text
