# SPDX-License-Identifier: Apache-2.0
"""Recomputation against keeping: the same bits, dropout and batch norm's statistics included, in less memory."""
from __future__ import annotations

import os
import re

import numpy as np
import pytest

from recognition.config.devices import require_bfloat16
from recognition.engines.mxnet.imports import mx
from recognition.engines.mxnet.passes.prelu import fast_prelu
from recognition.engines.mxnet.symbols import to_symbol
from recognition.errors import UserError
from recognition.networks import sym
from recognition.networks.families import fmobilefacenet, fresnet
from recognition.networks.initialise import initialise
from recognition.networks.low_precision import low_precision
from recognition.networks.recompute import ATTRIBUTE, recompute

IMAGE = (3, 112, 112)
NETWORKS = {
    "residual, dropout": lambda: fast_prelu(fresnet.get_symbol(num_layers=18)),
    "bfloat16": lambda: low_precision(fast_prelu(fmobilefacenet.get_symbol()), "bfloat16"),
    "depthwise": lambda: fast_prelu(fmobilefacenet.get_symbol(net_output="GDC")),
}


def train(symbol, steps=2):
    """Output, gradients and statistics after two forward and backward passes, and the MB that the executor planned."""
    values, states = initialise(symbol, IMAGE, 0)
    executor = to_symbol(symbol).simple_bind(mx.cpu(), grad_req="write", data=(2, *IMAGE))
    values["data"] = np.random.default_rng(0).integers(0, 256, (2, *IMAGE))
    executor.copy_params_from({name: mx.nd.array(array) for name, array in values.items()},
                              {name: mx.nd.array(array) for name, array in states.items()})
    mx.random.seed(5)
    for _ in range(steps):
        output = executor.forward(is_train=True)[0]
        executor.backward([mx.nd.array(np.random.default_rng(1).standard_normal(output.shape))])
    mx.nd.waitall()
    gradients = {f"d {name}": array for name, array in executor.grad_dict.items()}
    arrays = {"output": output, **gradients, **executor.aux_dict}
    memory = int(re.search(r"Total (\d+) MB", executor.debug_str())[1])
    return {name: array.asnumpy() for name, array in arrays.items()}, memory


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_bits_in_less_memory(name):
    """Two steps: statistics moved twice a step would differ after the first, a second mask of dropout in the gradients.
    The maps take at most two thirds of the memory."""
    if name == "bfloat16":
        try:
            require_bfloat16("this test")
        except UserError as reason:
            pytest.skip(str(reason))
    symbol = NETWORKS[name]()
    marked = recompute(symbol)
    casts = [graph.to_json().count("amp_cast") for graph in (symbol, marked)]
    assert casts[0] == casts[1]
    kept, memory = train(symbol)
    again, less = train(marked)
    assert [name for name in kept if kept[name].tobytes() != again[name].tobytes()] == []
    assert less <= memory * 2 / 3
    assert "MXNET_BACKWARD_DO_MIRROR" not in os.environ


def test_statistics_move_once_a_step():
    """Against the formula: momentum 0.9 on mean and variance of the images, started from 0 and 1."""
    data = sym.BatchNorm(sym.Variable("data"), momentum=0.9, name="n")
    data = sym.Activation(sym.Activation(data, act_type="tanh"), act_type="sigmoid")
    marked = recompute((sym.Flatten(data) * 2).graph(), (3, 8, 8))
    assert ATTRIBUTE in marked.attributes()["n"]
    executor = to_symbol(marked).simple_bind(mx.cpu(), grad_req="write", data=(4, 3, 8, 8))
    images = np.random.default_rng(0).standard_normal((4, 3, 8, 8)) + 2
    executor.copy_params_from({"data": mx.nd.array(images)}, {"n_moving_var": mx.nd.ones(3)})
    executor.backward(executor.forward(is_train=True))
    mx.nd.waitall()
    np.testing.assert_allclose(executor.aux_dict["n_moving_mean"].asnumpy(), 0.1 * images.mean((0, 2, 3)), rtol=1e-5)


def test_it_is_of_one_symbol_and_leaves_names_alone():
    symbol = fmobilefacenet.get_symbol()
    saved = symbol.to_json()
    marked = recompute(symbol)
    assert symbol.to_json() == saved and ATTRIBUTE not in saved and ATTRIBUTE in marked.to_json()
    assert marked.list_arguments() == symbol.list_arguments() and marked.list_outputs() == symbol.list_outputs()
    assert marked.list_auxiliary_states() == symbol.list_auxiliary_states()


def test_on_a_gpu_batch_norm_is_kept():
    nodes = recompute(fmobilefacenet.get_symbol(), on_gpu=True).nodes
    marked = {node.op for node in nodes if ATTRIBUTE in node.attrs}
    assert "BatchNorm" not in marked and "Convolution" in marked

