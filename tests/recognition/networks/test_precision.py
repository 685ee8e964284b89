# SPDX-License-Identifier: Apache-2.0
"""bfloat16 against float32, on the CPU; of float16, which needs a GPU, what can be known without one: types."""
from __future__ import annotations

import numpy as np
import pytest

from recognition.config.devices import require_bfloat16
from recognition.engines.mxnet.imports import mx
from recognition.engines.mxnet.passes.prelu import fast_prelu
from recognition.engines.mxnet.symbols import to_symbol
from recognition.errors import UserError
from recognition.networks import sym
from recognition.networks.families import fdensenet, fmobilefacenet, fresnet
from recognition.networks.graph import Graph
from recognition.networks.initialise import initialise
from recognition.networks.low_precision import low_precision
from recognition.networks.shapes import infer_shapes

IMAGE = (3, 112, 112)
NETWORKS = {
    "y1": lambda: fmobilefacenet.get_symbol(),
    "r18": lambda: fresnet.get_symbol(num_layers=18, net_output="G"),
}


@pytest.fixture(autouse=True, scope="module")
def _processor() -> None:
    try:
        require_bfloat16("these tests")
    except UserError as reason:
        pytest.skip(str(reason))


def convolution(channels: int = 16, images: int = 4) -> tuple[Graph, dict[str, np.ndarray]]:
    """Convolution, batch norm, ReLU, a sum and a fully connected layer, and values for all arguments."""
    data = sym.Convolution(sym.Variable("data"), kernel=(3, 3), pad=(1, 1), num_filter=channels, no_bias=True)
    data = sym.BatchNorm(data, fix_gamma=False, name="n")
    data = sym.Activation(data, act_type="relu") + data
    symbol = sym.FullyConnected(sym.FullyConnected(data, num_hidden=8, name="f"), num_hidden=5, name="fc1").graph()
    shapes = to_symbol(symbol).infer_shape(data=(images, channels, 6, 6))[0]
    random = np.random.default_rng(0)
    return symbol, {name: random.standard_normal(shape) for name, shape in zip(symbol.list_arguments(), shapes)}


def step(symbol, values, states=None):
    shapes = {name: array.shape for name, array in values.items()}
    executor = to_symbol(symbol).simple_bind(mx.cpu(), grad_req="write", **shapes)
    executor.copy_params_from({name: mx.nd.array(array) for name, array in values.items()},
                              {name: mx.nd.array(array) for name, array in (states or {}).items()})
    mx.random.seed(1)
    output = executor.forward(is_train=True)[0]
    executor.backward([mx.nd.array(np.random.default_rng(2).standard_normal(output.shape))])
    mx.nd.waitall()
    assert {array.dtype for array in (*executor.arg_arrays, *executor.grad_arrays, *executor.aux_arrays, output)} == \
           {np.float32}
    return output.asnumpy(), {name: array.asnumpy() for name, array in executor.grad_dict.items()}


def test_a_few_layers_within_the_rounding_of_bfloat16():
    """8 bits of significand: each of the five layers rounds by up to 2**-9, 0.2 %, and so do their gradients. 2 % of
    the norm leaves room for sums of such errors; what lies before a batch norm has no mean and 5 %."""
    symbol, values = convolution()
    output, gradients = step(symbol, values)
    found, found_gradients = step(low_precision(symbol, "bfloat16", (16, 6, 6)), values)
    assert np.linalg.norm(found - output) <= 0.02 * np.linalg.norm(output)
    assert (found != output).any()  # it did run in 16 bits
    for name, gradient in gradients.items():
        assert np.linalg.norm(found_gradients[name] - gradient) <= 0.05 * np.linalg.norm(gradient), name


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_with_fast_prelu(name):
    """A hundred roundings behind each other, and batch norms that take the means out: 10 % of the output, and gradients
    as one vector that point the same way, cosine 0.9. Sixteen images: with fewer the variances themselves are noise."""
    symbol = fast_prelu(NETWORKS[name]())
    values, states = initialise(symbol, IMAGE, 0)
    values["data"] = np.random.default_rng(0).integers(0, 256, (16, *IMAGE))
    output, gradients = step(symbol, values, states)
    found, found_gradients = step(low_precision(symbol, "bfloat16"), values, states)
    assert np.linalg.norm(found - output) <= 0.1 * np.linalg.norm(output)
    ours, theirs = (np.concatenate([all_[key].ravel() for key in gradients if key != "data"]).astype(np.float64)
                    for all_ in (found_gradients, gradients))
    assert ours @ theirs >= 0.9 * np.linalg.norm(ours) * np.linalg.norm(theirs)


@pytest.mark.slow
@pytest.mark.parametrize("symbol", [fdensenet.get_symbol(num_layers=169),
                                    fresnet.get_symbol(num_layers=18, net_output="GNAP", net_se=1)])
def test_all_operators_have_gradients(symbol):
    symbol = low_precision(fast_prelu(symbol), "bfloat16")
    values, states = initialise(symbol, IMAGE, 0)
    values["data"] = np.random.default_rng(0).integers(0, 256, (2, *IMAGE))
    _, gradients = step(symbol, values, states)
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_parameters_statistics_and_output_stay_float32(dtype):
    symbol = fmobilefacenet.get_symbol()
    low = low_precision(symbol, dtype)
    assert low.list_arguments() == symbol.list_arguments()
    assert low.list_auxiliary_states() == symbol.list_auxiliary_states()
    assert low.list_outputs() == symbol.list_outputs()
    assert infer_shapes(low, IMAGE, 2) == infer_shapes(symbol, IMAGE, 2)
    given = dict.fromkeys(low.list_arguments(), np.float32)
    assert {kind for kinds in to_symbol(low).infer_type(**given) for kind in kinds} == {np.float32}
    inner = to_symbol(low).get_internals()
    kinds = dict(zip(inner.list_outputs(), inner.infer_type(**given)[1]))
    first, *nodes = [node for node in low.nodes if node.op == "Convolution"]
    assert kinds[first.name + "_output"] != np.float32 or dtype == "bfloat16"  # of three channels: slow in bfloat16
    assert {kinds[node.name + "_output"] for node in nodes} != {np.float32}
    assert len({str(kinds[node.name + "_output"]) for node in nodes}) == 1


def test_a_processor_without_bfloat16_is_refused(tmp_path, monkeypatch):
    cpu_info = tmp_path / "cpuinfo"
    monkeypatch.setattr("recognition.config.devices.CPU_INFO", cpu_info)
    with pytest.raises(UserError, match="float16 needs a GPU"):
        require_bfloat16("fp16")
    cpu_info.write_text("processor : 0\nflags : fpu avx2 avx512f\n")
    with pytest.raises(UserError, match=r"--fp16-scale: this processor has no bfloat16 .none of avx512_bf16"):
        require_bfloat16("--fp16-scale")
    cpu_info.write_text("flags : fpu avx512_bf16\n")
    require_bfloat16("--fp16-scale")
