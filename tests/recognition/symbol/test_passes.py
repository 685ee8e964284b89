# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import numpy as np
import pytest

from recognition.mxnet_compat import mx
from recognition.symbol import fmobilefacenet
from recognition.symbol.initialise import initialise
from recognition.symbol.passes import fast_prelu, rewrite

IMAGE = (3, 112, 112)


def operators(symbol):
    return [node["op"] for node in json.loads(symbol.tojson())["nodes"]]


def train_step(symbol, d_output, values, states=None):
    """Output and gradients by name of a forward and backward pass in training mode."""
    executor = symbol.simple_bind(mx.cpu(), grad_req="write", **{name: array.shape for name, array in values.items()})
    executor.copy_params_from({name: mx.nd.array(array) for name, array in values.items()},
                              {name: mx.nd.array(array) for name, array in (states or {}).items()})
    output = executor.forward(is_train=True)[0].asnumpy()
    executor.backward([mx.nd.array(d_output)])
    return output, {name: array.asnumpy() for name, array in executor.grad_dict.items()}


@pytest.mark.parametrize(("channels", "shared"), [(16, False), (5, False), (1, False), (16, True)])
def test_fast_prelu_is_prelu(channels, shared):
    """Against float64 NumPy; 1e-6 relative is a few roundings. MXNet's LeakyReLU fails this: see fast_prelu."""
    random = np.random.default_rng(0)
    x, d_output = random.standard_normal((2, 3, channels, 6, 7))
    x[0, :, 0, :2] = 0
    gamma = random.uniform(-0.5, 2, 1 if shared else channels)
    gamma_variable = mx.sym.var("gamma", shape=(1,)) if shared else mx.sym.var("gamma")
    symbol = 3 * mx.sym.LeakyReLU(2 * mx.sym.var("data"), gamma=gamma_variable, act_type="prelu", name="act")
    fast = fast_prelu(symbol, x.shape[1:])
    assert "LeakyReLU" not in operators(fast)
    output, gradients = train_step(fast, d_output, {"data": x, "gamma": gamma})

    slope = gamma[:, np.newaxis, np.newaxis]
    d_slope = 6 * d_output * np.minimum(x, 0)
    np.testing.assert_allclose(output, 6 * np.where(x > 0, x, slope * x), rtol=1e-6)
    np.testing.assert_allclose(gradients["data"], 6 * d_output * np.where(x > 0, 1, slope), rtol=1e-6, atol=1e-6)
    expected = d_slope.sum() if shared else d_slope.sum((0, 2, 3))
    np.testing.assert_allclose(gradients["gamma"], expected, rtol=1e-5, atol=1e-6 * np.abs(d_slope).sum())


def test_fast_prelu_keeps_what_is_not_a_number():
    symbol = fast_prelu(mx.sym.LeakyReLU(mx.sym.var("data"), gamma=mx.sym.var("gamma"), act_type="prelu"), (16, 2, 2))
    x = np.ones((1, 16, 2, 2))
    x[0, 3, 1, 1] = np.nan
    output, gradients = train_step(symbol, np.ones_like(x), {"data": x, "gamma": np.full(16, 0.25)})
    assert np.isnan(output[0, 3, 1, 1])
    assert np.isnan(output).sum() == 1
    assert np.isnan(gradients["gamma"][3])


def test_fast_prelu_of_a_network_agrees_with_the_network():
    """y1, all outputs and gradients. Sums run in another order: 1e-4 of a gradient's norm, and for gradients that are
    zero but for rounding (of what a batch norm behind takes away) 1e-6 of the largest norm."""
    symbol = fmobilefacenet.get_symbol()
    values, states = initialise(symbol, IMAGE, 0)
    random = np.random.default_rng(0)
    values["data"] = random.integers(0, 256, (4, *IMAGE))
    d_output = random.standard_normal((4, 128))
    output, gradients = train_step(symbol, d_output, values, states)
    fast_output, fast_gradients = train_step(fast_prelu(symbol), d_output, values, states)

    np.testing.assert_allclose(fast_output, output, rtol=1e-4, atol=1e-5)
    norms = {name: np.linalg.norm(gradient) for name, gradient in gradients.items()}
    largest = max(norms.values())
    assert set(fast_gradients) == set(gradients)
    for name, gradient in gradients.items():
        assert np.linalg.norm(fast_gradients[name] - gradient) <= 1e-4 * norms[name] + 1e-6 * largest, name


def test_fast_prelu_keeps_names_shapes_and_first_values():
    symbol = fmobilefacenet.get_symbol()
    saved = symbol.tojson()
    fast = fast_prelu(symbol)
    assert symbol.tojson() == saved
    assert "LeakyReLU" not in operators(fast)
    assert fast.list_arguments() == symbol.list_arguments()
    assert fast.list_auxiliary_states() == symbol.list_auxiliary_states()
    assert fast.list_outputs() == symbol.list_outputs()
    assert fast.infer_shape(data=(2, *IMAGE)) == symbol.infer_shape(data=(2, *IMAGE))
    for kept, first in zip(initialise(fast, IMAGE, 3), initialise(symbol, IMAGE, 3)):
        assert all(np.array_equal(kept[name], first[name]) for name in first)


@pytest.mark.parametrize(("act_type", "options"), [("prelu", {}), ("leaky", {"slope": 0.1})])
def test_features_and_other_activations_stay_as_they_are(act_type, options):
    hidden = mx.sym.FullyConnected(mx.sym.var("data"), num_hidden=8)
    symbol = mx.sym.FullyConnected(mx.sym.LeakyReLU(hidden, act_type=act_type, **options), num_hidden=4)
    assert operators(fast_prelu(symbol, (6,))) == operators(symbol)


def test_rewrite_without_rules_is_a_copy():
    halves = mx.sym.SliceChannel(mx.sym.var("data"), num_outputs=2, name="halves")
    normed = mx.sym.BatchNorm(halves[1] - halves[0], name="norm")
    symbol = mx.sym.Group([halves[1], normed, mx.sym.var("label", init=mx.init.One())])
    assert json.loads(rewrite(symbol, {}).tojson()) == json.loads(symbol.tojson())


def test_rewrite_moves_every_use_of_a_replaced_node():
    data = mx.sym.var("data")
    doubled = mx.sym.square(data, name="square")
    symbol = mx.sym.Group([doubled + data, doubled])


    def double(graph, node, inputs):
        return graph.add("_mul_scalar", node["name"], *inputs, scalar=2)

    swapped = rewrite(symbol, {"square": double})
    sums, twice = swapped.bind(mx.cpu(), {"data": mx.nd.array([3.0, 5.0])}).forward()
    assert sums.asnumpy().tolist() == [9, 15]
    assert twice.asnumpy().tolist() == [6, 10]
