# SPDX-License-Identifier: Apache-2.0
"""Networks in PyTorch against MXNet 1.9.1 in float64; and recomputation, autocast and layouts against plain passes."""
from __future__ import annotations

import contextlib
import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
if importlib.util.find_spec("mxnet") is None:
    pytest.skip("needs MXNet to compare with", allow_module_level=True)

from recognition.engines.mxnet.imports import mx  # noqa: E402
from recognition.engines.mxnet.passes.prelu import fast_prelu  # noqa: E402
from recognition.engines.mxnet.symbols import to_symbol  # noqa: E402
from recognition.engines.torch.network import Network  # noqa: E402
from recognition.errors import UserError  # noqa: E402
from recognition.networks import build_symbol, sym  # noqa: E402
from recognition.networks.graph import Graph, Node, rewrite  # noqa: E402
from recognition.networks.initialise import initialise  # noqa: E402
from recognition.networks.shapes import infer_shapes  # noqa: E402

CPU = torch.device("cpu")
GOLDEN = ("r18", "r34", "r50", "r50v1", "r100", "r100fc", "y1", "y2", "m1", "m05", "mnas", "mnas05", "mnas025", "d169",
          "d201", "vargfacenet")
QUICK = ("y1", "mnas025")
SMALL = {"net_name": "fmobilefacenet", "net_blocks": [1, 1, 1, 1], "emb_size": 32}
FRESNET = {"num_layers": 18, "emb_size": 32}
QUICK_OPTIONS: list[dict[str, Any]] = [
    *({**SMALL, "net_output": output} for output in ("E", "F", "G", "H", "FC", "I", "J", "SFC", "GAP")),
    {**SMALL, "net_output": "Z", "emb_size": 2048}, {**SMALL, "net_output": "GNAP", "emb_size": 512},
    *({**FRESNET, "net_unit": number, "net_input": number - 1, "net_se": number % 2} for number in (1, 2, 3)),
    {**SMALL, "net_act": "relu", "net_output": "E"},
    {"net_name": "fmobilenet", "net_multiplier": 0.25, "net_output": "GAP", "emb_size": 32},
    {"net_name": "vit", "net_multiplier": 0.125, "num_layers": 2, "net_drop_path": 0.1, "net_mask_ratio": 0.1,
     "emb_size": 32},
]
OPTIONS: list[dict[str, Any]] = [
    *QUICK_OPTIONS,
    *({**FRESNET, "net_unit": unit, "net_input": net_input, "net_se": net_input % 2}
      for unit in (1, 2, 3) for net_input in (0, 1, 2)),
    {"net_name": "fdensenet", "num_layers": 121, "densenet_dropout": 0.2, "emb_size": 32},
    {"net_name": "vargfacenet", "net_multiplier": 0.25, "net_se": 1, "net_output": "J", "emb_size": 32},
    {"net_name": "fmnasnet", "net_multiplier": 0.25, "net_output": "SFC", "emb_size": 32},
]


def lively(graph: Graph, side: int, batch: int = 2, seed: int = 0) -> tuple[Any, Any, np.ndarray]:
    """Parameters, statistics and images with which no two channels are alike: slopes and factors are drawn, too."""
    random = np.random.default_rng(seed)
    parameters, auxiliary = initialise(graph, (3, side, side), seed=1)
    for arrays in (parameters, auxiliary):
        for name, array in arrays.items():
            if not name.endswith("_weight"):
                arrays[name] = array + random.uniform(-0.1, 0.1, array.shape)
    return parameters, auxiliary, random.integers(0, 256, (batch, 3, side, side)).astype(float)


def comparable(graph: Graph) -> Graph:
    """The graph without dropout, of which each library draws its own, and with constants that float32 holds: so MXNet
    keeps them, also for float64."""
    defaults = {"BatchNorm": {"eps": "1e-3", "momentum": "0.9"}}
    nodes = [Node(node.operator, node.name, {
        key: repr(float(np.float32(text))) if key in ("eps", "momentum", "scalar") else text
        for key, text in {**defaults.get(node.op, {}), **node.attrs}.items()}, node.inputs) for node in graph.nodes]
    return rewrite(Graph(nodes, graph.heads), {"Dropout": lambda maker, node, inputs: inputs[0]})


def gradient_of(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape)


def by_mxnet(graph: Graph, parameters: Any, auxiliary: Any, images: np.ndarray) -> dict[str, np.ndarray]:
    """Features without and with training, gradients, and statistics after a step."""
    arguments = {name: mx.nd.array(array, dtype="float64") for name, array in {**parameters, "data": images}.items()}
    states = {name: mx.nd.array(array, dtype="float64") for name, array in auxiliary.items()}
    gradients = {name: mx.nd.zeros_like(arguments[name]) for name in parameters}
    # PReLU by our pass: MXNet's own gives wrong gradients of the slopes where it is computed in place.
    executor = to_symbol(fast_prelu(graph, images.shape[1:])).bind(
        mx.cpu(), arguments, gradients, {name: "write" if name in gradients else "null" for name in arguments}, states)
    found = {"inference": executor.forward(is_train=False)[0].asnumpy()}
    found["training"] = executor.forward(is_train=True)[0].asnumpy()
    executor.backward([mx.nd.array(gradient_of(found["training"].shape), dtype="float64")])
    mx.nd.waitall()
    found.update({f"d {name}": array.asnumpy() for name, array in gradients.items()})
    return {**found, **{name: array.asnumpy() for name, array in states.items()}}


def by_torch(graph: Graph, parameters: Any, auxiliary: Any, images: np.ndarray, dtype: Any = torch.float64,
             form: Any = torch.contiguous_format, seed: int = 5, **options: Any) -> dict[str, np.ndarray]:
    network = Network(graph, parameters, auxiliary, CPU, dtype, **options)
    data = torch.from_numpy(images).to(dtype).contiguous(memory_format=form)
    with torch.inference_mode():
        found = {"inference": network(data)}
    torch.clear_autocast_cache()  # of a test's autocast, which in PyTorch 2.9 would give the weights of inference again
    output = network(data, True, torch.Generator().manual_seed(seed))
    output.backward(torch.from_numpy(gradient_of(tuple(output.shape))).to(output.dtype))
    gradients = {f"d {name}": item.grad for name, item in network.arguments.items()}
    return {name: tensor.detach().numpy() for name, tensor in {
        **found, "training": output, **gradients, **network.auxiliary}.items()}


def assert_close(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float) -> None:
    """Each array within ``tolerance`` of its largest number. A gradient that cancels out, as that of an offset in
    front of a batch norm, is within it of the largest gradient."""
    assert found.keys() == expected.keys()
    largest = max(np.abs(array).max() for name, array in expected.items() if name.startswith("d "))
    for name, array in expected.items():
        scale = np.abs(array).max()
        error = np.abs(found[name] - array).max()
        assert error <= tolerance * max(scale, 1e-4 * largest), (name, error, scale)


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in GOLDEN])
def test_preset_is_the_golden_graph_in_mxnet(name: str, configuration: Callable[..., Any], shared: Path) -> None:
    """All in float64, whose 1e-16 grows by what the sums cancel out: a batch norm of two images is sensitive."""
    golden = Graph.from_dict(json.loads((shared / "legacy" / "symbols" / f"{name}-symbol.json").read_text()))
    parameters, auxiliary, images = lively(golden, 112)
    expected = by_mxnet(comparable(golden), parameters, auxiliary, images)
    found = by_torch(comparable(build_symbol(configuration(name))), parameters, auxiliary, images)
    assert_close(found, expected, 1e-9)


@pytest.mark.parametrize("options", [
    pytest.param(options, id=" ".join(map(str, options.values())),
                 marks=() if options in QUICK_OPTIONS else pytest.mark.slow) for options in OPTIONS])
def test_options_of_networks_give_what_they_give_in_mxnet(options: dict[str, Any],
                                                          configuration: Callable[..., Any]) -> None:
    """The same comparison, on images as small as the layers take."""
    side = 112 if options.get("net_name") == "vargfacenet" else 32
    graph = comparable(build_symbol(configuration(image_shape=(side, side, 3), **options)))
    arrays = lively(graph, side, batch=4)
    assert_close(by_torch(graph, *arrays), by_mxnet(graph, *arrays), 1e-9)


def test_legacy_checkpoint_gives_its_output(configuration: Callable[..., Any], shared: Path) -> None:
    """Float32 sums of 49 layers in another order: 1e-4 of the largest value."""
    folder = shared / "legacy" / "checkpoint" / "y1-softmax-emore"
    _, parameters, auxiliary = mx.model.load_checkpoint(str(folder / "model"), 1)
    network = Network(build_symbol(configuration("y1")), *({name: array.asnumpy() for name, array in arrays.items()}
                                                          for arrays in (parameters, auxiliary)), CPU)
    images = np.random.RandomState(0).randint(0, 256, (2, 3, 112, 112)).astype("float32")
    with torch.inference_mode():
        found = network(torch.from_numpy(images)).numpy()
    expected = np.load(folder / "expected.npz", allow_pickle=False)["fc1"]
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


@pytest.fixture
def small(configuration: Callable[..., Any]) -> Graph:
    """A network with dropout, prelu, depthwise convolutions and batch norms, for images of 32 x 32."""
    return build_symbol(configuration(image_shape=(32, 32, 3), **SMALL, net_output="E"))


@contextlib.contextmanager
def numbers_kept() -> Iterator[dict[int, int]]:
    """How many numbers passes inside keep for the backward pass, by their address."""
    saved: dict[int, int] = {}

    def count(tensor: Any) -> Any:
        saved[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        yield saved


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
def test_recomputation_gives_the_same_bits_and_keeps_less(small: Graph, autocast: bool) -> None:
    """Statistics that move twice or other masks of dropout would show; numbers kept for the backward pass are
    counted."""
    arrays = lively(small, 32)
    found, kept = [], []
    for recompute in (False, True):
        with numbers_kept() as saved, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found.append(by_torch(small, *arrays, torch.float32, recompute=recompute, image_shape=(3, 32, 32)))
        kept.append(sum(saved.values()))
    assert [name for name in found[0] if found[0][name].tobytes() != found[1][name].tobytes()] == []
    assert kept[1] < 0.8 * kept[0]


def test_recomputation_draws_the_same_masks_without_a_generator(small: Graph) -> None:
    arrays = lively(small, 32)
    found = []
    for recompute in (False, True):
        network = Network(small, *arrays[:2], CPU, recompute=recompute, image_shape=(3, 32, 32))
        torch.manual_seed(3)
        network(torch.from_numpy(arrays[2]), True).sum().backward()
        found.append({name: item.grad for name, item in network.arguments.items()})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_recomputation_takes_a_node_of_parameters_alone_that_many_layers_read() -> None:
    data, scale = sym.Variable("data"), sym.exp(sym.abs(sym.Variable("scale", shape=(1, 3, 1, 1))))
    scale = sym.elemwise_add(scale, sym.tanh(scale))
    for _ in range(6):
        data = sym.Activation(sym.broadcast_mul(sym.tanh(data), scale), act_type="sigmoid")
    graph = sym.Flatten(data).graph()
    parameters, images = {"scale": np.ones((1, 3, 1, 1))}, np.random.default_rng(0).standard_normal((2, 3, 4, 4))
    found = [by_torch(graph, parameters, {}, images, recompute=recompute, image_shape=(3, 4, 4))
             for recompute in (False, True)]
    assert [name for name in found[0] if found[0][name].tobytes() != found[1][name].tobytes()] == []


def test_under_autocast_statistics_gradients_and_features_stay_float32(small: Graph) -> None:
    """Bfloat16 rounds to 4e-3: after the layers the features are within 5 % of their norm."""
    arrays = lively(small, 32, batch=8)
    exact = by_torch(small, *arrays, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = by_torch(small, *arrays, torch.float32)
    assert {array.dtype for array in found.values()} == {np.dtype("float32")}
    for name in ("inference", "training"):
        error = np.linalg.norm(found[name] - exact[name]) / np.linalg.norm(exact[name])
        assert 1e-5 < error < 0.05


def test_channels_last_gives_the_same_numbers(small: Graph) -> None:
    """In float64 with another order of sums: 1e-9."""
    arrays = lively(small, 32)
    expected = by_torch(small, *arrays)
    assert_close(by_torch(small, *arrays, form=torch.channels_last), expected, 1e-9)


def test_moving_statistics_follow_the_formula_with_the_biased_variance() -> None:
    """Momentum 0.7 on mean and variance of the images in float64, from 0 and 1; inference leaves them alone."""
    graph = sym.BatchNorm(sym.Variable("data"), momentum=0.7, name="n").graph()
    shapes = infer_shapes(graph, (3, 4, 4))
    parameters = {name: np.full(shape, 0.5) for name, shape in shapes.arguments.items()}
    network = Network(graph, parameters, {"n_moving_mean": np.zeros(3), "n_moving_var": np.ones(3)}, CPU)
    images = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 4, 4)) + 2)
    network(images)
    assert network.auxiliary["n_moving_var"].tolist() == [1, 1, 1]
    network(images, training=True)
    batch = images.transpose(0, 1).flatten(1)
    np.testing.assert_allclose(network.auxiliary["n_moving_mean"], 0.3 * batch.mean(1), rtol=1e-6)
    np.testing.assert_allclose(network.auxiliary["n_moving_var"], 0.7 + 0.3 * batch.var(1, correction=0), rtol=1e-6)
    assert network.arguments["n_gamma"].tolist() == [1, 1, 1]  # fix_gamma, which is True where a graph does not say


def test_numbers_that_are_not_finite_do_not_stay_in_the_next_pass() -> None:
    graph = sym.BatchNorm(sym.Variable("data"), name="n").graph()
    network = Network(graph, {"n_gamma": np.ones(3), "n_beta": np.ones(3)},
                      {"n_moving_mean": np.zeros(3), "n_moving_var": np.ones(3)}, CPU)
    kept = {name: tensor.clone() for name, tensor in network.auxiliary.items()}
    network(torch.full((2, 3, 4, 4), float("nan")), training=True)
    assert all(tensor.isnan().all() for tensor in network.auxiliary.values())
    for name, tensor in kept.items():  # as for a step that is left out
        network.auxiliary[name].copy_(tensor)
    assert network(torch.randn(2, 3, 4, 4), training=True).isfinite().all()
    assert all(tensor.isfinite().all() for tensor in network.auxiliary.values())


def test_a_missing_array_is_said_in_a_line() -> None:
    graph = sym.FullyConnected(sym.Variable("data"), num_hidden=3, name="fc1").graph()
    with pytest.raises(UserError, match=r"^found no array 'fc1_bias', expected one for each parameter of the network$"):
        Network(graph, {"fc1_weight": np.ones((3, 12))}, {}, CPU)
