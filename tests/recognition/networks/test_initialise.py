# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import numpy as np
import pytest

from recognition.engines.mxnet.imports import mx
from recognition.errors import UserError
from recognition.networks import first_weights, sym
from recognition.networks.families import fmobilefacenet
from recognition.networks.initialise import GAUSSIAN_OUT, UNIFORM_IN, Initialiser, draw, initialise
from recognition.networks.shapes import infer_shapes

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
    attributes = symbol.attributes()
    for name, array in {**arguments, **auxiliary}.items():
        if not name.endswith("_weight"):
            expected = mx.nd.full(array.shape, 7)
            XAVIER(mx.init.InitDesc(name, attributes.get(name)), expected)
            np.testing.assert_array_equal(array, expected.asnumpy(), err_msg=name)
    assert set(arguments["conv_1_relu_gamma"]) == {0.25}


@pytest.mark.parametrize("shape", [(512, 128, 1, 1), (256, 1, 7, 7), (64, 64, 3, 3), (128, 512)])
def test_weights_have_the_legacy_spread(shape):
    weight = draw("some_weight", shape, 3)
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
    assert not np.array_equal(draw("a_weight", (8, 8), 5), draw("b_weight", (8, 8), 5))


def test_weights_stay_the_same_for_years():
    """A seed in a saved configuration means these numbers."""
    expected = [[0.49588516, 0.42336187], [-0.7158432, -0.2643995]]
    np.testing.assert_allclose(draw("fc_weight", (2, 2), 1), expected, rtol=1e-6)
    expected = [[-0.6170144, -0.48766446], [-0.07973564, -0.4851943]]
    np.testing.assert_allclose(draw("fc_weight", (2, 2), 1, UNIFORM_IN), expected, rtol=1e-6)


def test_families_start_as_the_public_recipes_have_it():
    assert [first_weights(name) for name in ("fresnet", "fmobilefacenet")] == [GAUSSIAN_OUT] * 2
    assert [first_weights(name) for name in ("fmobilenet", "fmnasnet", "fdensenet", "vargfacenet", "mine")] == \
           [UNIFORM_IN] * 5


@pytest.mark.parametrize("legacy", [
    mx.init.Xavier("uniform", "in", 2), mx.init.Xavier("gaussian", "out", 2), mx.init.Xavier(), mx.init.Uniform(),
    mx.init.Uniform(0.3), mx.init.Normal(), mx.init.Normal(0.4), mx.init.MSRAPrelu(), mx.init.MSRAPrelu("in", 0.1),
], ids=lambda legacy: legacy.dumps())
@pytest.mark.parametrize("shape", [(64, 32, 3, 3), (96, 192)])
def test_initialisers_are_distributed_as_mxnets(legacy, shape):
    """Deviation and range of thousands of values: the sample's deviation within four of its own deviations, and a
    uniform's bound, which the largest of 18,000 values misses by less than a thousandth."""
    found = draw("some_weight", shape, 0, Initialiser(*json.loads(legacy.dumps())))
    expected = mx.nd.zeros(shape)
    mx.random.seed(0)
    legacy(mx.init.InitDesc("some_weight"), expected)
    expected = expected.asnumpy()
    assert (found.dtype, found.shape) == (np.float32, shape)
    assert found.std() == pytest.approx(expected.std(), rel=8 / np.sqrt(2 * found.size))
    assert abs(found.mean()) < 4 * found.std() / np.sqrt(found.size)
    if kind_of_range(expected) == "uniform":
        assert np.abs(found).max() == pytest.approx(np.abs(expected).max(), rel=2e-3)
    assert kind_of_range(found) == kind_of_range(expected)


def kind_of_range(values):
    """A uniform distribution ends at sqrt(3) deviations."""
    return "uniform" if np.abs(values).max() < 1.8 * values.std() else "normal"


@pytest.mark.parametrize(("init", "value"), [("zeros", 0), ("ones", 1), ('["constant", {"value": 0.5}]', 0.5)])
def test_initialisers_as_gluon_writes_them(init, value):
    symbol = sym.LeakyReLU(sym.Variable("data"), gamma=sym.Variable("alpha", shape=(1,), init=init), act_type="prelu")
    assert initialise(symbol.graph(), IMAGE, 0)[0]["alpha"] == value


@pytest.mark.parametrize(("variable", "message"), [
    (sym.Variable("alpha"), "parameter alpha: expected an initialiser, or a name that"),
    (sym.Variable("alpha", init=mx.init.Orthogonal().dumps()), "alpha.*: found the initialiser .*orthogonal.*xavier"),
    (sym.Variable("alpha", init='["normal", {"scale": 1}]'), "alpha.*: found the initialiser .*normal.*scale"),
    (sym.Variable("alpha", init='["xavier", {"factor_type": "no"}]'), "parameter alpha.*: found the initialiser .*no"),
])
def test_a_parameter_that_tells_nothing_is_named(variable, message):
    symbol = sym.FullyConnected(sym.Variable("data"), weight=variable, num_hidden=4).graph()
    with pytest.raises(UserError, match=message):
        initialise(symbol, IMAGE, 0)
