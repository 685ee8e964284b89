# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from recognition.head.margin import MIN_ANGLE, Margin
from recognition.training.parts import margin_of

ARCFACE, COSFACE, COMBINED = Margin(64, 1, 0.5, 0), Margin(64, 1, 0, 0.35), Margin(64, 1, 0.3, 0.2)
SPHEREFACE, NORMALISED = Margin(32, 1.35, 0, 0), Margin(64)
ALL = [ARCFACE, COSFACE, COMBINED, SPHEREFACE, NORMALISED]


@pytest.mark.parametrize("margin", ALL)
def test_the_logit_is_s_times_cos_of_the_angle_with_margins(margin: Margin) -> None:
    theta = np.linspace(0.01, 3.1, 50)
    logit, _ = margin.target(np.cos(theta))
    expected = margin.s * (np.cos(margin.m1 * theta + margin.m2) - margin.m3)
    np.testing.assert_allclose(logit, expected, rtol=1e-10, atol=1e-10)  # float64 both ways


@pytest.mark.parametrize("margin", ALL)
def test_the_slope_is_the_derivative(margin: Margin) -> None:
    cos, h = np.linspace(-0.99, 0.99, 41), 1e-6
    numeric = (margin.target(cos + h)[0] - margin.target(cos - h)[0]) / (2 * h)
    np.testing.assert_allclose(margin.target(cos)[1], numeric, rtol=1e-6)  # central differences: h^2 and 1e-16 / h


@pytest.mark.parametrize("margin", ALL)
def test_slopes_stay_bounded_where_the_angle_is_0_or_pi(margin: Margin) -> None:
    logit, slope = margin.target(np.array([1.0, -1.0, 1.0000001, -1.0000001, 1 - 1e-12]))
    assert np.isfinite(logit).all()
    assert (np.abs(slope) <= margin.s * max(margin.m1, 1) / np.sin(MIN_ANGLE)).all()


@pytest.mark.parametrize("margin", ALL)
def test_straight_through_has_the_logits_of_the_margin_and_the_slope_of_the_cosine(margin: Margin) -> None:
    cos, straight = np.linspace(-1, 1, 21), dataclasses.replace(margin, straight_through=True)
    np.testing.assert_array_equal(straight.target(cos)[0], margin.target(cos)[0])
    np.testing.assert_array_equal(straight.target(cos)[1], np.full(21, margin.s))


def test_softmax_leaves_inner_products_alone() -> None:
    margin = margin_of(SimpleNamespace(loss_name="softmax"))
    logit, slope = margin.target(np.array([-30.0, 0.0, 12.5]))
    assert logit.tolist() == [-30.0, 0.0, 12.5]
    assert slope.tolist() == [1.0, 1.0, 1.0]
    assert margin.scale == 1.0


def test_a_configuration_gives_its_margins() -> None:
    config = SimpleNamespace(loss_name="margin_softmax", loss_s=64.0, loss_m1=1.0, loss_m2=0.3, loss_m3=0.2,
                             target_gradient="exact", loss_margin="same")
    assert margin_of(config) == COMBINED
