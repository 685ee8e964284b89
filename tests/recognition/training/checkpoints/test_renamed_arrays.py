# SPDX-License-Identifier: Apache-2.0
"""Checkpoints whose network is the run's but for names of layers."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recognition.config.options import Config
from recognition.io.params import read_arrays, write_arrays
from recognition.networks import build_symbol
from recognition.networks.graph import Graph
from recognition.training.checkpoints.renamed import renamed
from recognition.training.run import train

SHAPE = (3, 112, 112)


@pytest.fixture
def graph(configuration: Callable[..., Any]) -> Graph:
    """The network y1, narrow."""
    return build_symbol(configuration("y1", net_multiplier=0.25, net_blocks=(1, 2, 2, 1)))


@pytest.fixture
def symbol(tmp_path: Path, graph: Graph) -> Callable[..., Path]:
    """``symbol((old, new), ...)``: the file of the network with other texts in it."""
    def write(*texts: tuple[str, str]) -> Path:
        text = graph.to_json()
        for old, new in texts:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "model-symbol.json"
        path.write_text(text)
        return path
    return write


def test_the_mobilefacenet_of_2018(graph: Graph, symbol: Callable[..., Path]) -> None:
    assert renamed(graph, symbol(('"pre_fc1_weight"', '"fc1_weight"')), SHAPE) == {"pre_fc1_weight": "fc1_weight"}


def test_a_layer_of_another_name_has_all_its_arrays_at_their_places(graph: Graph, symbol: Callable[..., Path]) -> None:
    found = renamed(graph, symbol(('"conv_1_conv2d_weight"', '"first_weight"'), ('"conv_1_batchnorm', '"first_bn'),
                                  ('"conv_1_relu', '"first_act')), SHAPE)
    assert found == {"conv_1_conv2d_weight": "first_weight", "conv_1_relu_gamma": "first_act_gamma",
                     **{f"conv_1_batchnorm_{name}": f"first_bn_{name}"
                        for name in ("gamma", "beta", "moving_mean", "moving_var")}}


def test_the_same_names_need_no_places(graph: Graph, symbol: Callable[..., Path]) -> None:
    assert renamed(graph, symbol(), SHAPE) == {}


@pytest.mark.parametrize("texts", [
    [('"num_filter": "16"', '"num_filter": "24"'), ('"pre_fc1_weight"', '"fc1_weight"')],  # another width
    [("res_3_block0", "x"), ("res_3_block1", "y")],  # neighbours that are alike
    [('"pre_fc1_weight"', '"z"'), ('"conv_1_conv2d_weight"', '"pre_fc1_weight"')],  # a known name at another place
])
def test_what_could_be_otherwise_is_not_mapped(texts: list[tuple[str, str]], graph: Graph,
                                               symbol: Callable[..., Path]) -> None:
    assert renamed(graph, symbol(*texts), SHAPE) == {}


def test_no_symbol_or_one_that_is_refused_maps_nothing(graph: Graph, symbol: Callable[..., Path],
                                                       tmp_path: Path) -> None:
    assert renamed(graph, tmp_path / "none-symbol.json", SHAPE) == {}
    assert renamed(graph, symbol(("PReLU", "Custom"), ("LeakyReLU", "Custom"))
                   if "PReLU" in graph.to_json() else symbol(("LeakyReLU", "Custom")), SHAPE) == {}


def test_a_run_takes_them_and_says_so(engine: str, make: Callable[..., Config],
                                      capsys: pytest.CaptureFixture[str]) -> None:
    first = make(loss="first")
    assert train(first) == 0
    params = Path(f"{first.prefix}-0001.params")
    file = read_arrays(params)
    before = {name: np.array(array) for name, array in zip(file.names, file.arrays)}
    other = {name.replace("conv0_weight", "stem_weight"): array for name, array in before.items()}
    params.with_name("old-0001.params").unlink(missing_ok=True)
    write_arrays(params.with_name("old-0001.params"), {name: [array] for name, array in other.items()})
    text = Path(f"{first.prefix}-symbol.json").read_text().replace('"conv0_weight"', '"stem_weight"')
    params.with_name("old-symbol.json").write_text(text)
    run = make(pretrained=str(params.with_name("old")), pretrained_epoch=1, lr_factor="*=0", max_steps=1)
    assert train(run) == 0
    assert ("old-0001.params: 4 arrays loaded, 1 of them by their place in the network (stem_weight as conv0_weight), "
            "0 missing, 0 left over\n") in capsys.readouterr().out
    after = read_arrays(Path(f"{run.prefix}-0001.params"))
    assert all(np.array_equal(before[name], np.array(array)) for name, array in zip(after.names, after.arrays))
