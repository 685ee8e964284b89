# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from recognition.errors import UserError
from recognition.optim.factors import LearningRateFactors

NAMES = ["conv0_weight", "fc1_gamma", "pre_fc1_bias", "pre_fc1_weight", "stage1_weight"]


def test_without_options_everything_moves() -> None:
    assert LearningRateFactors(NAMES)(0) == dict.fromkeys(NAMES, 1.0)


def test_freezing_ends_after_its_steps_and_factors_go_on() -> None:
    factors = [("*fc1*", 10.0), ("pre_fc1_bias", 2.0), ("stage1*", 0.5)]
    rates = LearningRateFactors(NAMES, ["conv0*", "stage?_*"], 3, factors)
    first = {"fc1_gamma": 10.0, "pre_fc1_bias": 2.0, "pre_fc1_weight": 10.0}
    assert rates(0) == rates(2) == first
    assert rates(3) == rates(10**9) == {"conv0_weight": 1.0, **first, "stage1_weight": 0.5}
    assert list(rates(3)) == NAMES


def test_no_number_of_steps_is_for_ever() -> None:
    assert LearningRateFactors(NAMES, ["*"])(10**9) == {}


def test_a_run_in_which_nothing_would_learn_is_refused() -> None:
    for freeze, steps, factors in [(["*"], 0, []), ([], 0, [("*", 0.0)]), (["*"], 5, [("*", 0.0)]),
                                   (["*_weight"], 0, [("*", 0.0), ("*_weight", 1.0)])]:
        LearningRateFactors(NAMES, freeze, steps, factors)  # the class centres learn
        with pytest.raises(UserError, match=r"^freeze, lr_factor: found that no parameter would ever move"):
            LearningRateFactors(NAMES, freeze, steps, factors, needed=True)
    assert LearningRateFactors(NAMES, ["*"], 5, needed=True)(5)
    assert LearningRateFactors(NAMES, ["*_weight"], needed=True)(0)


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(UserError, match=r"freeze: found 'stage9\*', which no parameter .* such as conv0_weight"):
        LearningRateFactors(NAMES, ["stage9*"])
    with pytest.raises(UserError, match=r"lr_factor: found 'fc7\*', but the class centres have .* fc7_lr_mult"):
        LearningRateFactors(NAMES, factors=[("fc7*", 0.1)])
    with pytest.raises(UserError, match=r"lr_factor: found 'pre_fc1_wieght'.* nearest is 'pre_fc1_weight'"):
        LearningRateFactors(NAMES, factors=[("pre_fc1_wieght", 1.0)])
