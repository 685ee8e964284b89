# SPDX-License-Identifier: Apache-2.0
"""The backbone's optimisers against float64, on a network whose gradient is a product, with each engine."""
from __future__ import annotations

import functools
from typing import Any, Callable

import numpy as np
import pytest

from recognition.engines.interface import Backbone
from recognition.head.shard import SGD
from recognition.networks import sym
from recognition.optim.adamw import AdamW
from recognition.optim.factors import LearningRateFactors
from recognition.optim.loss_scale import LossScale
from recognition.processes.communicator import SingleProcess
from tests.recognition.head.shards import on_context, on_torch

ADAMW, LR, MU, WD, LAYERS, STEPS = AdamW(0.8, 0.99, 1e-6), 0.02, 0.9, 0.1, 20, 6
FROZEN, FAST = "fc3_*", "fc5_weight"


Make = Callable[..., Any]


def first_weights() -> dict[str, np.ndarray]:
    random = np.random.RandomState(0)
    weights = {}
    for i in range(LAYERS):
        weights[f"fc{i}_weight"] = random.standard_normal((3, 12)).astype(np.float32)
        weights[f"fc{i}_bias"] = np.zeros(3, np.float32)
    return weights


@pytest.fixture
def make(replicated: Callable[..., Any]) -> Make:
    """``make()``: layers side by side, 40 parameters: more than one call updates."""

    def backbone(devices: int = 1, scale: LossScale | None = None, adamw: AdamW | None = ADAMW,
                 **options: Any) -> Any:
        data = sym.flatten(sym.Variable("data")) / 255
        layers = [sym.FullyConnected(data, num_hidden=3, name=f"fc{i}") for i in range(LAYERS)]
        return replicated(sym.concat(*layers).graph(), first_weights(), {}, devices, 4 // devices, (3, 2, 2),
                          SingleProcess(), mu=MU, wd=WD, adamw=adamw, loss_scale=scale, **options)

    return backbone


def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.RandomState(step)
    return random.randint(0, 256, (4, 3, 2, 2)).astype(np.uint8), random.standard_normal((4, 3 * LAYERS)).astype("f4")


def train(backbone: Backbone, first: int = 0, last: int = STEPS) -> dict[str, np.ndarray]:
    for step in range(first, last):
        images, d_features = batch(step)
        backbone.forward(images)
        backbone.backward(d_features)
        if backbone.finite():
            backbone.step(LR / (1 + step))
        else:
            backbone.leave_out()
    return backbone.parameters()[0]


def reference(skipped: tuple[int, ...] = (), frozen_steps: int = 0, fast: float = 1.0,
              adamw: AdamW | None = ADAMW) -> dict[str, np.ndarray]:
    """Each parameter counts its own updates."""
    weights = {name: a.astype(np.float64) for name, a in first_weights().items()}
    m, v = ({name: np.zeros_like(a) for name, a in weights.items()} for _ in range(2))
    updates = dict.fromkeys(weights, 0)
    for step in range(STEPS):
        if step in skipped:
            continue
        images, d_features = (a.reshape(4, -1).astype(np.float64) for a in batch(step))
        for name, w in weights.items():
            if name.startswith(FROZEN[:-1]) and step < frozen_steps:
                continue
            layer = int(name[2:].split("_")[0])
            d = d_features[:, 3 * layer : 3 * layer + 3]
            g = d.sum(axis=0) if name.endswith("bias") else d.T @ (images / 255)
            lr = LR / (1 + step) * (fast if name == FAST else 1)
            if adamw is None:
                m[name] = MU * m[name] - lr * (g + WD * w)
                weights[name] = w + m[name]
                continue
            updates[name] += 1
            m[name] = ADAMW.beta1 * m[name] + (1 - ADAMW.beta1) * g
            v[name] = ADAMW.beta2 * v[name] + (1 - ADAMW.beta2) * g * g
            m_hat, v_hat = m[name] / (1 - ADAMW.beta1**updates[name]), v[name] / (1 - ADAMW.beta2**updates[name])
            weights[name] = w - lr * (m_hat / (np.sqrt(v_hat) + ADAMW.eps) + WD * w)
    return weights


def assert_close(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    """Gradients of order 1, sums of 12 float32 products: 1e-6 of a step of 0.02, and 1e-7 of W a step."""
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=3e-6, err_msg=name)


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("adamw", [None, ADAMW], ids=["sgd", "adamw"])
def test_steps_on_one_device_and_on_two(make: Make, devices: int, adamw: AdamW | None) -> None:
    assert_close(train(make(devices, adamw=adamw)), reference(adamw=adamw))


@pytest.mark.parametrize("adamw", [None, ADAMW], ids=["sgd", "adamw"])
def test_a_frozen_parameter_counts_its_own_updates_and_factors_are_of_rate_and_decay(make: Make,
                                                                                     adamw: AdamW | None) -> None:
    rates = functools.partial(LearningRateFactors, freeze=[FROZEN], freeze_steps=3, factors=[(FAST, 0.25)])
    assert_close(train(make(factors=rates, adamw=adamw)), reference(frozen_steps=3, fast=0.25, adamw=adamw))


def test_a_step_that_overflows_is_no_update(make: Make) -> None:
    backbone = make(scale=LossScale(2.0**10))
    for step in range(STEPS):
        if step == 2:
            backbone.loss_scale.value = 2.0**127
        with np.errstate(over="ignore"):
            train(backbone, step, step + 1)
        backbone.loss_scale.value = 2.0**10
    assert_close(backbone.parameters()[0], reference(skipped=(2,)))
    assert set(map(int, backbone.state().updates.values())) == {STEPS - 1}


def test_a_state_goes_on_to_the_same_bits(make: Make) -> None:
    rates = functools.partial(LearningRateFactors, freeze=[FROZEN], freeze_steps=3)
    whole, first, second = (make(factors=rates) for _ in range(3))
    train(first, 0, 2)
    second.load(first.state(), 2)
    ours, theirs = train(second, 2), train(whole)
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in theirs)
    ours, theirs = second.state(), whole.state()
    for kind in ("momentum", "second_moment", "updates"):
        assert all(getattr(ours, kind)[name].tobytes() == getattr(theirs, kind)[name].tobytes() for name in whole.names)
    assert ours.updates["fc3_bias"] == 3 and ours.updates["fc4_bias"] == STEPS


def test_a_state_of_other_shapes_is_told(make: Make) -> None:
    backbone = make()
    state = backbone.state()
    assert backbone.difference(state) == ""
    short = {name: a[:1] for name, a in state.second_moment.items()}
    assert backbone.difference(state._replace(second_moment=short)).startswith("fc0_bias has the shape (1,) there and")
    assert backbone.difference(state._replace(second_moment=None)) == "fc0_bias is in one of them alone"


@pytest.mark.parametrize("adamw", [None, AdamW(1e-50, 1e-50, 1e-8)], ids=["sgd", "adamw"])
def test_numbers_below_those_of_float32_count_as_0(replicated: Callable[..., Any], adamw: AdamW | None) -> None:
    """MXNet refuses momentum and the like where float32 has no digits for them; at that rate nothing moves."""
    weights = {"fc_weight": np.ones((3, 12), np.float32), "fc_bias": np.ones(3, np.float32)}
    network = sym.FullyConnected(sym.Variable("data"), num_hidden=3, name="fc").graph()
    backbone = replicated(network, weights, {}, 1, 4, (3, 2, 2), SingleProcess(), mu=1e-50, wd=1e-50, adamw=adamw)
    backbone.forward(batch(0)[0])
    backbone.backward(batch(0)[1][:, :3])
    backbone.step(1e-50)
    after = backbone.parameters()[0]
    assert all((after[name] == 1).all() for name in weights)


@pytest.mark.parametrize("kind", [on_context, on_torch])
@pytest.mark.parametrize("adamw", [None, AdamW(1e-50, 1e-50, 1e-8)], ids=["sgd", "adamw"])
def test_numbers_below_those_of_float32_count_as_0_for_class_centres(adamw: AdamW | None,
                                                                     kind: Callable[..., Any]) -> None:
    shard = kind(0, 3, 4, normalised=True, scale=64.0)
    before, x = shard.state().centres.copy(), np.eye(4, dtype=np.float32)[:2]
    shard.select(None)
    shard.statistics(shard.similarities(x, np.arange(2)))
    shard.gradient(np.ones(2), 2, np.ones(2))
    shard.update(adamw.step(1e-50, 1e-50, 1) if adamw else SGD(1e-50, 1e-50, 1e-50), SingleProcess())
    assert (shard.state().centres == before).all()
