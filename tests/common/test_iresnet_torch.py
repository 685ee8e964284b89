# SPDX-License-Identifier: Apache-2.0
"""arcface_torch's iresnets: weights of PyTorch's network, written from its public definition, both ways."""
from __future__ import annotations

import numpy as np
import pytest

from recognition.config.options import Config
from recognition.config.presets import ROOT, open_config
from recognition.networks import build_symbol
from recognition.networks.flops import count_flops
from recognition.networks.recompute import computed_again
from recognition.networks.torch_weights.iresnet import DEPTHS, pairs
from recognition.networks.torch_weights.of_torch import from_torch, to_torch

torch = pytest.importorskip("torch")
from recognition.engines.torch.network import Network as OurNetwork  # noqa: E402

nn = torch.nn
UNITS = {"r18": (2, 2, 2, 2), "r200": (6, 26, 60, 6), "r2060": (3, 128, 896, 3)}


class Unit(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inside), nn.Conv2d(inside, outside, 3, 1, 1, bias=False)
        self.bn2, self.prelu = nn.BatchNorm2d(outside), nn.PReLU(outside)
        self.conv2, self.bn3 = nn.Conv2d(outside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside)
        self.downsample = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False),
                                        nn.BatchNorm2d(outside)) if stride > 1 else None

    def forward(self, x):
        inner = self.bn3(self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x))))))
        return inner + (self.downsample(x) if self.downsample else x)


class IResNet(nn.Module):
    def __init__(self, units: tuple[int, ...], dim: int) -> None:
        super().__init__()
        self.conv1, self.bn1, self.prelu = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64)
        channels = (64, 64, 128, 256, 512)
        for stage, (inside, outside, count) in enumerate(zip(channels, channels[1:], units), 1):
            setattr(self, f"layer{stage}", nn.Sequential(*(
                Unit(outside if unit else inside, outside, 1 if unit else 2) for unit in range(count))))
        self.bn2, self.fc, self.features = nn.BatchNorm2d(512), nn.Linear(512 * 49, dim), nn.BatchNorm1d(dim)

    def forward(self, x):
        x = self.prelu(self.bn1(self.conv1(x)))
        for stage in (1, 2, 3, 4):
            x = getattr(self, f"layer{stage}")(x)
        return self.features(self.fc(self.bn2(x).flatten(1)))


@pytest.mark.parametrize("name", ["r18", pytest.param("r200", marks=pytest.mark.slow)])
def test_weights_there_and_back(name: str) -> None:
    """Outputs in float64 of float32 weights, of which variances and the first convolution moved: 1e-5 of the largest.
    What comes back is what went in but for the same rounding."""
    torch.manual_seed(0)
    network = IResNet(UNITS[name], 24)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_var.uniform_(0.8, 1.2)
            module.running_mean.normal_(0, 0.1)
            nn.init.uniform_(module.weight, 0.4, 0.6)
    tensors = {key: value.numpy() for key, value in network.state_dict().items()}
    found, graph, parameters, states = from_torch(tensors, "x.pt")
    assert found == name
    images = torch.randint(0, 256, (2, 3, 112, 112), generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        expected = network.double().eval()((images - 127.5) / 127.5).numpy()
        ours = OurNetwork(graph, parameters, states, torch.device("cpu"), dtype=torch.float64)(images).numpy()
    np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max())
    back_name, back = to_torch(graph, parameters, states, "x.params")
    assert back_name == f"iresnet{name[1:]}" and list(back) == list(tensors)
    moved = ("features.weight", "features.running_mean", "fc.weight", "fc.bias")  # by the factor that is 1 here
    for key, value in tensors.items():
        assert key in moved or "num_batches" in key or np.allclose(back[key], value, rtol=1e-6, atol=1e-6), key


def test_the_deepest_is_built_counted_and_planned() -> None:
    """r2060: the arrays of PyTorch's network, its multiply-adds, and the kept maps of memonger."""
    with torch.device("meta"):
        theirs = {key: tuple(value.shape) for key, value in IResNet(UNITS["r2060"], 512).state_dict().items()
                  if "num_batches" not in key}
    graph = build_symbol(Config(**open_config(str(ROOT / "sample_config.py")).presets("network")["r2060"]))
    names = dict(pairs(UNITS["r2060"]))
    assert list(names) == list(theirs) and DEPTHS[2060] == 2060
    assert {*names.values(), "data"} == {*graph.list_arguments(), *graph.list_auxiliary_states()}
    flops = count_flops(graph)
    assert flops.parameters == sum(np.prod(size) for name, size in theirs.items() if "running" not in name)
    assert round(flops.products / 1e9) == 478
    nodes = sum(not node.is_variable for node in graph.nodes)
    assert nodes * 0.9 < len(computed_again(graph)) < nodes
