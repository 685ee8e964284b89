# SPDX-License-Identifier: Apache-2.0
"""Loss scaling, in float32: it has the same arithmetic there, and overflows too."""
from __future__ import annotations

import numpy as np
import pytest

from recognition.networks import sym
from recognition.optim import loss_scale
from recognition.optim.loss_scale import LossScale
from recognition.processes.communicator import SingleProcess


def test_it_falls_at_once_and_rises_slowly(monkeypatch):
    monkeypatch.setattr(loss_scale, "STEPS_BEFORE_RISE", 3)
    scale, values = LossScale(1024), []
    for finite in [False, False] + [True] * 9:
        scale.count(finite)
        values.append(scale.value)
    assert values == [512, 256, 256, 256, 512, 512, 512, 1024, 1024, 1024, 1024]


@pytest.fixture
def backbone(replicated):
    return lambda scale: make(replicated, scale)


def make(replicated, scale):
    symbol = sym.FullyConnected(sym.Variable("data"), num_hidden=4, name="fc1").graph()
    weights = {"fc1_weight": np.random.default_rng(0).standard_normal((4, 12)).astype(np.float32),
               "fc1_bias": np.zeros(4, np.float32)}
    return replicated(symbol, weights, {}, 2, 2, (3, 2, 2), SingleProcess(), mu=0.9, wd=5e-4, loss_scale=scale)


def step(trained, size=1.0):
    random = np.random.default_rng(trained._steps)
    trained.forward(random.integers(0, 256, (4, 3, 2, 2)).astype(np.uint8))
    trained.backward((random.standard_normal((4, 4)) * size).astype(np.float32))
    if trained.finite():
        trained.step(0.01)
    else:
        trained.leave_out()
    return trained.parameters()[0]


def test_a_power_of_two_changes_nothing(backbone):
    scaled, plain = backbone(LossScale(1024)), backbone(None)
    for _ in range(3):
        ours, theirs = step(scaled), step(plain)
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in theirs)


def test_a_step_that_overflows_is_skipped_and_a_state_keeps_the_scale(backbone):
    trained = backbone(LossScale(2.0**100))
    before = step(trained)
    after = step(trained, size=1e7)  # 2**100 * 1e7 * 255 is beyond float32
    assert all((before[name] == after[name]).all() for name in before)
    state = trained.state()
    assert state.loss_scale.tolist() == [2.0**99, 0]
    other = backbone(LossScale(2.0**100))
    other.load(state, 2)
    ours, theirs = step(other), step(trained)
    assert all(ours[name].tobytes() == theirs[name].tobytes() and (ours[name] != before[name]).any() for name in ours)


def test_it_never_reaches_zero():
    scale = LossScale(1.0)
    for _ in range(200):
        before = scale.value
        scale.count(finite=False)
        assert scale.fell == (before if before > loss_scale.SMALLEST_SCALE else 0)
    assert scale.value == loss_scale.SMALLEST_SCALE and not scale.fell
