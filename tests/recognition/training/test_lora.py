# SPDX-License-Identifier: Apache-2.0
"""Adapters of low rank on the linear layers of tokens: what is computed, what moves, and what is saved."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recognition.config.options import Config, refuse_unsupported
from recognition.errors import UserError
from recognition.networks import build_symbol, sym
from recognition.networks.graph import Graph
from recognition.networks.initialise import initialise
from recognition.networks.lora import is_adapter, merged, with_adapters
from recognition.processes.communicator import SingleProcess
from recognition.training.checkpoints.pretrained import read_params
from recognition.training.run import train
from recognition.training.states.state import SavedState, saved_states

SHAPE, DIM, BATCH, RANK = (3, 16, 16), 6, 4, 2
TOKENS = """
import mxnet as mx

def get_symbol(emb_size):
    x = mx.sym.Convolution(mx.sym.Variable("data") / 255, num_filter=6, kernel=(16, 16), stride=(16, 16), name="patch")
    x = mx.sym.transpose(mx.sym.Reshape(x, shape=(0, 0, -1)), axes=(0, 2, 1))
    y = mx.sym.FullyConnected(x, num_hidden=12, flatten=False, name="block0_fc1")
    y = mx.sym.FullyConnected(mx.sym.relu(y), num_hidden=6, flatten=False, no_bias=True, name="block0_fc2")
    return mx.sym.FullyConnected(mx.sym.Flatten(x + y), num_hidden=emb_size, name="fc1")
"""


def network() -> Graph:
    """Tokens of 8 x 8 pixels with two linear layers, one of them without a bias."""
    x = sym.Convolution((sym.Variable("data") - 127.5) / 128, num_filter=5, kernel=(8, 8), stride=(8, 8), name="patch")
    x = sym.transpose(sym.Reshape(x, shape=(0, 0, -1)), axes=(0, 2, 1))
    y = sym.FullyConnected(x, num_hidden=7, flatten=False, name="block0_fc1")
    y = sym.FullyConnected(sym.relu(y), num_hidden=5, flatten=False, no_bias=True, name="block0_fc2")
    return sym.FullyConnected(sym.Flatten(x + y), num_hidden=DIM, name="fc1").graph()


def test_adapters_compute_what_the_merged_weights_do(replicated: Callable[..., Any]) -> None:
    """A and B are random; at first, with B zero, the network is the one without. Tolerance 1e-5 of the largest."""
    graph, adapted = network(), with_adapters(network(), RANK)
    assert [name for name in adapted.list_arguments() if not is_adapter(name)] == graph.list_arguments()
    plain, start = (initialise(each, SHAPE, 1)[0] for each in (graph, adapted))
    assert {name: start[name].shape for name in start if is_adapter(name)} == {
        "block0_fc1_lora_down_weight": (RANK, 5), "block0_fc1_lora_up_weight": (7, RANK),
        "block0_fc2_lora_down_weight": (RANK, 7), "block0_fc2_lora_up_weight": (5, RANK)}
    assert all(np.array_equal(start[name], array) for name, array in plain.items())
    images = np.random.RandomState(0).randint(0, 256, (BATCH, *SHAPE)).astype(np.uint8)

    def features(network: Graph, parameters: dict[str, np.ndarray]) -> np.ndarray:
        made = replicated(network, parameters, {}, 1, BATCH, SHAPE, SingleProcess(), mu=0.0, wd=0.0)
        found: np.ndarray = made.embed(images)
        return found

    assert np.array_equal(features(adapted, start), features(graph, plain))
    random = np.random.RandomState(1)
    moved = {name: random.standard_normal(array.shape).astype(np.float32) if is_adapter(name) else array
             for name, array in start.items()}
    whole = merged(moved)
    assert whole.keys() == plain.keys()
    wanted = plain["block0_fc1_weight"] + moved["block0_fc1_lora_up_weight"] @ moved["block0_fc1_lora_down_weight"]
    np.testing.assert_allclose(whole["block0_fc1_weight"], wanted, rtol=1e-6, atol=1e-6)
    found, wanted = features(adapted, moved), features(graph, whole)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.fixture
def tokens(make: Callable[..., Config], tmp_path: Path) -> Callable[..., Config]:
    (tmp_path / "tokens.py").write_text(TOKENS)
    return lambda **options: make(**{"net_name": "tokens", "network": "tokens", "lora": RANK, **options})


def state_of(config: Config) -> dict[str, np.ndarray]:
    backbone = SavedState(saved_states(Path(config.output_dir) / "state")[-1]).backbone()
    return {**backbone.parameters, **{f"m {name}": array for name, array in backbone.momentum.items()}}


@pytest.mark.parametrize("entry", ["train_parall", "train"])
def test_a_run_moves_the_adapters_alone_and_saves_them_merged(engine: str, tokens: Callable[..., Config], entry: str,
                                                              tmp_path: Path) -> None:
    first = tokens(lora=0, models_root=str(tmp_path / "first"), max_steps=1)
    assert train(first) == 0
    before, _ = read_params(Path(first.output_dir, "model-0000.params"))
    config = tokens(entry=entry, state_every=10, pretrained=first.prefix, pretrained_epoch=0, lr=0.1, ema=0.5)
    assert train(config) == 0
    state, folder = state_of(config), Path(config.output_dir)
    assert all(np.array_equal(state[name], array) for name, array in before.items())
    assert all(np.any(state[name]) for name in state if is_adapter(name) and not name.startswith("m "))
    saved, average = (read_params(folder / f"{prefix}-0000.params")[0] for prefix in ("model", "ema"))
    assert saved.keys() == average.keys() == before.keys()
    whole = merged({name: array for name, array in state.items() if not name.startswith("m ")})
    assert all(np.array_equal(saved[name], whole[name]) for name in saved)
    assert {name for name in saved if not np.array_equal(saved[name], before[name])} == {
        "block0_fc1_weight", "block0_fc2_weight"}


def test_a_run_goes_on_to_the_same_bits_with_the_same_rank_alone(engine: str, tokens: Callable[..., Config],
                                                                 tmp_path: Path) -> None:
    whole = tokens(state_every=2, max_steps=4, models_root=str(tmp_path / "whole"))
    parts: dict[str, Any] = {"state_every": 2, "models_root": str(tmp_path / "parts")}
    first, second = tokens(**parts, max_steps=2), tokens(**parts, max_steps=4, resume="yes")
    assert [train(config) for config in (whole, first)] == [0, 0]
    for rank, line in ((0, "block0_fc1_lora_down_weight is in one of them alone"), (3, "has the shape")):
        with pytest.raises(UserError, match=f"network of other options than this run's: .*{line}"):
            train(tokens(**parts, max_steps=4, resume="yes", lora=rank))
    assert train(second) == 0
    found, wanted = state_of(second), state_of(whole)
    assert [name for name in wanted if wanted[name].tobytes() != found[name].tobytes()] == []


def test_each_linear_layer_of_a_vit_gets_one() -> None:
    vit = build_symbol(Config(net_name="vit", num_layers=2, net_multiplier=0.5, net_mask_ratio=0.1))
    found = [name for name in with_adapters(vit, 4).list_arguments() if is_adapter(name)]
    assert found == [f"block{block}_{layer}_lora_{end}_weight" for block in range(2)
                     for layer in ("attn_qkv", "attn_proj", "mlp_fc1", "mlp_fc2") for end in ("down", "up")]


def test_networks_without_tokens_and_other_freezing_are_refused() -> None:
    with pytest.raises(UserError, match=r"^lora: found a network without linear layers of tokens, expected a transf"):
        with_adapters(build_symbol(Config(num_layers=18)), 4)
    with pytest.raises(UserError, match=r"^lora: found 4, but it holds all but the adapters already"):
        refuse_unsupported(Config(lora=4, freeze="conv0*"))
