# SPDX-License-Identifier: Apache-2.0
"""Accumulation (``gradient_acc``): a step of several micro-batches against one of the whole batch."""
from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest

from recognition.config.options import Config
from recognition.networks import sym
from recognition.networks.graph import Graph
from recognition.networks.initialise import initialise
from recognition.processes.communicator import SingleProcess
from recognition.training.run import train
from recognition.training.states.state import SavedState, saved_states
from tests.recognition.training.test_distillation import close

SHAPE, DIM, WHOLE = (3, 16, 16), 6, 12
OPTIONS = {"mu": 0.9, "wd": 5e-4}


def network(batch_norm: bool = False, dropout: float = 0.0) -> Graph:
    x = sym.Convolution((sym.Variable("data") - 127.5) / 128, num_filter=5, kernel=(3, 3), stride=(2, 2), name="conv0")
    x = sym.BatchNorm(x, fix_gamma=False, momentum=0.9, eps=2e-5, name="bn0") if batch_norm else x
    x = sym.LeakyReLU(x, act_type="prelu", name="relu0")
    x = sym.Dropout(x, p=dropout) if dropout else x
    return sym.FullyConnected(x, num_hidden=DIM, name="fc1").graph()


@pytest.fixture
def made(replicated: Callable[..., Any]) -> Callable[..., Any]:
    """``made(graph, devices, batch, key=value)``: a backbone for ``batch`` images of each device at a time."""
    return lambda graph, devices, batch, **options: replicated(
        graph, *initialise(graph, SHAPE, 1), devices, batch, SHAPE, SingleProcess(), **{**OPTIONS, **options})


def images(step: int = 0) -> np.ndarray:
    return np.random.RandomState(step).randint(0, 256, (WHOLE, *SHAPE)).astype(np.uint8)


def gradients(step: int = 0) -> np.ndarray:
    return np.random.RandomState(100 + step).standard_normal((WHOLE, DIM)).astype(np.float32)


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("micro_batches", [2, 3])
def test_the_parameters_are_those_of_the_whole_batch(made: Callable[..., Any], devices: int,
                                                     micro_batches: int) -> None:
    """Three steps, without batch norm. Tolerance 1e-5 of the largest number: float32 sums in another order."""
    whole = made(network(), devices, WHOLE // devices)
    parts = made(network(), devices, WHOLE // devices // micro_batches, micro_batches=micro_batches)
    for step in range(3):
        close({"x": parts.forward(images(step))}, {"x": whole.forward(images(step))}, 1e-5)
        for backbone in (whole, parts):
            backbone.backward(gradients(step))
            assert backbone.finite()
            backbone.step(0.05)
    close(parts.state().parameters, whole.state().parameters, 1e-5)
    close(parts.state().momentum, whole.state().momentum, 1e-5)


def test_with_batch_norm_each_micro_batch_has_its_own_statistics(made: Callable[..., Any]) -> None:
    """Features, gradients and moving statistics against a backbone that is given one micro-batch after the other, in
    the order of the backward passes: the last first. Tolerance 1e-5: float32 sums of other lengths."""
    accumulated, single = made(network(batch_norm=True), 1, 4, micro_batches=3), made(network(batch_norm=True), 1, 4)
    features = accumulated.forward(images())
    accumulated.backward(gradients())
    sums: dict[str, np.ndarray] = {}
    for place in (2, 0, 1):
        rows = slice(4 * place, 4 * place + 4)
        close({"x": features[rows]}, {"x": single.forward(images()[rows])}, 1e-6)
        single.backward(gradients()[rows])
        for name, array in single.to_host(single.replicas[0].gradients).items():
            sums[name] = sums.get(name, 0) + array.astype(np.float64)
    assert accumulated.finite() and single.finite()
    close(accumulated.to_host(accumulated.replicas[0].gradients), sums, 1e-5)
    close(accumulated.state().auxiliary[0], single.state().auxiliary[0], 1e-6)


def test_dropout_draws_the_same_mask_for_both_passes_and_another_for_each_micro_batch(made: Callable[..., Any]) -> None:
    """The first micro-batch has the masks of a step of one alone, so the gradient of its features is that, too."""
    accumulated, single = made(network(dropout=0.5), 1, 4, micro_batches=3), made(network(dropout=0.5), 1, 4)
    same = np.tile(images()[:4], (3, 1, 1, 1))
    features, d_features = accumulated.forward(same), gradients()
    assert (features[:4] != features[4:8]).any() and (features[4:8] != features[8:]).any()
    d_features[4:] = 0
    accumulated.backward(d_features)
    assert (features[:4] == single.forward(same[:4])).all()
    single.backward(d_features[:4])
    close(*(each.to_host(each.replicas[0].gradients) for each in (accumulated, single)), 1e-6)


def test_a_step_that_is_left_out_leaves_the_statistics_as_they_were(made: Callable[..., Any]) -> None:
    backbone = made(network(batch_norm=True), 2, 3, micro_batches=2)
    before = backbone.state()
    for with_backward in (False, True):
        backbone.forward(images())
        if with_backward:
            backbone.backward(np.full((WHOLE, DIM), np.nan, np.float32))
            assert not backbone.finite()
        backbone.leave_out()
        for kept, now in zip(before.auxiliary, backbone.state().auxiliary):
            assert all(np.array_equal(kept[name], now[name]) for name in kept)


def arrays(config: Config) -> dict[str, np.ndarray]:
    """Parameters, momentum and class centres of the last state."""
    state = SavedState(saved_states(Path(config.output_dir) / "state")[-1])
    backbone = state.backbone()
    own = {} if config.triplets else state.rows(0, 11, config.loss_K)._asdict()
    return {**{f"w {name}": array for name, array in backbone.parameters.items()},
            **{f"m {name}": array for name, array in backbone.momentum.items()},
            **{f"W {name}": np.asarray(array) for name, array in own.items() if np.any(array)}}


@pytest.mark.parametrize("entry", ["train_parall", "train"])
@pytest.mark.parametrize("options", [{}, {"devices": "cpu:2", "loss_K": 2}, {"loss_name": "triplet", "lr": 0.001}],
                         ids=["arcface", "two devices, sub-centres", "triplet"])
def test_a_run_is_that_of_the_large_batch(engine: str, make: Callable[..., Config], tmp_path: Path, entry: str,
                                          options: dict[str, Any]) -> None:
    """Four steps of 12 images of a device against 4 times 3, or 2 times 6, with shards and sub-centres and with
    triplets. Tolerance 2e-5 of the largest number."""
    found = []
    for size, times in ((12, 1), (3, 4), (6, 2)):
        config = make(entry=entry, per_batch_size=size, gradient_acc=times, state_every=100, max_steps=4,
                      models_root=str(tmp_path / str(times)), triplet_bag_size=40, images_per_identity=4, **options)
        assert train(config) == 0
        found.append(arrays(config))
    for parts in found[1:]:
        close(parts, found[0], 2e-5)


def test_a_run_goes_on_to_the_same_bits(engine: str, gone_on: Callable[..., tuple[Config, Config]]) -> None:
    options: dict[str, Any] = {
        "per_batch_size": 3, "gradient_acc": 2, "state_every": 2, "net_name": "fmobilefacenet", "net_output": "E",
        "net_multiplier": 0.25, "net_blocks": [1, 1, 1, 1], "loss_m2": 0.1}
    found, wanted = map(arrays, gone_on(**options))
    assert [name for name in wanted if wanted[name].tobytes() != found[name].tobytes()] == []
