# SPDX-License-Identifier: Apache-2.0
"""The head at the edges of what a batch can be, against the mathematics of docs/architecture.md in float64."""
from __future__ import annotations

from typing import Any, Callable, NamedTuple

import numpy as np
import pytest

from recognition.head.margin import MIN_ANGLE, Margin
from recognition.head.shard import ShardState, split_classes
from recognition.head.sharded import ShardedHead
from recognition.processes.communicator import SingleProcess
from tests.recognition.head.shards import on_context, on_cpu, on_torch

MARGINS = [Margin(64, 1, 0.5), Margin(64, 1, 0, 0.35), Margin(64, 1.3, 0.2, 0.1), Margin(64), Margin(normalised=False)]
EPSILON = 1e-10


class Reference(NamedTuple):
    loss: float
    d_features: np.ndarray
    d_centres: np.ndarray


def normalised(v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    norms = np.sqrt((v * v).sum(axis=1, keepdims=True) + EPSILON)
    return v / norms, norms


def through(d_unit: np.ndarray, unit: np.ndarray, norms: np.ndarray) -> np.ndarray:
    return (d_unit - (d_unit * unit).sum(axis=1, keepdims=True) * unit) / norms


def reference(x: np.ndarray, w: np.ndarray, labels: np.ndarray, margin: Margin) -> Reference:
    """Loss and gradients, dense, in float64; written for this test alone."""
    x, w, rows = x.astype(np.float64), w.astype(np.float64), np.arange(len(x))
    (unit, x_norms), (centres, w_norms) = (normalised(v) if margin.normalised else (v, v) for v in (x, w))
    z, slope = unit @ centres.T, np.ones(len(x))
    if margin.normalised:
        theta = np.arccos(np.clip(z[rows, labels], -1, 1))
        if (margin.m1, margin.m2) != (1, 0):
            theta = np.clip(theta, MIN_ANGLE, np.pi - MIN_ANGLE)
            slope = margin.m1 * np.sin(margin.m1 * theta + margin.m2) / np.sin(theta)
        target = np.cos(margin.m1 * theta + margin.m2) - margin.m3
        z[rows, labels] = target
        z *= margin.s
    highest = z.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(z - highest).sum(axis=1)) + highest[:, 0]
    d = np.exp(z - log_sum[:, None])
    d[rows, labels] = np.expm1(z[rows, labels] - log_sum)
    d *= (margin.s if margin.normalised else 1.0) / len(x)
    d[rows, labels] *= slope
    d_unit, d_centres = d @ centres, d.T @ unit
    if margin.normalised:
        d_unit, d_centres = through(d_unit, unit, x_norms), through(d_centres, centres, w_norms)
    return Reference(float(np.mean(log_sum - z[rows, labels])), d_unit, d_centres)


def make_head(kind: Callable[..., Any], w: np.ndarray, margin: Margin) -> ShardedHead:
    """Two shards; a step of rate 1 without momentum or decay takes the gradient from W."""
    shards = []
    for start, stop in split_classes(len(w), 2):
        shard = kind(start, stop, w.shape[1], normalised=margin.normalised, scale=margin.scale)
        none = np.zeros(stop - start, np.float32)
        shard.load(ShardState(w[start:stop].copy(), np.zeros_like(w[start:stop]), none, none.copy()))
        shards.append(shard)
    return ShardedHead(shards, margin, SingleProcess(), mu=0.0, wd=0.0)


def random_batch() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.RandomState(4)
    return (random.standard_normal((6, 8)).astype(np.float32), random.standard_normal((9, 8)).astype(np.float32),
            np.array([0, 3, 3, 8, 5, 1]))


def a_feature_of_zero_norm() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, w, labels = random_batch()
    x[2] = 0
    return x, w, labels


def a_centre_of_zero_norm() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, w, labels = random_batch()
    w[[3, 7]] = 0  # one that is a target, one that is not
    return x, w, labels


def one_identity() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every class but one has no image, one shard not a single target."""
    x, w, _ = random_batch()
    return x, w, np.full(6, 2)


def a_cosine_of(sign: int) -> Callable[[], tuple[np.ndarray, np.ndarray, np.ndarray]]:
    def batch() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Along the axes, so that the cosine is exact in float32 too; one row's other classes at the same end."""
        x, w, labels = random_batch()
        w[:8] = np.eye(8, dtype=np.float32) * 2
        x[:3] = sign * 4 * w[labels[:3]]
        w[4] = w[0]
        return x, w, labels

    return batch


CASES = {"a feature of zero norm": a_feature_of_zero_norm, "a centre of zero norm": a_centre_of_zero_norm,
         "one identity": one_identity, "cos 1": a_cosine_of(1), "cos -1": a_cosine_of(-1)}


@pytest.mark.parametrize("kind", [on_cpu, on_context, on_torch], ids=["numba", "mxnet", "torch"])
@pytest.mark.parametrize("margin", MARGINS, ids=["arcface", "cosface", "combined", "nsoftmax", "softmax"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_edges(kind: Callable[..., Any], margin: Margin, case: Callable[[], Any]) -> None:
    """Tolerance 1e-4 of a row's largest: float32 cosines are good to 1e-7, s = 64 and sums over D make it 2e-5. Rows
    apart, as the gradient of a vector without a norm is 1e5 times that of others; 1e-6 of 1 where it is nothing."""
    x, w, labels = case()
    head = make_head(kind, w, margin)
    result = head.forward_backward(x, labels)
    wanted = reference(x, w, labels, margin)
    assert result.loss == pytest.approx(wanted.loss, rel=1e-5)
    head.step(1.0)
    d_centres = w - np.concatenate([shard.state().centres for shard in head.shards])
    for found, expected in ((result.d_features, wanted.d_features), (d_centres, wanted.d_centres)):
        scale = np.maximum(np.abs(expected).max(axis=1, keepdims=True), 1e-2)
        np.testing.assert_array_less(np.abs(found - expected) / scale, 1e-4)
    assert all(shard.finite for shard in head.shards)


@pytest.mark.parametrize("kind", [on_cpu, on_context, on_torch], ids=["numba", "mxnet", "torch"])
@pytest.mark.parametrize("margin", MARGINS[::2], ids=["arcface", "combined", "softmax"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_reaches_the_loss(kind: Callable[..., Any], margin: Margin, bad: float) -> None:
    """One number of a feature, or of a centre that is no target in the other shard."""
    for place in ("feature", "centre"):
        x, w, labels = random_batch()
        (x if place == "feature" else w)[4, 3] = bad
        with np.errstate(all="ignore"):
            result = make_head(kind, w, margin).forward_backward(x, labels)
        assert not np.isfinite(result.loss), place


@pytest.mark.parametrize("kind", [on_cpu, on_context, on_torch], ids=["numba", "mxnet", "torch"])
def test_norms_of_centres(kind: Callable[..., Any]) -> None:
    _, w, _ = random_batch()
    norms = np.linalg.norm(w.astype(np.float64), axis=1)
    ranges = [shard.norms() for shard in make_head(kind, w, MARGINS[0]).shards]
    np.testing.assert_allclose([min(low for low, _ in ranges), max(high for _, high in ranges)],
                               [norms.min(), norms.max()], rtol=1e-6)
    w[0, 0] = np.nan
    assert np.isnan(make_head(kind, w, MARGINS[0]).shards[0].norms()).all()
