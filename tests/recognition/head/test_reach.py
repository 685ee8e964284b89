# SPDX-License-Identifier: Apache-2.0
"""What tells that an update may overflow: by a bound that is never too low, and looks at all only now and then."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from recognition.engines.mxnet.backbone import ReplicatedBackbone
from recognition.engines.mxnet.imports import mx
from recognition.engines.mxnet.reach import SAFE, Reach, all_finite, overflowed, queued_squares, waited
from recognition.optim.adamw import AdamW
from recognition.optim.loss_scale import LossScale
from recognition.processes.communicator import SingleProcess


@pytest.mark.parametrize("count", [1, 99, 100, 101, 450])
def test_more_arrays_than_one_call_takes(count: int) -> None:
    arrays = [mx.nd.full((2, i % 3 + 1), i + 1) for i in range(count)]
    squares = waited(queued_squares(arrays))
    np.testing.assert_allclose(squares, [(i + 1.0) ** 2 * 2 * (i % 3 + 1) for i in range(count)], rtol=1e-6)
    assert all_finite(arrays, squares)
    for bad in (np.nan, np.inf, -np.inf):
        arrays[-1][1, 0] = bad
        assert not all_finite(arrays, waited(queued_squares(arrays)))


def test_numbers_whose_squares_overflow_are_finite_all_the_same() -> None:
    arrays = {"small": mx.nd.ones((2, 3)), "large": mx.nd.full((2, 3), -1e38)}
    squares = waited(queued_squares(list(arrays.values())))
    assert squares[1] == np.inf and all_finite(list(arrays.values()), squares)
    assert overflowed(arrays) == ["large"]
    assert all_finite([], waited(queued_squares([])))


def test_the_bound_holds_for_any_sgd_that_it_lets_through() -> None:
    """Random rates and gradients over many decades: w moves by momentum along the steepest gradient, the worst case."""
    random = np.random.default_rng(0)
    let_through = 0
    for _ in range(300):
        w, m, mu, wd = 1.0, 0.0, float(random.choice([0, 0.9, 0.99])), float(random.choice([0, 1e-3]))
        reach = Reach(lambda: abs(w))  # noqa: B023  # of this round
        for _ in range(30):
            lr, g = 10.0 ** random.uniform(-3, 12, 2)
            if reach(lr, g, wd, mu):
                break
            m = mu * m + lr * g
            w += m
            let_through += 1
            assert w + m * mu / (1 - mu) <= SAFE * 10  # with all that the momentum still carries
    assert let_through > 500


def test_it_looks_at_all_at_first_and_when_the_bound_has_grown_too_large() -> None:
    looks = []
    reach = Reach(lambda: looks.append(1) or 1.0)  # type: ignore[func-returns-value]
    for _ in range(25):
        assert not reach(1.0, SAFE / 10, 0.0, 0.0)
    assert len(looks) == 3  # tenths: at the 1st, 10th or 11th, and so on
    assert reach(1.0, SAFE * 2, 0.0, 0.0) and reach(SAFE * 2, 1e-9, 0.0, 0.0) and reach(1e-30, np.inf, 0.0, 0.0)
    assert not reach(0.1, 1.0, 0.0, 0.9)


@pytest.mark.parametrize("options", [{}, {"adamw": AdamW()}, {"loss_scale": LossScale(8.0)}],
                         ids=["sgd", "adamw", "float16"])
def test_a_tried_step_can_be_taken_back(options: dict[str, Any]) -> None:
    """On two devices; then the same step at a sane rate gives the bits of a run that never tried."""
    def make() -> ReplicatedBackbone:
        x = mx.sym.BatchNorm(mx.sym.var("data"), fix_gamma=False, name="bn")
        weights = {"fc_weight": np.ones((4, 12), np.float32), "fc_bias": np.zeros(4, np.float32),
                   "bn_gamma": np.ones(3, np.float32), "bn_beta": np.zeros(3, np.float32)}
        statistics = {"bn_moving_mean": np.zeros(3, np.float32), "bn_moving_var": np.ones(3, np.float32)}
        more = {**options, **({"loss_scale": LossScale(8.0)} if "loss_scale" in options else {})}
        return ReplicatedBackbone(mx.sym.FullyConnected(x, num_hidden=4, name="fc"), weights, statistics,
                                  [mx.cpu(0), mx.cpu(1)], 2, (3, 2, 2), SingleProcess(), mu=0.9, wd=5e-4,
                                  leaves_out=True, **more)

    def step(backbone: ReplicatedBackbone, lr: float) -> None:
        random = np.random.default_rng(backbone._steps)
        backbone.forward(random.integers(0, 256, (4, 3, 2, 2)).astype(np.uint8))
        backbone.backward(random.standard_normal((4, 4)).astype(np.float32))
        assert backbone.finite()
        if backbone.may_overflow(lr):
            assert "fc_weight" in backbone.try_step(lr)
            backbone.leave_out()
        else:
            backbone.step(lr)

    tried, plain = make(), make()
    step(tried, 0.1)
    step(plain, 0.1)
    before = tried.state()
    step(tried, 1e36)
    after = tried.state()
    for ours, theirs in ((before.parameters, after.parameters), (before.momentum, after.momentum),
                         (before.second_moment or {}, after.second_moment or {}), (before.updates or {},
                         after.updates or {}), *zip(before.auxiliary, after.auxiliary)):
        assert ours.keys() == theirs.keys() and all(ours[k].tobytes() == theirs[k].tobytes() for k in ours)
    assert before.loss_scale is None or (before.loss_scale == after.loss_scale).all()
    for backbone in (tried, plain):
        backbone._steps = 2
        step(backbone, 0.1)
    ours, theirs = tried.state(), plain.state()
    assert all(ours.parameters[k].tobytes() == theirs.parameters[k].tobytes() for k in ours.parameters)
