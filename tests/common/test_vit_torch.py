# SPDX-License-Identifier: Apache-2.0
"""arcface_torch's ViTs: weights of PyTorch's network, written from its public definition, both ways; the features of a
network that trains, with blocks and patches left out, against the same."""
from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from common.convert_torch import main
from recognition.errors import UserError
from recognition.evaluation.trained_backbone import load_backbone
from recognition.networks.families import vit
from recognition.networks.of_torch import from_torch, moments_from_torch, moments_to_torch, parameters_of, to_torch
from recognition.networks.shapes import infer_shapes
from recognition.networks.vit_weights import NETWORKS

torch = pytest.importorskip("torch")
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


@pytest.mark.parametrize("name", ["vit_t", *(pytest.param(name, marks=pytest.mark.slow) for name in ("vit_s", "vit_b"))])
def test_weights_there_and_back(name, noise, tmp_path: Path, capsys) -> None:
    """Outputs: 1e-4 of the largest, float32 against float32; what comes back is what went in."""
    width, blocks, *_ = NETWORKS[name]
    network = random_network(width, blocks)
    torch.save({f"module.{key}": value for key, value in network.state_dict().items()}, tmp_path / "model.pt")
    assert main([str(tmp_path / "model.pt"), f"{tmp_path}/model,1"]) == 0
    assert f"{name}, 24 numbers an embedding" in (said := capsys.readouterr().out) and f"--network {name} " in said
    with torch.no_grad():
        expected = network.eval()(torch.tensor(noise[:3].transpose(0, 3, 1, 2).astype(np.float32))).numpy()
    found = load_backbone(f"{tmp_path}/model,1", batch_size=3).embed(noise[:3], flip=False, unit=False)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    assert main([f"{tmp_path}/model,1", str(tmp_path / "back.pt")]) == 0
    assert f": {name}, " in capsys.readouterr().out
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert list(back) == list(network.state_dict())
    for key, value in network.state_dict().items():
        assert "num_batches" in key or torch.equal(back[key], value), key
    tensors = {key: value.numpy() for key, value in network.state_dict().items()}
    assert parameters_of(tensors) == [key for key, _ in network.named_parameters()]
    moments = {key: value.detach().numpy() * 2 for key, value in network.named_parameters()}
    there = moments_to_torch(moments_from_torch(moments, tensors, 1), 1)
    assert there.keys() == moments.keys() and all(np.array_equal(there[key], moments[key]) for key in moments)
