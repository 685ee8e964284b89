# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from recognition.engines.mxnet.imports import mx
from recognition.engines.mxnet.symbols import to_symbol
from recognition.networks import sym
from recognition.networks.fold import fold_batch_norms


def operators(symbol):
    return [node.op for node in symbol.nodes]


def random_values(symbol, shape, seed=0):
    """Arguments and auxiliary states by name; variances and factors positive."""
    random = np.random.default_rng(seed)
    arguments, _, auxiliary = to_symbol(symbol).infer_shape(data=shape)
    values = []
    for names, shapes in ((symbol.list_arguments(), arguments), (symbol.list_auxiliary_states(), auxiliary)):
        values.append({name: (random.uniform(0.3, 2, size) if name.endswith(("var", "gamma"))
                              else random.standard_normal(size)).astype(np.float32)
                       for name, size in zip(names, shapes) if name != "data"})
    return values


def run(symbol, arguments, auxiliary, data):
    """Outputs in inference."""
    bound = to_symbol(symbol).simple_bind(mx.cpu(), grad_req="write", data=data.shape)
    bound.copy_params_from({name: mx.nd.array(value) for name, value in arguments.items()},
                           {name: mx.nd.array(value) for name, value in auxiliary.items()})
    return [output.asnumpy() for output in bound.forward(is_train=False, data=mx.nd.array(data))]


def check(symbol, shape, left):
    """Folded and unfolded agree to float32 roundings, and ``left`` batch norms are left."""
    arguments, auxiliary = random_values(symbol, shape)
    before = {name: value.copy() for name, value in arguments.items()}
    folded, new_arguments, new_auxiliary = fold_batch_norms(symbol, arguments, auxiliary)
    assert operators(folded).count("BatchNorm") == left
    assert len(new_auxiliary) == 2 * left
    assert folded.list_outputs() == symbol.list_outputs()
    data = np.random.default_rng(1).standard_normal(shape)
    outputs = run(folded, new_arguments, new_auxiliary, data), run(symbol, arguments, auxiliary, data)
    for found, expected in zip(*outputs):
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5 * np.abs(expected).max())
    assert all(np.array_equal(arguments[name], before[name]) for name in before)  # what was given stays as it was
    return new_arguments


@pytest.mark.parametrize("no_bias", [True, False])
@pytest.mark.parametrize("fix_gamma", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
def test_behind_a_convolution(no_bias, fix_gamma, groups):
    layer = sym.Convolution(sym.Variable("data"), num_filter=6, kernel=(3, 3), pad=(1, 1), num_group=groups,
                               no_bias=no_bias, name="conv")
    arguments = check(sym.BatchNorm(layer, fix_gamma=fix_gamma, eps=1e-2, name="norm").graph(), (2, 4, 5, 5), 0)
    assert sorted(arguments) == ["conv_bias", "conv_weight"]


def test_behind_a_fully_connected_layer():
    """``fix_gamma`` and epsilon not given: MXNet's own defaults, true and 1e-3."""
    layer = sym.FullyConnected(sym.Variable("data"), num_hidden=5, name="pre_fc1")
    check(sym.BatchNorm(layer, name="fc1").graph(), (3, 4), 0)


def test_what_is_used_twice_stays():
    data, weight = sym.Variable("data"), sym.Variable("shared_weight")
    seen = sym.Convolution(data, num_filter=4, kernel=(1, 1), name="seen")
    twins = [sym.Convolution(data, weight, num_filter=4, kernel=(1, 1), no_bias=True, name=f"twin{i}")
             for i in range(2)]
    norms = [sym.BatchNorm(layer, fix_gamma=False, name=f"norm{i}") for i, layer in enumerate([seen, *twins])]
    check(sym.group(norms[0] + seen, norms[1] + norms[2]), (2, 3, 4, 4), 3)


def test_in_front_of_a_padded_convolution_and_on_another_axis_it_stays():
    norm = sym.BatchNorm(sym.Variable("data"), fix_gamma=False, name="first")
    layer = sym.Convolution(norm, num_filter=4, kernel=(3, 3), pad=(1, 1), no_bias=True, name="conv")
    check(sym.BatchNorm(layer, fix_gamma=False, axis=2, name="rows").graph(), (2, 3, 4, 4), 2)
