# SPDX-License-Identifier: Apache-2.0
"""The head against the legacy goldens, against float64 finite differences, and N shards against one."""
from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest

from recognition.errors import UserError
from recognition.head.margin import Margin
from recognition.head.shard import ShardState, split_classes
from recognition.head.sharded import ShardedHead
from recognition.processes.communicator import SingleProcess
from tests.recognition.head.shards import on_context, on_cpu, on_torch

ARCFACE, COSFACE, COMBINED, NSOFTMAX = Margin(64, 1, 0.5), Margin(64, 1, 0, 0.35), Margin(64, 1, 0.3, 0.2), Margin(64)
SOFTMAX = Margin(normalised=False)


KINDS = pytest.mark.parametrize("kind", [on_cpu, on_context, on_torch], ids=["numba", "mxnet", "torch"])


def make_head(kind: Callable[..., Any], centres: np.ndarray, margin: Margin, shards: int = 1, sub_centres: int = 1,
              bias: np.ndarray | None = None, ceiling: float = np.inf, **sgd: float) -> ShardedHead:
    made: list[Any] = []
    for start, stop in split_classes(len(centres) // sub_centres, shards):
        shard = kind(start, stop, centres.shape[1], normalised=margin.normalised, scale=margin.scale,
                     sub_centres=sub_centres, with_bias=bias is not None, ceiling=ceiling)
        rows = slice(start * sub_centres, stop * sub_centres)
        zeros = np.zeros(rows.stop - rows.start, np.float32)
        shard.load(ShardState(centres[rows].copy(), np.zeros_like(centres[rows]),
                              zeros if bias is None else bias[rows].copy(), zeros.copy()))
        made.append(shard)
    return ShardedHead(made, margin, SingleProcess(), **sgd)


def centres_of(head: ShardedHead) -> np.ndarray:
    return np.concatenate([shard.state().centres for shard in head.shards])


@pytest.fixture(params=["softmax", "arcface", "cosface", "arcface_k3"])
def golden(request: pytest.FixtureRequest, shared: Path) -> dict[str, np.ndarray]:
    return dict(np.load(shared / "legacy" / "head" / f"{request.param}.npz"))


@KINDS
@pytest.mark.parametrize("shards", [1, 2, 3])
def test_four_steps_of_the_legacy_head(golden: dict[str, np.ndarray], kind: Callable[..., Any], shards: int) -> None:
    """Tolerance 2e-5: logits reach 64 and lose 4e-6 to float32, four steps of momentum at lr 0.1 add a factor 3."""
    s, m1, m2, m3 = golden["loss"]
    margin = SOFTMAX if np.isnan(s) else Margin(s, m1, m2, m3)
    lr, mu, wd = (float(golden[name]) for name in ("lr", "momentum", "wd"))
    head = make_head(kind, golden["W0"], margin, shards, int(golden["K"]), mu=mu, wd=wd)
    layer = [golden["P0"].astype(np.float64), golden["b0"].astype(np.float64)]
    momentum = [np.zeros_like(a) for a in layer]
    for i, (x, labels) in enumerate(zip(golden["X"], golden["Y"].astype(np.int64))):
        result = head.forward_backward((x @ layer[0].T + layer[1]).astype(np.float32), labels)
        np.testing.assert_allclose(result.d_features * len(x), golden["d_embedding"][i], rtol=2e-5,
                                   atol=2e-5 * np.abs(golden["d_embedding"][i]).max())
        for j, gradient in enumerate([result.d_features.T @ x, result.d_features.sum(axis=0)]):
            momentum[j] = mu * momentum[j] - lr * (gradient + wd * layer[j])
            layer[j] = layer[j] + momentum[j]
        head.step(lr)
        np.testing.assert_allclose(centres_of(head), golden["W"][i], rtol=0, atol=2e-5)
        np.testing.assert_allclose(layer[0], golden["P"][i], rtol=0, atol=2e-5)
        np.testing.assert_allclose(layer[1], golden["b"][i], rtol=0, atol=2e-5)


def mean_cross_entropy(x: np.ndarray, w: np.ndarray, labels: np.ndarray, margin: Margin, sub_centres: int = 1,
                       bias: np.ndarray | None = None, without: np.ndarray | None = None) -> float:
    """The loss in float64, dense, written for this test alone."""
    if margin.normalised:
        x = x / np.sqrt((x * x).sum(1, keepdims=True) + 1e-10)
        w = w / np.sqrt((w * w).sum(1, keepdims=True) + 1e-10)
    z = x @ w.T + (0 if bias is None else bias)
    z = z.reshape(len(x), -1, sub_centres).max(axis=2)
    rows = np.arange(len(x))
    if margin.normalised:
        theta = np.arccos(z[rows, labels])
        z = margin.s * z
        z[rows, labels] = margin.s * (np.cos(margin.m1 * theta + margin.m2) - margin.m3)
    if without is not None:
        z[without] = -np.inf
    shifted = z - z.max(axis=1, keepdims=True)
    return float(np.mean(np.log(np.exp(shifted).sum(axis=1)) - shifted[rows, labels]))


def numeric_gradient(function: Callable[[np.ndarray], float], at: np.ndarray, h: float = 1e-6) -> np.ndarray:
    gradient = np.zeros(at.size)
    for i in range(at.size):
        step = np.zeros(at.size)
        step[i] = h
        step = step.reshape(at.shape)
        gradient[i] = (function(at + step) - function(at - step)) / (2 * h)
    return gradient.reshape(at.shape)


@KINDS
@pytest.mark.parametrize("margin, sub_centres", [(SOFTMAX, 1), (NSOFTMAX, 1), (ARCFACE, 1), (COSFACE, 1), (COMBINED, 1),
                                                 (ARCFACE, 3), (COSFACE, 2)])
def test_loss_and_gradients_against_finite_differences(kind: Callable[..., Any], margin: Margin,
                                                       sub_centres: int) -> None:
    """Tolerance 1e-4 of the largest: float32 cosines are good to 1e-7, the scale 64 and sums over D make it 2e-5."""
    random = np.random.RandomState(3)
    classes, dim = 7, 6
    w = random.standard_normal((classes * sub_centres, dim)).astype(np.float32)
    labels = np.array([0, 6, 3, 3, 5])
    x = random.standard_normal((5, dim)).astype(np.float32)
    head = make_head(kind, w, margin, 2, sub_centres, mu=0.0, wd=0.0)
    result = head.forward_backward(x, labels)
    head.step(1.0)

    x64, w64 = x.astype(np.float64), w.astype(np.float64)
    assert result.loss == pytest.approx(mean_cross_entropy(x64, w64, labels, margin, sub_centres), rel=1e-5)
    expected = numeric_gradient(lambda v: mean_cross_entropy(v, w64, labels, margin, sub_centres), x64)
    np.testing.assert_allclose(result.d_features, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    expected = numeric_gradient(lambda v: mean_cross_entropy(x64, v, labels, margin, sub_centres), w64)
    np.testing.assert_allclose(w - centres_of(head), expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@KINDS
@pytest.mark.parametrize("sub_centres", [1, 3])
def test_conflicting_negatives_are_left_out_of_the_loss(kind: Callable[..., Any], sub_centres: int) -> None:
    """Against the dense loss with their logits at -inf. Tolerances as for the gradients without the filter."""
    random = np.random.RandomState(8)
    w = random.standard_normal((9 * sub_centres, 6)).astype(np.float32)
    x, labels = random.standard_normal((5, 6)).astype(np.float32), np.array([0, 6, 3, 3, 5])
    threshold = 0.3
    head = make_head(kind, w, ARCFACE, 2, sub_centres, ceiling=64 * threshold, mu=0.0, wd=0.0)
    result = head.forward_backward(x, labels)
    head.step(1.0)

    x64, w64 = x.astype(np.float64), w.astype(np.float64)
    unit_x, unit_w = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x64, w64))
    cos = (unit_x @ unit_w.T).reshape(5, 9, sub_centres).max(axis=2)
    conflict = (cos > threshold) & (np.arange(9) != labels[:, None])
    assert 5 < conflict.sum() < 40
    reference = partial(mean_cross_entropy, labels=labels, margin=ARCFACE, sub_centres=sub_centres, without=conflict)
    assert result.loss == pytest.approx(reference(x64, w64), rel=1e-5)
    expected = numeric_gradient(lambda v: reference(v, w64), x64)
    np.testing.assert_allclose(result.d_features, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    expected = numeric_gradient(lambda v: reference(x64, v), w64)
    np.testing.assert_allclose(w - centres_of(head), expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@KINDS
def test_straight_through_is_the_gradient_with_the_margin_taken_as_a_constant(kind: Callable[..., Any]) -> None:
    """The target's logit is s cos + (s psi - s cos), with the bracket held where it was."""
    random = np.random.RandomState(9)
    w, x = (random.standard_normal((n, 6)).astype(np.float32) for n in (7, 5))
    labels, rows = np.array([0, 6, 3, 3, 5]), np.arange(5)
    straight = dataclasses.replace(ARCFACE, straight_through=True)
    result = make_head(kind, w, straight, 2).forward_backward(x, labels)

    def similarity(v: np.ndarray) -> np.ndarray:
        return (v / np.linalg.norm(v, axis=1, keepdims=True)) @ (w / np.linalg.norm(w, axis=1, keepdims=True)).T

    cos = similarity(x.astype(np.float64))[rows, labels]
    shift = 64 * (np.cos(np.arccos(cos) + 0.5) - cos)

    def loss(v: np.ndarray) -> float:
        z = 64 * similarity(v)
        z[rows, labels] += shift
        return float(np.mean(np.log(np.exp(z - z.max()).sum(axis=1)) + z.max() - z[rows, labels]))

    expected = numeric_gradient(loss, x.astype(np.float64))
    np.testing.assert_allclose(result.d_features, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@KINDS
def test_softmax_with_a_bias(kind: Callable[..., Any]) -> None:
    random = np.random.RandomState(4)
    w, x = (random.standard_normal((n, 6)).astype(np.float32) for n in (7, 5))
    bias, labels = random.standard_normal(7).astype(np.float32), np.array([0, 6, 3, 3, 5])
    head = make_head(kind, w, SOFTMAX, 3, bias=bias, mu=0.0, wd=0.0)
    result = head.forward_backward(x, labels)
    head.step(1.0)
    args = (x.astype(np.float64), w.astype(np.float64), labels, SOFTMAX, 1)
    assert result.loss == pytest.approx(mean_cross_entropy(*args, bias.astype(np.float64)), rel=1e-6)
    expected = numeric_gradient(lambda b: mean_cross_entropy(*args, b), bias.astype(np.float64))
    found = bias - np.concatenate([shard.state().bias for shard in head.shards])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@KINDS
@pytest.mark.parametrize("margin, sub_centres", [(SOFTMAX, 1), (ARCFACE, 1), (COSFACE, 3)])
def test_the_number_of_shards_does_not_matter(kind: Callable[..., Any], margin: Margin, sub_centres: int) -> None:
    """11 classes over 1 to 4 shards, five steps. Only the order of float32 sums differs: 2e-6 of W's scale a step."""
    random = np.random.RandomState(5)
    w = (0.1 * random.standard_normal((11 * sub_centres, 16))).astype(np.float32)
    steps = [(random.standard_normal((8, 16)).astype(np.float32), random.randint(0, 11, 8)) for _ in range(5)]
    heads = [make_head(kind, w, margin, shards, sub_centres) for shards in (1, 2, 3, 4)]
    for x, labels in steps:
        first, *others = [head.forward_backward(x, labels) for head in heads]
        for head in heads:
            head.step(0.01)
        for other, head in zip(others, heads[1:]):
            assert other.loss == pytest.approx(first.loss, rel=1e-5)
            assert other.accuracy == first.accuracy
            np.testing.assert_allclose(other.d_features, first.d_features, rtol=0,
                                       atol=1e-5 * np.abs(first.d_features).max())
            np.testing.assert_allclose(centres_of(head), centres_of(heads[0]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [on_cpu, on_torch], ids=["numba", "torch"])
@pytest.mark.parametrize("batch, dim, sub_centres", [(16, 32, 1), (70, 91, 1), (131, 128, 3)])
def test_kinds_of_shard_agree_on_a_larger_problem(kind: Callable[..., Any], batch: int, dim: int,
                                                  sub_centres: int) -> None:
    """More rows than a group or a piece of the CPU shard, batches and lengths that fill no tile."""
    random = np.random.RandomState(6)
    w = (0.01 * random.standard_normal((20011 * sub_centres, dim))).astype(np.float32)
    x, labels = random.standard_normal((batch, dim)).astype(np.float32), random.randint(0, 20011, batch)
    heads = [make_head(kind, w, ARCFACE, 2, sub_centres) for kind in (kind, on_context)]
    results = [head.forward_backward(x, labels) for head in heads]
    for head in heads:
        head.step(0.1)
    assert results[0].loss == pytest.approx(results[1].loss, rel=1e-6)
    np.testing.assert_allclose(results[0].d_features, results[1].d_features, rtol=0,
                               atol=1e-5 * np.abs(results[1].d_features).max())
    np.testing.assert_allclose(centres_of(heads[0]), centres_of(heads[1]), rtol=0,
                               atol=1e-5 * np.abs(centres_of(heads[1])).max())


@KINDS
def test_embeddings_on_their_centres_and_opposite_to_them(kind: Callable[..., Any]) -> None:
    w = np.eye(4, 8, dtype=np.float32)
    x = np.concatenate([3 * w, -2 * w, np.zeros((1, 8), np.float32)])
    labels = np.array([0, 1, 2, 3, 0, 1, 2, 3, 0])
    head = make_head(kind, w, ARCFACE, 2)
    result = head.forward_backward(x, labels)
    head.step(0.1)
    assert np.isfinite(result.loss) and np.isfinite(result.d_features).all() and np.isfinite(centres_of(head)).all()
    assert np.abs(result.d_features[:8]).max() <= ARCFACE.s / len(x)  # no blow-up where psi' has no bound


def test_accuracy_counts_targets_that_win_in_spite_of_their_margin() -> None:
    w = np.eye(3, dtype=np.float32)
    x = np.array([[1, 0, 0], [0.8, 0.7, 0], [0, 1, 0]], np.float32)
    result = make_head(on_cpu, w, ARCFACE).forward_backward(x, np.array([0, 0, 2]))
    assert result.accuracy == pytest.approx(1 / 3)  # the second is nearest to class 0, but not by the margin
    assert make_head(on_cpu, w, NSOFTMAX).forward_backward(x, np.array([0, 0, 2])).accuracy == pytest.approx(2 / 3)


def test_a_device_without_a_class_is_refused_where_arrays_cannot_be_empty() -> None:
    with pytest.raises(UserError, match=r"^devices: found more shards than the 2 identities, expected at least one"):
        on_context(2, 2, 8, normalised=True, scale=64)


@pytest.mark.parametrize("kind", [on_cpu, on_torch], ids=["numba", "torch"])
def test_a_shard_without_a_class(kind: Callable[..., Any]) -> None:
    heads = [make_head(kind, np.eye(2, 8, dtype=np.float32), ARCFACE, shards) for shards in (1, 3)]
    losses = [head.forward_backward(np.eye(2, 8, k=1, dtype=np.float32), np.array([0, 1])).loss for head in heads]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for head in heads:
        head.step(0.1)
    np.testing.assert_allclose(centres_of(heads[1]), centres_of(heads[0]), rtol=0, atol=1e-6)
    assert heads[1].finite and heads[1].shards[2].norms() == (np.inf, 0)


def test_shards_without_a_class_add_nothing() -> None:
    empty, some = [-np.inf, 0.0, -np.inf], [2.0, 1.5, 1.0]
    assert ShardedHead._summary(np.array([[empty, some]])).tolist() == [some]
    assert ShardedHead._summary(np.array([[empty, empty]])).tolist() == [empty]


@KINDS
def test_targets_that_win_in_spite_of_their_margin_all_count(kind: Callable[..., Any]) -> None:
    """A target's logit is a float64 number of the host, the shards' maximum is the same number as float32."""
    random = np.random.default_rng(3)
    centres = random.standard_normal((200, 64)).astype(np.float32)
    labels = np.arange(100)
    features = centres[labels] + 0.3 * random.standard_normal((100, 64)).astype(np.float32)
    assert make_head(kind, centres, ARCFACE, 2).forward_backward(features, labels).accuracy == 1
