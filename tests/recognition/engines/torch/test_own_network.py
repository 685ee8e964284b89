# SPDX-License-Identifier: Apache-2.0
"""Networks that users bring for PyTorch: modules, and files of ``mx.sym`` without MXNet."""
from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from recognition import networks  # noqa: E402
from recognition.engines.torch.modules.graph import module_graph  # noqa: E402
from recognition.engines.torch.modules.own_network import own_network  # noqa: E402
from recognition.engines.torch.network import Network  # noqa: E402
from recognition.errors import UserError  # noqa: E402
from recognition.networks.flops import count_flops  # noqa: E402
from recognition.networks.graph import Graph  # noqa: E402
from recognition.networks.initialise import initialise  # noqa: E402

build_symbol = partial(networks.build_symbol, own_network=own_network)
nn, F = torch.nn, torch.nn.functional


class Residual(nn.Module):
    """A network as in the public ArcFace code for PyTorch: blocks in place, a frozen factor in front of the features,
    and mixed precision of its own."""

    def __init__(self, emb_size: int = 8) -> None:
        super().__init__()
        self.conv1, self.bn1, self.act = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8, 1e-5), nn.PReLU(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.BatchNorm2d(8, momentum=0.2)
        self.relu, self.pool, self.drop = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1), nn.Dropout(0.0)
        self.fc, self.features = nn.Linear(8 * 8 * 8, emb_size), nn.BatchNorm1d(emb_size)
        self.features.weight.requires_grad = False
        self.register_buffer("mean", torch.tensor(127.5))

    def forward(self, images: Any) -> Any:
        with torch.autocast("cuda", enabled=False):
            maps = self.act(self.bn1(self.conv1((images - self.mean) / 128)))
            maps = self.pool(self.relu(maps + self.bn2(self.conv2(maps))))
            vector = self.drop(torch.flatten(maps, 1))
        return self.features(self.fc(vector.to(images.dtype)))


class Mobile(nn.Module):
    """Squeeze and excitation, hard swish, views, splits, averages."""

    def __init__(self, emb_size: int = 8) -> None:
        super().__init__()
        self.conv, self.squeeze, self.excite = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.norm, self.last = nn.BatchNorm2d(8), nn.Linear(16, emb_size)

    def forward(self, images: Any) -> Any:
        maps = F.hardswish(self.norm(self.conv(2 * (1 - images / 255))))
        gate = F.hardsigmoid(self.excite(F.relu6(self.squeeze(F.adaptive_avg_pool2d(maps, 1)))))
        first, second = (maps * gate).chunk(2, 1)
        maps = torch.cat([F.silu(first), F.gelu(second) + F.avg_pool2d(second, 8).expand(-1, -1, 8, 8)], 1)
        maps = torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], 1)
        return F.normalize(self.last(maps.view(maps.size(0), -1)))


class Transformer(nn.Module):
    """Patches, a token and places that are learnt, attention over heads, layer norms."""

    def __init__(self, emb_size: int = 8) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 8, 8, 8), nn.Parameter(torch.randn(1, 1, 8))
        self.places = nn.Parameter(torch.randn(1, 17, 8) * 0.02)
        self.norm, self.qkv, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.head = nn.Linear(8, emb_size)

    def forward(self, images: Any) -> Any:
        tokens = self.patches(images / 255).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(images.shape[0], -1, -1), tokens], 1) + self.places
        batch, count, width = tokens.shape
        qkv = self.qkv(self.norm(tokens)).reshape(batch, count, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
        query, key, value = qkv[0], qkv[1], qkv[2]
        weights = (query @ key.transpose(-2, -1) * (width // 2) ** -0.5).softmax(-1)
        mixed = weights @ value + F.scaled_dot_product_attention(query, key, value)
        tokens = tokens + self.out(mixed.transpose(1, 2).reshape(batch, count, width))
        return self.head(tokens[:, 0])


class Windows(nn.Module):
    """A window attention: moved windows, a learnt bias for each distance, a mask and places that turn, group norm,
    a choice, padding, resizing, steps, a mean over what is larger of two."""

    def __init__(self, emb_size: int = 8) -> None:
        super().__init__()
        self.patches, self.norm, self.qkv = nn.Conv2d(3, 8, 8, 8), nn.GroupNorm(2, 8), nn.Linear(8, 24)
        self.bias, self.head = nn.Parameter(torch.randn(9, 2)), nn.Linear(8, emb_size)
        places = torch.stack(torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij")).flatten(1)
        apart = (places[:, :, None] - places[:, None, :] + 1)
        self.register_buffer("distance", apart[0] * 3 + apart[1])
        self.register_buffer("mask", torch.where(torch.rand(4, 1, 4, 4) < 0.3, -100.0, 0.0))
        angles = torch.linspace(0, 3, 4)[:, None] * torch.linspace(0.5, 1, 4)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, images: Any) -> Any:
        maps = self.norm(self.patches(images / 255)).permute(0, 2, 3, 1).roll((-1, 1), (1, 2))
        windows = maps.view(-1, 2, 2, 2, 2, 8).transpose(2, 3).reshape(-1, 4, 8)
        query, key, value = self.qkv(windows).reshape(-1, 4, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        query, key = (part * self.cos + part[..., self.cos.argsort(1)[0].flip(0)] * self.sin
                      for part in (query, key))
        bias = self.bias[self.distance.view(-1)].view(4, 4, 2).permute(2, 0, 1)
        products = (query @ key.transpose(-2, -1) + bias).view(-1, 4, 2, 4, 4) + self.mask
        windows = (products.view(-1, 2, 4, 4).softmax(-1) @ value).transpose(1, 2).reshape(-1, 4, 8)
        maps = windows.view(-1, 2, 2, 2, 2, 8).transpose(2, 3).reshape(-1, 4, 4, 8).roll((1, -1), (1, 2))
        maps = F.pad(maps, (0, 0, 0, 1, 1, 0)).permute(0, 3, 1, 2).masked_fill(torch.eye(5, dtype=torch.bool), 0.5)
        maps = F.interpolate(maps, (10, 5), mode="bilinear")[:, :, ::2]
        return self.head(torch.maximum(maps, -maps).mean((2, 3)))


@pytest.mark.parametrize("kind", [Residual, Mobile, Transformer, Windows])
def test_the_graph_of_a_module_computes_what_the_module_does(kind: Any) -> None:
    """In float64, features and all gradients in training: 1e-7 of the largest, as PyTorch's hard sigmoid has its sixth
    in float32."""
    module = kind()
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            if tensor.requires_grad:
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(len(name))))
    graph = module_graph(module, (3, 32, 32), "mine")
    assert {*graph.list_arguments(), *graph.list_auxiliary_states()} - {"data"} - graph.tables() == {
        name for name in module.state_dict() if "running" in name} | {
        name for name, _ in module.named_parameters()}
    arrays = {**initialise(graph, (3, 32, 32), 0)[0],
              **{name: tensor.numpy() for name, tensor in module.double().state_dict().items()}}
    network = Network(graph, arrays, arrays, torch.device("cpu"), torch.float64)
    images = torch.rand(4, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 255
    out = torch.randn(4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected, found = module.train()(images), network(images, training=True)
    for features in (expected, found):
        features.backward(out)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    for name, tensor in module.named_parameters():
        gradient = tensor.grad if tensor.requires_grad else torch.zeros_like(tensor)
        difference = (network.arguments[name].grad - gradient).abs().max()
        assert difference <= 1e-7 * gradient.abs().max() + 1e-12, name


@pytest.mark.skipif(importlib.util.find_spec("mxnet") is None, reason="needs MXNet")
@pytest.mark.parametrize("kind", [Residual, Mobile, Transformer, Windows])
def test_mxnet_runs_the_graph_of_a_module_from_its_checkpoint(kind: Any) -> None:
    """Float32 features of a few layers: 1e-5 of the largest."""
    from recognition.engines.mxnet.imports import mx
    from recognition.engines.mxnet.symbols import to_symbol

    module = kind()
    graph = Graph.from_dict(json.loads(module_graph(module, (3, 32, 32), "mine").to_json()))
    arrays = {**initialise(graph, (3, 32, 32), 0)[0],
              **{name: tensor.numpy() for name, tensor in module.state_dict().items()}}
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32)).astype(np.float32)
    arguments = {name: mx.nd.array({**arrays, "data": images}[name]) for name in graph.list_arguments()}
    executor = to_symbol(graph).bind(
        mx.cpu(), arguments, {name: mx.nd.zeros_like(array) for name, array in arguments.items()},
        aux_states={name: mx.nd.array(arrays[name]) for name in graph.list_auxiliary_states()})
    with torch.inference_mode():
        expected = module.eval()(torch.from_numpy(images)).numpy()
    found = executor.forward(is_train=False)[0].asnumpy()
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


MODULE = """
import torch

class Net(torch.nn.Module):
    def __init__(self, emb_size, width):
        super().__init__()
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(3, width, 7, 7, bias=False), torch.nn.BatchNorm2d(width), torch.nn.PReLU(width),
            torch.nn.Flatten(), torch.nn.Linear(width * 16 * 16, emb_size))

    def forward(self, images):
        return self.body((images - 127.5) / 128)

def get_module(emb_size, *, width=4):
    return Net(emb_size, width)
"""
# As the public recipes have it: options from the global config, helpers of the same folder, other names of layers.
LEGACY = """
import mxnet as mx
import my_utils
from config import config

def get_symbol():
    data = (mx.sym.Variable('data') - 127.5) * 0.0078125
    body = my_utils.conv(data, 'first', 4)
    return mx.sym.FullyConnected(body, num_hidden=config.emb_size, name='embedding')
"""
UTILS = """
from mxnet import symbol as sym
from config import config

def conv(data, name, channels):
    body = sym.Convolution(data=data, num_filter=channels, kernel=(7, 7), stride=(7, 7), no_bias=True, name=name)
    body = sym.BatchNorm(data=body, momentum=config.bn_mom, name=name + '_bn')
    return sym.LeakyReLU(data=body, act_type=config.net_act, name=name + '_act')
"""


@pytest.fixture
def own(tmp_path, configuration) -> Callable[..., Any]:
    """``own(text, ...)``: the configuration of a network in the file mine.py beside a config.py."""

    def write(text: str, **options: Any) -> Any:
        (tmp_path / "mine.py").write_text(text)
        (tmp_path / "my_utils.py").write_text(UTILS)
        mine = {"net_name": "mine", "config_file": str(tmp_path / "config.py"), "emb_size": 8}
        return configuration(**{**mine, **options})

    return write


def test_a_module_named_in_a_configuration_is_a_network_as_any(own: Callable[..., Any]) -> None:
    """Options, names of the module's own, first values from the seed with the spread that PyTorch's have, FLOPs; the
    same JSON each time."""
    config = own(MODULE, own_keys=(("width", 6),))
    graph = build_symbol(config)
    assert graph.list_outputs() == ["fc1_output"]
    assert build_symbol(config).to_json() == graph.to_json()
    first, states = initialise(graph, (3, 112, 112), 0)
    again, _ = initialise(graph, (3, 112, 112), 0)
    assert first["body.0.weight"].shape == (6, 3, 7, 7) and first["body.2.weight"].tolist() == [0.25] * 6
    assert first["body.1.weight"].tolist() == [1] * 6 and states["body.1.running_var"].tolist() == [1] * 6
    assert all(np.array_equal(again[name], first[name]) for name in first)
    bound = (3 * 7 * 7) ** -0.5  # of PyTorch's uniform first values, of deviation bound / sqrt(3)
    assert first["body.0.weight"].std() == pytest.approx(bound / 3 ** 0.5, rel=0.1)
    assert count_flops(graph, (3, 112, 112)).unknown == ()


def test_a_file_of_mx_sym_needs_no_mxnet(own: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph is the one of our own words, and what was imported stays as it was."""
    theirs = ModuleType("mxnet")
    monkeypatch.setitem(sys.modules, "mxnet", theirs)
    graph = build_symbol(own(LEGACY, bn_mom=0.7))
    assert sys.modules["mxnet"] is theirs and "my_utils" not in sys.modules
    assert [node.name for node in graph.nodes if not node.is_variable] == [
        "_minusscalar0", "_mulscalar0", "first", "first_bn", "first_act", "embedding", "fc1"]
    assert graph.attributes()["first_bn"]["momentum"] == "0.7"
    arrays = initialise(graph, (3, 112, 112), 0)
    assert Network(graph, *arrays, torch.device("cpu"))(torch.zeros(2, 3, 112, 112)).shape == (2, 8)


@pytest.mark.parametrize(("text", "message"), [
    ("x = 1", r"net_name mine: .*mine.py: found no function get_module or get_symbol$"),
    ("def get_module():\n    return 1", r"mine.py: found int, expected a torch.nn.Module, or a Symbol"),
    ("def get_module(wide):\n    pass", "get_module takes 'wide', expected the name of an option"),
    ("def get_module():\n    return 1 / 0", r"mine.py, line 2: ZeroDivisionError: division by zero$"),
    ("import mxnet as mx\nmx.gluon", "mine.py, line 2: AttributeError: .* mxnet has sym and init alone"),
    ("import mxnet as mx\nmx.sym.topk", r"mine.py, line 2: AttributeError: with .* mx.sym has no topk"),
    (LEGACY.replace("'data'", "'image'"), "found no input named 'data', expected .* among image, first_weight, "),
    (MODULE.replace("return self.body(", "return torch.fft.fft(images).real.sum() + self.body("),
     r"mine.py: found the operator aten.fft_fft.default in the module, which networks of ours do not have"),
    (MODULE.replace("return self.body(", "return self.body if images.sum() > 3 else self.body("),
     "mine.py: torch.export cannot write the module down: "),
    (MODULE.replace("return self.body(", "return images, self.body("), "the module gives 2 outputs, expected one"),
    (MODULE.replace("return self.body(", "return self.body(torch.rand(112, 112) + "),
     r"mine.py: found the operator aten.rand.default of no input in the module"),
    (MODULE.replace("    return Net(emb_size, width)", "    return Net(emb_size, width).requires_grad_(False)"),
     "the module's parameter body.0.weight does not learn, expected that of a batch norm"),
    (MODULE.replace("(emb_size, width)\n", "(9, width)\n"), "emb_size: found 8, but net_name mine .* gives 9 features"),
])
def test_what_is_no_network_is_said_in_a_line(text: str, message: str, own: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=message) as error:
        build_symbol(own(text))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_places_are_exact_in_16_bits(low: torch.dtype) -> None:
    """bfloat16 has no odd number above 256, float16 none above 2,048."""
    class Picks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.table = nn.Linear(27, 4), nn.Parameter(torch.arange(2100.0) % 7)
            self.register_buffer("places", torch.tensor([[257, 259, 2051, 2053]]))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return 0 * self.fc(F.adaptive_avg_pool2d(images, 3).flatten(1)) + self.table[self.places]

    module = Picks()
    graph = module_graph(module, (3, 12, 12), "picks")
    arrays = {name: np.asarray(value) for name, value in module.state_dict().items()}
    start = initialise(graph, (3, 12, 12), 0)[0]
    values = {name: arrays[name] if arrays.get(name, np.empty(0)).shape == value.shape else value
              for name, value in start.items()}
    found = Network(graph, values, {}, torch.device("cpu"), low)(torch.zeros(2, 3, 12, 12))
    assert found.tolist() == [[257 % 7, 259 % 7, 2051 % 7, 2053 % 7]] * 2
