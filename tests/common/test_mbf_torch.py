# SPDX-License-Identifier: Apache-2.0
"""arcface_torch's mbf and mbf_large: weights of PyTorch's network, written from its public definition, both ways."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from recognition.errors import UserError
from recognition.networks.families import mbf
from recognition.networks.shapes import infer_shapes
from recognition.networks.torch_weights.of_torch import to_torch
from tests.common.there_and_back import assert_there_and_back

torch = pytest.importorskip("torch")
nn = torch.nn


class Layers(nn.Module):
    """Modules one after the other, under the name ``layers``."""

    def __init__(self, *modules, add: bool = False) -> None:
        super().__init__()
        self.layers, self.add = nn.Sequential(*modules), add

    def forward(self, x):
        return self.layers(x) + x if self.add else self.layers(x)


def block(inside: int, outside: int, kernel: int, stride: int, pad: int, groups: int = 1,
          active: bool = True) -> Layers:
    modules = [nn.Conv2d(inside, outside, kernel, stride, pad, groups=groups, bias=False), nn.BatchNorm2d(outside)]
    return Layers(*modules, *([nn.PReLU(outside)] if active else []))


def bottleneck(inside: int, outside: int, inner: int, stride: int = 2) -> Layers:
    return Layers(block(inside, inner, 1, 1, 0), block(inner, inner, 3, stride, 1, inner),
                  block(inner, outside, 1, 1, 0, active=False), add=stride == 1)


def residuals(channels: int, count: int, inner: int) -> Layers:
    return Layers(*(bottleneck(channels, channels, inner, 1) for _ in range(count)))


class Network(nn.Module):
    def __init__(self, dim: int, blocks: tuple[int, int, int, int], scale: int) -> None:
        super().__init__()
        narrow, wide = 64 * scale, 128 * scale
        self.layers = nn.ModuleList([
            block(3, narrow, 3, 2, 1),
            block(narrow, narrow, 3, 1, 1, 64) if blocks[0] == 1 else residuals(narrow, blocks[0], 128),
            bottleneck(narrow, narrow, 128), residuals(narrow, blocks[1], 128),
            bottleneck(narrow, wide, 256), residuals(wide, blocks[2], 256),
            bottleneck(wide, wide, 512), residuals(wide, blocks[3], 256)])
        self.conv_sep = block(wide, 512, 1, 1, 0)
        self.features = Layers(block(512, 512, 7, 1, 0, 512, active=False), nn.Flatten(),
                               nn.Linear(512, dim, bias=False), nn.BatchNorm1d(dim))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.features(self.conv_sep(x))


@pytest.mark.parametrize("name, blocks, scale", [
    ("mbf", (1, 4, 6, 2), 2), pytest.param("mbf_large", (2, 8, 12, 4), 4, marks=pytest.mark.slow)])
def test_weights_there_and_back(name, blocks, scale, noise, tmp_path: Path, capsys) -> None:
    torch.manual_seed(0)
    network = Network(24, blocks, scale)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.7, 1.4)
            nn.init.normal_(module.bias, 0, 0.2)
    assert_there_and_back(name, network, lambda pixels: (pixels - 127.5) / 127.5, noise, tmp_path, capsys)


@pytest.mark.parametrize("options", [{"net_multiplier": 4.0}, {"net_blocks": (2, 4, 6, 2)}, {"net_act": "relu"}])
def test_an_mbf_that_arcface_torch_has_not_is_refused(options) -> None:
    graph = mbf.get_symbol(**options)
    shapes = infer_shapes(graph, (3, 112, 112))
    arguments, auxiliary = ({name: np.zeros(shape, np.float32) for name, shape in group.items()}
                            for group in (shapes.arguments, shapes.auxiliary))
    with pytest.raises(UserError, match=r"^x\.params: found an mbf of .* expected mbf or mbf_large"):
        to_torch(graph, arguments, auxiliary, "x.params")
