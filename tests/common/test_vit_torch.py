# SPDX-License-Identifier: Apache-2.0
"""arcface_torch's ViTs: weights of PyTorch's network, written from its public definition, both ways; the features of a
network that trains, with blocks and patches left out, against the same."""
from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from recognition.errors import UserError
from recognition.networks.families import vit
from recognition.networks.graph import Graph
from recognition.networks.recompute import computed_again
from recognition.networks.shapes import infer_shapes
from recognition.networks.torch_weights.of_torch import (
    from_torch,
    to_torch,
)
from recognition.networks.torch_weights.vit_weights import NETWORKS, pairs
from tests.common.there_and_back import assert_there_and_back

torch = pytest.importorskip("torch")
from recognition.engines.torch.network import Network as Network64  # noqa: E402

nn = torch.nn
PATCHES = 144


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)

    def forward(self, x):
        images, tokens, width = x.shape
        query, key, value = self.qkv(x).view(images, tokens, 3, 8, width // 8).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(query @ key.mT / (width // 8) ** 0.5, dim=-1)
        return self.proj((weights @ value).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(width), Attention(width), nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, x, factors):
        """``factors`` (2, N, 1, 1): what the paths are multiplied by, 0 where one is left out."""
        x = x + factors[0] * self.attn(self.norm1(x))
        return x + factors[1] * self.mlp["fc2"](nn.functional.relu6(self.mlp["fc1"](self.norm2(x))))


class Network(nn.Module):
    def __init__(self, width: int, blocks: int, dim: int) -> None:
        super().__init__()
        self.pos_embed, self.mask_token = (nn.Parameter(torch.randn(1, count, width)) for count in (PATCHES, 1))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, 9, 9)})
        self.blocks, self.norm = nn.ModuleList(Block(width) for _ in range(blocks)), nn.LayerNorm(width)
        self.feature = nn.Sequential(nn.Linear(PATCHES * width, width, bias=False), nn.BatchNorm1d(width, eps=2e-5),
                                     nn.Linear(width, dim, bias=False), nn.BatchNorm1d(dim, eps=2e-5))

    def forward(self, pixels, seen=None, factors=None):
        """``seen`` (N, kept): the patches that the blocks see, all if it is None."""
        x = self.patch_embed["proj"]((pixels - 127.5) / 127.5).flatten(2).transpose(1, 2) + self.pos_embed
        rows = torch.arange(len(x))[:, None]
        x = x if seen is None else x[rows, seen]
        for number, block in enumerate(self.blocks):
            x = block(x, factors[number] if factors is not None else (1, 1))
        x = self.norm(x)
        if seen is not None:
            whole = self.mask_token.expand(len(x), PATCHES, -1).clone()
            whole[rows, seen] = x
            x = whole
        return self.feature(x.flatten(1))


def random_network(width: int, blocks: int, dim: int = 24) -> Network:
    torch.manual_seed(0)
    network = Network(width, blocks, dim)
    for name, tensor in network.state_dict().items():
        if "running_var" in name:
            tensor.uniform_(0.5, 1.5)
        elif "norm" in name or name.startswith(("feature.1", "feature.3")):
            tensor.copy_(torch.randn(tensor.shape) * 0.2 + name.endswith("weight"))
    return network


@pytest.mark.parametrize("name", ["vit_t", pytest.param("vit_b", marks=pytest.mark.slow)])
def test_weights_there_and_back(name, noise, tmp_path: Path, capsys) -> None:
    width, blocks, *_ = NETWORKS[name]
    network = random_network(width, blocks)
    assert_there_and_back(name, network, lambda pixels: pixels, noise, tmp_path, capsys)


def test_a_step_in_float64(arrays_of, images) -> None:
    """Features and gradients with masks and paths as a seed chooses them; 1e-9 of the largest: float64 both."""
    network, graph, arrays, auxiliary = arrays_of
    ours = Network64(graph, arrays, auxiliary, torch.device("cpu"), dtype=torch.float64)
    found = ours(images, training=True, generator=torch.Generator().manual_seed(5))
    random = torch.Generator().manual_seed(5)
    bits = torch.rand((len(images), PATCHES, 16), generator=random, dtype=torch.float64) < 0.5
    noise = (bits * 2.0 ** torch.arange(16)).sum(2)
    factors = [torch.stack([_path(random, len(images), 0.1 * block) for _ in range(2)]) if block else (1, 1)
               for block in range(2)]
    seen = noise.argsort(dim=1, stable=True)[:, : int(PATCHES * 0.9)]
    expected = network.double().train()(images, seen, factors)
    np.testing.assert_allclose(found.detach(), expected.detach(), atol=1e-9 * float(expected.detach().abs().max()))
    d_features = torch.randn(expected.shape, generator=random, dtype=torch.float64)
    expected.backward(d_features)
    found.backward(d_features)
    names = dict(pairs(2))
    for name, tensor in network.named_parameters():
        limit = 1e-9 * max(1e-3, float(tensor.grad.abs().max()))
        np.testing.assert_allclose(ours.arguments[names[name]].grad, tensor.grad, atol=limit, err_msg=name)


def test_inference_in_float64(arrays_of, images) -> None:
    """1e-9 of the largest: float64 both. Nothing is left out."""
    network, graph, arrays, auxiliary = arrays_of
    ours = Network64(graph, arrays, auxiliary, torch.device("cpu"), dtype=torch.float64)
    with torch.no_grad():
        found, expected = ours(images), network.double().eval()(images)
    np.testing.assert_allclose(found, expected, atol=1e-9 * float(expected.abs().max()))


def _path(random, count: int, dropped: float):
    kept = torch.rand((count, 1, 1), generator=random, dtype=torch.float64) < 1 - dropped
    return kept.double() / (1 - dropped)


@pytest.fixture
def images():
    return torch.randint(0, 256, (4, 3, 112, 112), generator=torch.Generator().manual_seed(1)).double()


@pytest.fixture
def arrays_of():
    """A network of two blocks with tokens of 32 numbers, the graph of the same, and its arrays."""
    network = random_network(32, 2)
    graph = vit.get_symbol(num_layers=2, net_multiplier=32 / 512, emb_size=24, net_drop_path=0.1, net_mask_ratio=0.1)
    values = {ours: network.state_dict()[theirs].numpy() for theirs, ours in pairs(2)}
    return network, graph, values, values


@pytest.mark.parametrize("recompute", [False, True], ids=["plain", "memonger"])
def test_what_mxnet_leaves_out_is_a_function_of_the_seed(recompute) -> None:
    """129 of 144 patches are seen in training, others for another seed, and all outside of training; a path is left
    out for a whole image. With memonger as well."""
    if importlib.util.find_spec("mxnet") is None:
        pytest.skip("needs MXNet")
    from recognition.engines.mxnet.imports import mx
    from recognition.engines.mxnet.symbols import to_symbol
    from recognition.networks.recompute import recompute as memonger

    graph = vit.get_symbol(num_layers=2, net_multiplier=32 / 512, emb_size=24, net_drop_path=0.5, net_mask_ratio=0.1)
    heads = [*graph.heads, graph.internals["seen_output"], graph.internals["block1_path2_output"]]
    graph = Graph(graph.nodes, heads)
    symbol = to_symbol(memonger(graph) if recompute else graph)
    executor = symbol.simple_bind(mx.cpu(), data=(9, 3, 112, 112))
    for array in executor.arg_dict.values():
        array[:] = mx.nd.random.normal(shape=array.shape)

    def run(seed: int, train: bool = True) -> list[np.ndarray]:
        mx.random.seed(seed)
        return [output.asnumpy() for output in executor.forward(is_train=train)]

    features, seen, path = run(1)
    assert set(np.unique(seen)) == {0, 1} and (seen.sum((1, 2)) == 129).all() and len(np.unique(seen, axis=0)) == 9
    left_out = (path == 0).all((1, 2))
    assert 0 < left_out.sum() < 9 and ((path == 0).any((1, 2)) == left_out).all()
    again, other = run(1), run(2)
    assert np.array_equal(features, again[0]) and np.array_equal(seen, again[1])
    assert not np.array_equal(seen, other[1])
    assert (run(1, train=False)[1] == 1).all()


@pytest.mark.parametrize("options, message", [
    ({"num_layers": 3}, "found a ViT of tokens of 256 numbers and 3 blocks, expected one of arcface_torch's: 256 and"),
    ({"image_shape": (128, 128, 3)}, "found a ViT of 196 patches, expected one for 112x112 images")])
def test_a_vit_that_arcface_torch_has_not_is_refused(options, message) -> None:
    graph = vit.get_symbol(**{"num_layers": 12, "net_multiplier": 0.5, **options})
    side = options.get("image_shape", (112,))[0]
    shapes = infer_shapes(graph, (3, side, side))
    arguments, auxiliary = ({name: np.zeros(shape, np.float32) for name, shape in group.items()}
                            for group in (shapes.arguments, shapes.auxiliary))
    with pytest.raises(UserError, match=rf"^x\.params: {message}"):
        to_torch(graph, arguments, auxiliary, "x.params")


def test_tensors_that_are_no_such_network_are_refused() -> None:
    tensors = {key: value.numpy() for key, value in random_network(256, 12).state_dict().items()}
    with pytest.raises(UserError, match=r"found 147 arrays, expected the 148 of .*vit_t, which norm\.bias"):
        from_torch({key: value for key, value in tensors.items() if key != "norm.bias"}, "x.pt")
    with pytest.raises(UserError, match=r"x\.pt: pos_embed is of shape \(1, 9, 256\), expected \(1, 144, 256\)"):
        from_torch({**tensors, "pos_embed": np.zeros((1, 9, 256), np.float32)}, "x.pt")


def test_a_network_without_masks_gets_a_token_of_zeros() -> None:
    """arcface_torch's vit_t_dp005_mask0 has one that it never reads."""
    graph = vit.get_symbol(num_layers=12, net_multiplier=0.5)
    shapes = infer_shapes(graph, (3, 112, 112))
    arguments, auxiliary = ({name: np.ones(shape, np.float32) for name, shape in group.items()}
                            for group in (shapes.arguments, shapes.auxiliary))
    name, tensors = to_torch(graph, arguments, auxiliary, "x.params")
    assert name == "vit_t" and not tensors["mask_token"].any() and tensors["mask_token"].shape == (1, 1, 256)


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
def test_memonger_gives_the_same_bits(autocast, arrays_of, images) -> None:
    """Masks and paths of a pass are those of the pass that computes them again; nearly all is."""
    _, graph, arrays, auxiliary = arrays_of
    assert len(computed_again(graph)) > 30
    found = []
    for recompute in (False, True):
        network = Network64(graph, arrays, {key: auxiliary[key].copy() for key in graph.list_auxiliary_states()},
                            torch.device("cpu"), recompute=recompute)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            features = network(images, training=True, generator=torch.Generator().manual_seed(5))
        features.backward(torch.ones_like(features) / 7)
        found.append([features.detach(), *(tensor.grad for tensor in network.arguments.values()),
                      *network.auxiliary.values()])
    assert all(torch.equal(plain, again) for plain, again in zip(*found))
