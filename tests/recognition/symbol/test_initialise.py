# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from recognition.errors import UserError
from recognition.mxnet_compat import mx
from recognition.symbol import fmobilefacenet
from recognition.symbol.initialise import draw_weight, initialise
from recognition.symbol.shapes import infer_shapes

IMAGE = (3, 112, 112)
XAVIER = mx.init.Xavier(rnd_type="gaussian", factor_type="out", magnitude=2)


@pytest.fixture(scope="module")
def symbol():
    return fmobilefacenet.get_symbol()


def test_every_parameter_has_its_shape_in_float32(symbol):
    arguments, auxiliary = initialise(symbol, IMAGE, 0)
    shapes = infer_shapes(symbol, IMAGE)
    assert {name: array.shape for name, array in arguments.items()} == shapes.arguments
    assert {name: array.shape for name, array in auxiliary.items()} == shapes.auxiliary
    assert {array.dtype for array in (*arguments.values(), *auxiliary.values())} == {np.dtype(np.float32)}


def test_constants_are_those_that_mxnet_would_give(symbol):
    arguments, auxiliary = initialise(symbol, IMAGE, 0)
    attributes = symbol.attr_dict()
    for name, array in {**arguments, **auxiliary}.items():
        if not name.endswith("_weight"):
            expected = mx.nd.full(array.shape, 7)
            XAVIER(mx.init.InitDesc(name, attributes.get(name)), expected)
            np.testing.assert_array_equal(array, expected.asnumpy(), err_msg=name)
    assert set(arguments["conv_1_relu_gamma"]) == {0.25}


@pytest.mark.parametrize("shape", [(512, 128, 1, 1), (256, 1, 7, 7), (64, 64, 3, 3), (128, 512)])
def test_weights_have_the_legacy_spread(shape):
    weight = draw_weight("some_weight", shape, 3)
    expected = np.sqrt(2 / (shape[0] * np.prod(shape[2:])))
    deviation = 4 / np.sqrt(2 * weight.size)  # four standard deviations of a standard deviation's estimate
    assert weight.std() == pytest.approx(expected, rel=deviation)
    assert abs(weight.mean()) < 4 * expected / np.sqrt(weight.size)
    legacy = mx.nd.zeros(shape)
    XAVIER(mx.init.InitDesc("some_weight"), legacy)
    assert weight.std() == pytest.approx(legacy.asnumpy().std(), rel=2 * deviation)


def test_weights_are_a_function_of_seed_and_name_alone(symbol):
    mx.random.seed(1)
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    first, _ = initialise(symbol, IMAGE, 5)
    mx.random.seed(2)
    second, _ = initialise(symbol, IMAGE, 5)
    other, _ = initialise(symbol, IMAGE, 6)
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])
        assert not name.endswith("_weight") or not np.array_equal(array, other[name])
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    assert not np.array_equal(draw_weight("a_weight", (8, 8), 5), draw_weight("b_weight", (8, 8), 5))


def test_weights_stay_the_same_for_years():
    """A seed in a saved configuration means these numbers."""
    expected = [[0.49588516, 0.42336187], [-0.7158432, -0.2643995]]
    np.testing.assert_allclose(draw_weight("fc_weight", (2, 2), 1), expected, rtol=1e-6)


@pytest.mark.parametrize(("wish", "value"), [("zeros", 0), ("ones", 1), ('["constant", {"value": 0.5}]', 0.5)])
def test_wishes_as_gluon_writes_them(wish, value):
    symbol = mx.sym.LeakyReLU(mx.sym.var("data"), gamma=mx.sym.var("alpha", shape=(1,), init=wish), act_type="prelu")
    assert initialise(symbol, IMAGE, 0)[0]["alpha"] == value


@pytest.mark.parametrize(("variable", "message"), [
    (mx.sym.var("alpha"), "parameter alpha: expected an initialiser, or a name that"),
    (mx.sym.var("alpha", init=mx.init.Uniform(1)), "parameter alpha: found the initialiser .*uniform.*constant"),
])
def test_a_parameter_that_tells_nothing_is_named(variable, message):
    symbol = mx.sym.FullyConnected(mx.sym.var("data"), weight=variable, num_hidden=4)
    with pytest.raises(UserError, match=message):
        initialise(symbol, IMAGE, 0)
