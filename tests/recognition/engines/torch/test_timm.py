# SPDX-License-Identifier: Apache-2.0
"""Models of timm by name. A stand-in for the package, which the tests do not install, has its one function."""
from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from recognition import networks  # noqa: E402
from recognition.config.cli import parse_args  # noqa: E402
from recognition.config.presets import ROOT  # noqa: E402
from recognition.engines.choose import decide_for  # noqa: E402
from recognition.engines.configured import build_network  # noqa: E402
from recognition.engines.torch.engine import TorchEngine  # noqa: E402
from recognition.engines.torch.network import Network  # noqa: E402
from recognition.errors import UserError  # noqa: E402
from recognition.networks.flops import count_flops  # noqa: E402

TIMM = """
import torch

class DropPath(torch.nn.Module):
    def __init__(self, dropped):
        super().__init__()
        self.kept = 1 - dropped

    def forward(self, x):
        if self.kept == 1 or not self.training:
            return x
        factors = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(self.kept)
        return x * factors.div_(self.kept)


def create_model(name, pretrained=False, num_classes=1000, img_size=224, depth=1, drop_path_rate=0.0):
    if name != "small_patch16":
        raise RuntimeError(f"Unknown model ({name})")
    torch.manual_seed(3)
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.patch_embed = torch.nn.Conv2d(3, 8, 16, 16)
            self.blocks = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(depth)))
            self.norm, self.head = torch.nn.LayerNorm(8), torch.nn.Linear(8, num_classes)
            self.drop_path = DropPath(drop_path_rate)

        def forward(self, x):
            assert x.shape[-1] == img_size, f"Input height ({x.shape[-1]}) doesn't match model ({img_size})."
            x = self.patch_embed(x).flatten(2).transpose(1, 2)
            x = x + self.drop_path(self.blocks(x))
            return self.head(self.norm(torch.nn.functional.gelu(x)).mean(1))

    assert not pretrained
    return Model()
"""
FILE = """
exec(compile(open({sample!r}).read(), {sample!r}, "exec"))
network.mine = edict(net_name="timm:small_patch16", emb_size=24, timm_options=dict(img_size=112, depth=2))
"""


@pytest.fixture
def parse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """``parse(network)``: a configuration beside which there is a package timm."""
    (tmp_path / "timm.py").write_text(TIMM)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    (tmp_path / "config.py").write_text(FILE.format(sample=str(ROOT / "sample_config.py")))
    yield lambda *flags: parse_args("train_parall", ["--config", str(tmp_path / "config.py"), *flags], environ={})
    sys.modules.pop("timm", None)


def test_a_model_of_timm_is_a_network_as_any(parse) -> None:
    """Its options, its names, and its features of scaled pixels: 1e-5 of the largest, float32. Its operators are
    counted, and the engine that is chosen is PyTorch's."""
    config = parse("--network", "mine")
    assert decide_for(config).name == "torch"
    graph = build_network(config)
    model = sys.modules["timm"].create_model("small_patch16", num_classes=24, img_size=112, depth=2)
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    assert {*graph.list_arguments(), *graph.list_auxiliary_states()} == {"data", *arrays}
    assert count_flops(graph).unknown == ()
    images = torch.randint(0, 256, (2, 3, 112, 112), generator=torch.Generator().manual_seed(0)).float()
    with torch.inference_mode():
        expected = model((images - 127.5) / 127.5).numpy()
        found = Network(graph, arrays, {}, torch.device("cpu"))(images).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_stochastic_depth_leaves_out_whole_images(parse) -> None:
    """With drop_path_rate 0.5: an image has the features without the path, or those with twice the path; which, a seed
    says. In float64, 1e-9. Without training, as without the option."""
    options = {"net_name": "timm:small_patch16", "emb_size": 24}
    graph = build_network(replace(parse("--network", "mine"), **options,
                                  own_keys=(("timm_options", {"img_size": 112, "drop_path_rate": 0.5}),)))
    model = sys.modules["timm"].create_model("small_patch16", num_classes=24, img_size=112).double()
    network = Network(graph, {name: tensor.numpy() for name, tensor in model.state_dict().items()}, {},
                      torch.device("cpu"), dtype=torch.float64)
    images = torch.randint(0, 256, (16, 3, 112, 112), generator=torch.Generator().manual_seed(0)).double()
    pixels = (images - 127.5) / 127.5
    with torch.no_grad():
        plain = model(pixels)
        model.drop_path = Factor(0)
        without = model(pixels)
        model.drop_path = Factor(2)
        twice, found = model(pixels), network(images, training=True, generator=torch.Generator().manual_seed(1))
        again = network(images, training=True, generator=torch.Generator().manual_seed(1))
    left_out = (found - without).abs().amax(1) < 1e-9
    assert 0 < left_out.sum() < 16 and torch.equal(found, again)
    torch.testing.assert_close(found, torch.where(left_out[:, None], without, twice), rtol=0, atol=1e-9)
    torch.testing.assert_close(network(images), plain, rtol=0, atol=1e-6)


class Factor(torch.nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


def test_by_the_flag_alone(parse) -> None:
    config = parse("--network", "timm:small_patch16")
    assert (config.net_name, Path(config.output_dir).name) == ("timm:small_patch16", "small_patch16-arcface-emore")
    with pytest.raises(UserError, match=r"cannot write the module down: .*Input height \(112\) doesn't match"):
        build_network(config)


@pytest.mark.parametrize("name, keys, message", [
    ("timm:r50", (), r"^net_name timm:r50: timm cannot make it: Unknown model \(r50\)$"),
    ("timm:small_patch16", (("timm_options", {"wide": 1}),), "timm cannot make it: .* keyword argument 'wide'$"),
    ("timm:small_patch16", (("timm_options", 112),), r"^timm_options: found 112, expected a dictionary, such as dict"),
])
def test_what_timm_does_not_have_is_said_in_a_line(name: str, keys: Any, message: str, parse, configuration) -> None:
    build = partial(networks.build_symbol, own_network=TorchEngine().own_network)
    with pytest.raises(UserError, match=message):
        build(SimpleNamespace(**{**vars(configuration()), "net_name": name, "own_keys": keys}))


def test_without_timm_or_with_mxnet_a_line_says_what_is_needed(configuration, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    build = partial(networks.build_symbol, configuration(net_name="timm:resnet18"))
    with pytest.raises(UserError, match=r"^net_name timm:resnet18: .*expected the package: pip install timm$"):
        build(TorchEngine().own_network)
    if importlib.util.find_spec("mxnet") is None:
        pytest.skip("needs MXNet")
    from recognition.engines.mxnet.engine import MxnetEngine

    with pytest.raises(UserError, match=r"^net_name: found timm:resnet18, .* expected --engine torch$"):
        build(MxnetEngine().own_network)
