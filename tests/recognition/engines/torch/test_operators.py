# SPDX-License-Identifier: Apache-2.0
"""Every operator of the table in PyTorch against MXNet 1.9.1 in float64: outputs, gradients, moving statistics.

Both round sums of some dozen numbers to float64's 1e-16, and MXNet keeps factors such as eps in float32: 1e-7.
"""
from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
if importlib.util.find_spec("mxnet") is None:
    pytest.skip("needs MXNet to compare with", allow_module_level=True)

from recognition.engines.mxnet.imports import mx  # noqa: E402
from recognition.engines.torch.network import Network  # noqa: E402
from recognition.engines.torch.operators import FUNCTIONS, OF_THE_PASS  # noqa: E402
from recognition.engines.torch.operators.passes import Pass  # noqa: E402
from recognition.errors import UserError  # noqa: E402
from recognition.networks import sym  # noqa: E402
from recognition.networks.graph import Graph  # noqa: E402
from recognition.networks.operators import OPERATORS  # noqa: E402
from recognition.networks.shapes import all_shapes  # noqa: E402

MAPS = (2, 4, 6, 5)
# Operators that MXNet 1.9.1 has in float32 alone, which rounds to 6e-8: sums of some dozens are within 1e-5.
SINGLE = ("SoftmaxActivation", "BatchNorm_v1", "_contrib_SyncBatchNorm", "InstanceNorm", "LRN", "amp_cast",
          "amp_multicast")
NORMAL, POSITIVE, SPREAD, WHOLE = "normal", "positive", "spread", "whole"  # what numbers an input has


def case(name: str, *shapes: tuple[int, ...], numbers: str = NORMAL, output: int = 0, training: bool = True,
         **attrs: Any) -> Any:
    """A node of the operator and the shapes of its inputs; those that are not given follow from the first."""
    text = {key: str(value) for key, value in attrs.items()}
    words = [name, *(f"{key}={value}" for key, value in text.items()), *map(str, shapes[:1]), numbers]
    if output:
        words.append(f"output {output}")
    found = SimpleNamespace(name=name, shapes=shapes or (MAPS,), numbers=numbers, output=output, training=training,
                            attrs=text)
    return pytest.param(found, id=" ".join(words if training else [*words, "inference"]))


def each(names: str, *shapes: tuple[int, ...], **options: Any) -> list[Any]:
    return [case(name, *shapes, **options) for name in names.split()]


K3 = {"kernel": (3, 3)}
CONVOLUTIONS = [
    case("Convolution", **K3, num_filter=6), case("Convolution", **K3, num_filter=6, no_bias=True, pad=(1, 1)),
    case("Convolution", **K3, num_filter=4, num_group=4, stride=(2, 1), pad=(1, 0)),
    case("Convolution", kernel=(2, 3), num_filter=4, num_group=2, dilate=(2, 1), layout="NCHW"),
    case("Convolution", (2, 4, 9), kernel=(3,), num_filter=3, pad=(1,), stride=(2,)),
    case("Convolution", (1, 2, 3, 4, 5), kernel=(2, 2, 2), num_filter=3),
    case("Convolution_v1", **K3, num_filter=6, pad=(1, 1), stride=(2, 2)),
    case("Deconvolution", **K3, num_filter=6), case("Deconvolution", kernel=(4, 4), num_filter=2, num_group=2,
                                                    stride=(2, 2), pad=(1, 1), no_bias=False),
    case("Deconvolution", **K3, num_filter=3, stride=(2, 2), adj=(1, 0), pad=(1, 1)),
    case("Deconvolution", **K3, num_filter=3, stride=(2, 2), target_shape=(12, 10)),
    case("Deconvolution", **K3, num_filter=3, stride=(2, 2), target_shape=(11, 10), pad=(3, 3)),
    case("Deconvolution", (2, 3, 5), kernel=(3,), num_filter=3, dilate=(2,)),
    case("FullyConnected", num_hidden=5), case("FullyConnected", num_hidden=3, no_bias=True, flatten=False),
]
POOLINGS = [
    *(case("Pooling", kernel=(3, 2), stride=stride, pad=pad, pool_type=kind, pooling_convention=convention)
      for kind in ("max", "avg", "sum") for convention in ("valid", "full")
      for stride, pad in (((1, 1), (0, 0)), ((2, 2), (1, 1)), ((2, 3), (1, 0)))),
    case("Pooling", kernel=(2, 2), pad=(2, 2), pool_type="max", stride=(3, 3)),
    case("Pooling", kernel=(3, 3), pad=(1, 1), pool_type="avg", count_include_pad=False),
    case("Pooling", kernel=(3, 3), pad=(1, 1), pool_type="avg", count_include_pad=False, stride=(2, 2),
         pooling_convention="full"),
    case("Pooling", kernel=(3, 3), stride=(2, 2), pool_type="avg", count_include_pad=True, pooling_convention="full"),
    *(case("Pooling", kernel=(3, 2), stride=(2, 2), pool_type="lp", p_value=power, numbers=POSITIVE)
      for power in (1, 2, 3)),
    case("Pooling", kernel=(3, 2), stride=(2, 2), pool_type="lp", p_value=2),
    *(case("Pooling", kernel=(2, 2), global_pool=True, pool_type=kind) for kind in ("max", "avg", "sum")),
    case("Pooling", global_pool=True, pool_type="lp", p_value=2),
    *(case("Pooling", (2, 3, 8), kernel=(3,), stride=(2,), pad=(1,), pool_type=kind, pooling_convention="full")
      for kind in ("max", "avg")),
    case("Pooling", (1, 2, 4, 5, 6), kernel=(2, 2, 2), stride=(2, 2, 2), pool_type="avg", pooling_convention="full"),
    case("Pooling", (2, 6, 5, 4), kernel=(2, 2), pool_type="max", layout="NHWC"),
    *(case("Pooling_v1", kernel=(3, 3), stride=(2, 2), pad=(1, 1), pool_type=kind, pooling_convention=convention)
      for kind in ("max", "avg", "sum") for convention in ("valid", "full")),
    case("Pooling_v1", kernel=(2, 2), pool_type="max", numbers=WHOLE),
    case("Pooling_v1", kernel=(2, 2), pool_type="avg", global_pool=True),
    case("_contrib_AdaptiveAvgPooling2D", output_size=(3, 2)), case("_contrib_AdaptiveAvgPooling2D"),
    case("UpSampling", scale=2, sample_type="nearest", num_args=1),
    case("UpSampling", scale=3, sample_type="bilinear", num_filter=4, num_args=2),
    case("UpSampling", scale=4, sample_type="bilinear", num_filter=4, num_args=2),
]
LAYERS = [
    *(case("Activation", act_type=kind) for kind in ("relu", "sigmoid", "softrelu", "softsign", "tanh")),
    *(case("LeakyReLU", act_type=kind, slope=0.3) for kind in ("leaky", "elu", "gelu")),
    case("LeakyReLU", act_type="selu", training=False),
    case("LeakyReLU", act_type="prelu"), case("LeakyReLU", MAPS, (1,), act_type="prelu"),
    case("LeakyReLU", (3, 5), act_type="prelu"), case("LeakyReLU", act_type="rrelu", training=False),
    case("Dropout", p=0.5, training=False), case("Dropout", p=0.0),
    # Of more than two axes MXNet's gradient runs over another axis than the softmax: ours is the derivative.
    case("SoftmaxActivation", (3, 5)), case("SoftmaxActivation", training=False),
    case("SoftmaxActivation", mode="channel"),
    *(case("SoftmaxOutput", (4, 5), numbers=WHOLE, grad_scale=2.0, normalization=kind, use_ignore=ignore,
           ignore_label=1.0) for kind in ("null", "batch", "valid") for ignore in (True, False)),
    *(case("SoftmaxOutput", (3, 5, 4), numbers=WHOLE, multi_output=True, normalization=kind)
      for kind in ("null", "batch", "valid")),
    case("SoftmaxOutput", (4, 5), numbers=WHOLE, smooth_alpha=0.1), case("SoftmaxOutput", (4, 5), (4, 5)),
    case("SoftmaxOutput", (3, 2, 5), (3, 2), numbers=WHOLE, preserve_shape=True),
]
NORMS = [
    *(case(name, **{"key": "a"} if "Sync" in name else {}, fix_gamma=fixed, momentum=0.7)
      for name in ("BatchNorm", "BatchNorm_v1", "_contrib_SyncBatchNorm") for fixed in (True, False)),
    case("BatchNorm"), case("BatchNorm", fix_gamma=False, use_global_stats=True), case("BatchNorm", training=False),
    case("BatchNorm", (5, 3), fix_gamma=False, eps=2e-5), case("BatchNorm", axis=3, fix_gamma=False),
    case("BatchNorm", (1, 3), fix_gamma=False, eps=2e-5),
    case("LayerNorm"), case("LayerNorm", axis=1), case("GroupNorm", num_groups=2), case("InstanceNorm"),
    case("InstanceNorm", (2, 3, 7), eps=1e-2),
    *(case("L2Normalization", mode=mode) for mode in ("instance", "channel", "spatial")),
    case("LRN", nsize=3), case("LRN", nsize=5, alpha=0.5, beta=0.6, knorm=1.5),
]
ONES = [
    case("_grad_add", MAPS, MAPS, training=False),
    *each("_copy BlockGrad ones_like zeros_like softsign erf floor ceil round sign _contrib_div_sqrt_dim square relu "
          "negative sigmoid tanh exp abs softmax log_softmax"),
    case("round", numbers=WHOLE), case("sign", numbers=WHOLE), case("abs", numbers=WHOLE),
    *each("log rsqrt reciprocal sqrt", numbers=POSITIVE),
    case("hard_sigmoid", numbers=SPREAD), case("hard_sigmoid", alpha=0.5, beta=0.2),
    case("softmax", axis=1, temperature=2.0), case("log_softmax", axis=1),
    case("Cast", dtype="float64"), case("amp_cast", dtype="float32"), case("clip", a_min=-0.5, a_max=0.7),
    case("amp_multicast", MAPS, MAPS, num_outputs=2, output=1),
    *each("_plus_scalar _minus_scalar _rminus_scalar _mul_scalar _div_scalar _rdiv_scalar _maximum_scalar "
          "_minimum_scalar _mod_scalar _greater_scalar _lesser_scalar _rpower_scalar _rmod_scalar _hypot_scalar "
          "_logical_and_scalar", scalar=0.75),
    case("_power_scalar", scalar=1.5, numbers=POSITIVE), case("_power_scalar", scalar=2.0),
    *each("_equal_scalar _greater_scalar _maximum_scalar _minimum_scalar _mod_scalar", scalar=1.0, numbers=WHOLE),
    *each("_mod_scalar _rmod_scalar", scalar=-1.5),
    *each("_not_equal_scalar _greater_equal_scalar _lesser_equal_scalar _logical_and_scalar _logical_or_scalar "
          "_logical_xor_scalar", scalar=1.0, numbers=WHOLE),
    *each("_logical_and_scalar _logical_or_scalar _logical_xor_scalar", scalar=0.0, numbers=WHOLE),
]
TWOS = [
    *each("elemwise_add elemwise_sub elemwise_mul elemwise_div _maximum _minimum", MAPS, MAPS),
    *each("_mod _hypot", MAPS, MAPS),
    *each("_equal _not_equal _greater _greater_equal _lesser _lesser_equal _logical_and _logical_or _logical_xor",
          MAPS, MAPS, numbers=WHOLE),
    *each("_maximum _minimum", MAPS, MAPS, numbers=WHOLE), case("_power", MAPS, MAPS, numbers=POSITIVE),
    *each("broadcast_add broadcast_sub broadcast_mul broadcast_div broadcast_maximum broadcast_minimum",
          MAPS, (1, 4, 1, 5)),
    *each("broadcast_mul broadcast_maximum", (2, 4, 1, 1), MAPS),
    *each("broadcast_maximum broadcast_minimum", MAPS, (1, 4, 1, 5), numbers=WHOLE),
    case("broadcast_power", MAPS, (1, 4, 1, 5), numbers=POSITIVE), case("add_n", MAPS, MAPS, MAPS, num_args=3),
    case("dot", (3, 4), (4, 5)), case("dot", (4, 3), (5, 4), transpose_a=True, transpose_b=True),
    case("dot", (3, 2, 4), (4, 2, 3)), case("dot", (4,), (4,)), case("dot", (2, 3, 4), (4,)),
    case("batch_dot", (3, 2, 4), (3, 4, 5)),
    case("batch_dot", (3, 4, 2), (3, 5, 4), transpose_a=True, transpose_b=True),
]
REDUCTIONS = [
    *(case(name, **attrs) for name in ("sum", "mean", "max", "min", "prod") for attrs in (
        {}, {"axis": 1}, {"axis": "(2, 3)", "keepdims": True}, {"axis": "(0, -1)", "exclude": True})),
    *each("max min", (3, 4), numbers=WHOLE, axis=1),
    case("norm"), case("norm", axis=1, keepdims=True), case("norm", ord=1, axis=1), case("norm", axis="(2, 3)"),
    *(case(name, **attrs) for name in ("argmax", "argmin") for attrs in (
        {}, {"axis": 1}, {"axis": -1, "keepdims": True})),
    *each("argmax argmin", (3, 9), numbers=WHOLE, axis=1),
]
RESHAPES = [
    case("Flatten"), *(case("Reshape", shape=codes) for codes in (
        "(0, -1)", "(-1,)", "(-2,)", "(0, -3, -2)", "(0, -4, -1, 2, -2)", "(-3, -3)", "(0, 0, 10, 3)")),
    case("Reshape", shape="(-1, 0)", reverse=True), case("Reshape", target_shape="(2, 0)"),
    case("transpose"), case("transpose", axes="(0, 2, 3, 1)"), case("SwapAxis", dim1=1, dim2=3),
    case("expand_dims", axis=1), case("expand_dims", axis=-1), case("squeeze", (2, 1, 3, 1)),
    case("squeeze", (2, 1, 3, 1), axis=1), case("squeeze", (1, 1)), case("depth_to_space", (2, 8, 3, 2), block_size=2),
    case("space_to_depth", (2, 3, 4, 6), block_size=2), case("reshape_like", (6, 4), (2, 3, 4)),
    case("reshape_like", (6, 4), (2, 3, 5), lhs_begin=0, lhs_end=1, rhs_begin=0, rhs_end=2),
]
PIECES = [
    case("SliceChannel", num_outputs=2, output=1), case("SliceChannel", num_outputs=6, axis=2, squeeze_axis=True),
    case("tile", reps="(2, 1, 1, 3)"), case("tile", (2, 3), reps="(2, 1, 2)"), case("repeat", repeats=2),
    case("repeat", repeats=3, axis=1), case("reverse", axis="(1, 3)"),
    *(case("Pad", mode=mode, pad_width="(0, 0, 0, 0, 1, 2, 3, 1)", constant_value=2.5)
      for mode in ("constant", "edge", "reflect")),
    case("Pad", (1, 2, 3, 4, 3), mode="reflect", pad_width="(0, 0, 0, 0, 1, 2, 3, 1, 0, 2)"),
    case("Concat", MAPS, (2, 3, 6, 5), num_args=2), case("Concat", MAPS, MAPS, MAPS, num_args=3, dim=-1),
    case("stack", MAPS, MAPS, num_args=2, axis=1), case("slice", begin="(0, 1)", end="(1, None)"),
    case("slice", begin="(None, -1, 0)", end="(None, -4, 5)", step="(1, -1, 2)"),
    case("slice_axis", axis=1, begin=1, end=3), case("slice_axis", axis=-1, begin=-3, end="None"),
    *(case("take", (4, 3, 5), (2, 3), numbers=WHOLE, axis=axis, mode=mode)
      for axis in (0, 1, -1) for mode in ("clip", "wrap")),
    case("slice_like", MAPS, (2, 3, 4, 5)), case("slice_like", MAPS, (2, 3, 4, 2), axes="(2, -1)"),
    case("broadcast_axis", (2, 1, 3, 1), axis="(1, 3)", size="(4, 2)"),
    case("broadcast_to", (2, 1, 3, 1), shape="(0, 4, 0, 2)"), case("broadcast_like", (2, 1, 3, 1), (2, 4, 3, 2)),
    case("broadcast_like", (2, 1, 3, 1), (5, 6), lhs_axes="(1, 3)", rhs_axes="(0, 1)"),
]
CASES = [*CONVOLUTIONS, *POOLINGS, *LAYERS, *NORMS, *ONES, *TWOS, *REDUCTIONS, *RESHAPES, *PIECES]


def graph_of(drawn: Any) -> Graph:
    """The operator with the variables ``data``, ``v1``, ``v2`` ...; states, if it has some, last."""
    operator = OPERATORS[drawn.name]
    inputs = len(drawn.shapes) if operator.variadic else len(operator.input_names(operator.values(drawn.attrs)))
    inputs = max(inputs, int(drawn.attrs.get("num_args", 0)))
    names = ["data", *(f"v{number}" for number in range(1, inputs))]
    nodes = [{"op": "null", "name": name, "inputs": [], "attrs": {"__shape__": str(shape)} if shape else {}}
             for name, shape in zip(names, (*drawn.shapes, *[None] * inputs))]
    nodes.append({"op": drawn.name, "name": "n", "attrs": drawn.attrs, "inputs": [
        [place, 0, int(operator.is_state(place))] for place in range(inputs)]})
    return Graph.from_dict({"nodes": nodes, "heads": [[inputs, drawn.output, 0]],
                            "attrs": {"mxnet_version": ["int", 10901]}})


def arrays_for(drawn: Any, graph: Graph) -> dict[str, np.ndarray]:
    random = np.random.default_rng(len(drawn.name))
    shapes = {node.name: found[0] for node, found in zip(graph.nodes, all_shapes(graph, drawn.shapes[0]))}
    arrays = {}
    for name in graph.list_inputs():
        array = random.standard_normal(shapes[name])
        if drawn.numbers == POSITIVE or name in graph.list_auxiliary_states():
            array = random.uniform(0.3, 2, shapes[name])
        elif drawn.numbers == SPREAD:
            array *= 5
        elif drawn.numbers == WHOLE:  # some of them the same, or halves of odd numbers
            array = random.integers(0, 4, shapes[name]) / (2 if drawn.name == "round" else 1) - (drawn.name == "round")
        arrays[name] = array
    return arrays


def by_mxnet(drawn: Any, graph: Graph, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    states, dtype = graph.list_auxiliary_states(), "float32" if drawn.name in SINGLE else "float64"
    bound = {name: mx.nd.array(array, dtype=dtype) for name, array in arrays.items()}
    arguments = {name: array for name, array in bound.items() if name not in states}
    gradients = {name: mx.nd.zeros_like(array) for name, array in arguments.items()} if drawn.training else None
    executor = mx.sym.load_json(graph.to_json()).bind(
        mx.cpu(), arguments, gradients, "write" if drawn.training else "null",
        aux_states={name: bound[name] for name in states})
    found = {"output": executor.forward(is_train=drawn.training)[0].asnumpy()}
    if drawn.training:
        out = np.random.default_rng(1).standard_normal(found["output"].shape)
        executor.backward([mx.nd.array(out, dtype=dtype)])
        found.update({f"d {name}": array.asnumpy() for name, array in gradients.items()})
    mx.nd.waitall()
    return {**found, **{name: bound[name].asnumpy() for name in states}}


def by_torch(drawn: Any, graph: Graph, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    network = Network(graph, arrays, arrays, torch.device("cpu"), torch.float64)
    images = torch.tensor(arrays["data"], requires_grad=True)
    output = network(images, drawn.training)
    found = {"output": output}
    if drawn.training:
        output.backward(torch.from_numpy(np.random.default_rng(1).standard_normal(tuple(output.shape))))
        images.grad = torch.zeros_like(images) if images.grad is None else images.grad
        found.update({"d data": images.grad, **{f"d {name}": item.grad for name, item in network.arguments.items()}})
    return {name: tensor.detach().numpy() for name, tensor in {**found, **network.auxiliary}.items()}


@pytest.mark.parametrize("drawn", CASES)
def test_operator_gives_what_it_gives_in_mxnet(drawn: Any) -> None:
    graph = graph_of(drawn)
    arrays = arrays_for(drawn, graph)
    expected, found = by_mxnet(drawn, graph, arrays), by_torch(drawn, graph, arrays)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].shape == array.shape, name
        tolerance = 1e-5 if drawn.name in SINGLE else 1e-6
        np.testing.assert_allclose(found[name], array, rtol=tolerance, atol=tolerance * max(1.0, np.abs(array).max()),
                                   err_msg=name)


@pytest.mark.parametrize("drawn", [
    case("BatchNorm", output_mean_var=True), case("BatchNorm", output_mean_var=True, training=False),
    case("LayerNorm", output_mean_var=True), case("LayerNorm", output_mean_var=True, axis=1),
    case("GroupNorm", output_mean_var=True, num_groups=2)])
def test_moments_behind_the_result_are_those_of_mxnet(drawn: Any) -> None:
    graph = graph_of(drawn)
    arrays, head = arrays_for(drawn, graph), graph.heads[0]
    together = Graph(graph.nodes, [head, head._replace(output=1), head._replace(output=2)])
    expected = mx.sym.load_json(together.to_json()).bind(
        mx.cpu(), {name: mx.nd.array(arrays[name], dtype="float64") for name in graph.list_arguments()},
        aux_states={name: mx.nd.array(arrays[name], dtype="float64") for name in graph.list_auxiliary_states()},
    ).forward(is_train=drawn.training)
    for output in (0, 1, 2):
        alone = Graph(graph.nodes, [head._replace(output=output)])
        network = Network(alone, arrays, arrays, torch.device("cpu"), torch.float64)
        found = network(torch.tensor(arrays["data"]), drawn.training).detach().numpy()
        np.testing.assert_allclose(found, expected[output].asnumpy(), rtol=1e-6, atol=1e-6)


def gradients_by_torch(name: str, data: np.ndarray, out: np.ndarray, **attrs: Any) -> tuple[np.ndarray, np.ndarray]:
    """Output and gradient of an operator with one input."""
    operator = OPERATORS[name]
    values, tensor = operator.values({key: str(value) for key, value in attrs.items()}), torch.tensor(data)
    run = (Pass(True, None),) if name in OF_THE_PASS else ()
    output = {**FUNCTIONS, **OF_THE_PASS}[name](*run, values, tensor.requires_grad_())
    output.backward(torch.tensor(out))
    return output.detach().numpy(), tensor.grad.numpy()


def test_selu_has_its_own_gradient() -> None:
    """MXNet 1.9.1 takes ``lambda (y + alpha)``, which is not the derivative, ``y + lambda alpha``; rounding: 1e-14."""
    data = np.random.default_rng(0).standard_normal((3, 4)) - 1
    output, gradient = gradients_by_torch("LeakyReLU", data, np.ones_like(data), act_type="selu")
    expected = np.where(data > 0, 1.0507009873554805, output + 1.0507009873554805 * 1.6732632423543772)
    np.testing.assert_allclose(gradient, expected, rtol=1e-14)


@pytest.mark.parametrize(("kind", "expected"), [("max", [3, 5, 7, 7]), ("sum", [6, 12, 18, 7]), ("avg", [2, 4, 6, 7])])
def test_pooling_by_the_convention_same_has_a_window_a_step(kind: str, expected: list[float]) -> None:
    """By hand: MXNet 1.9.1 fails to bind it. Whole numbers have no rounding."""
    data = np.arange(1.0, 8).reshape(1, 1, 7)
    output, _ = gradients_by_torch("Pooling", data, np.ones((1, 1, 4)), kernel=(3,), stride=(2,), pool_type=kind,
                                   pooling_convention="same")
    np.testing.assert_array_equal(output.ravel(), expected)


@pytest.mark.parametrize("attrs", [{"p": 0.3}, {"p": 0.3, "mode": "always"}, {"p": 0.6, "axes": (2, 3)}], ids=str)
def test_dropout_draws_from_its_generator_and_keeps_the_mean(attrs: dict[str, Any]) -> None:
    graph = sym.Dropout(sym.Variable("data"), name="n", **attrs).graph()
    network, images = Network(graph, {}, {}, torch.device("cpu")), torch.ones(2, 64, 16, 16)
    first, again, other = (network(images, True, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    np.testing.assert_allclose(first.unique(), [0, 1 / (1 - attrs["p"])], rtol=1e-6)  # a rounding of float32
    per_map = first[..., :1, :1] == first
    assert bool(per_map.all()) == ("axes" in attrs)
    assert abs(first.mean() - 1) < 6 * (attrs["p"] / (1 - attrs["p"]) / per_map[..., 0, 0].numel()) ** 0.5  # 6 sigma
    assert torch.equal(network(images), images) == (attrs.get("mode") != "always")


def test_randomised_slopes_lie_between_their_bounds() -> None:
    graph = sym.LeakyReLU(sym.Variable("data"), act_type="rrelu", lower_bound=0.1, upper_bound=0.3).graph()
    slopes = -Network(graph, {}, {}, torch.device("cpu"))(-torch.ones(50, 50), True, torch.Generator().manual_seed(0))
    assert 0.1 <= slopes.min() < 0.11 and 0.29 < slopes.max() < 0.3


def test_no_parameter_is_without_a_gradient() -> None:
    """Also one that the output does not depend on: MXNet's gradient is then zero."""
    product = sym.FullyConnected(sym.Variable("data"), num_hidden=3, name="f")
    weight = sym.Reshape(sym.Variable("w", shape=(3,)), shape=(1, 3))
    graph = sym.broadcast_add(sym.BlockGrad(product), sym.round(weight)).graph()
    arrays = {"f_weight": np.ones((3, 2)), "f_bias": np.ones(3), "w": np.ones(3)}
    network = Network(graph, arrays, {}, torch.device("cpu"))
    network(torch.ones(2, 2), True).sum().backward()
    assert {name: float(item.grad.abs().sum()) for name, item in network.arguments.items()} == dict.fromkeys(arrays, 0)


def test_an_operator_that_is_not_there_is_refused_by_name() -> None:
    graph = Graph.from_dict({"nodes": [
        {"op": "null", "name": "data", "inputs": []},
        {"op": "Custom", "name": "mine", "attrs": {"op_type": "recognition_winograd", "num_filter": "3"},
         "inputs": [[0, 0, 0], [0, 0, 0]]}], "heads": [[1, 0, 0]], "attrs": {"mxnet_version": ["int", 10901]}})
    with pytest.raises(UserError, match=r"^the layer mine is of the operator Custom, which the PyTorch engine"):
        Network(graph, {}, {}, torch.device("cpu"))


def test_every_operator_of_the_table_is_there_and_compared() -> None:
    names = {operator.name for operator in OPERATORS.values() if operator.in_untrusted_files}
    assert {*FUNCTIONS, *OF_THE_PASS} == names
    assert {parameter.values[0].name for parameter in CASES} == names
