# SPDX-License-Identifier: Apache-2.0
"""Sub-centres with every margin loss, sampled or not, over any shards, against dense one-hot arithmetic in float64."""
from __future__ import annotations

from typing import Any, Callable

import numpy as np
import pytest

from recognition.head.margin import Margin
from recognition.head.sampling import ClassSampler
from recognition.head.shard import ShardState, split_classes
from recognition.head.sharded import ShardedHead
from recognition.processes.communicator import SingleProcess
from tests.recognition.head.shards import on_context, on_cpu, on_torch

LOSSES = {"softmax": Margin(normalised=False), "nsoftmax": Margin(64), "arcface": Margin(64, 1, 0.5),
          "cosface": Margin(64, 1, 0, 0.35), "combined": Margin(64, 1, 0.3, 0.2)}
CLASSES, DIM, BATCH, STEPS = 13, 6, 8, 4
LR, MU, WD = 0.05, 0.9, 0.0005


class Reference:
    """W, its momentum and its bias in float64; a step on some classes of all. Written for this test alone."""

    def __init__(self, w: np.ndarray, bias: np.ndarray, margin: Margin, k: int, with_bias: bool) -> None:
        self.w, self.bias = w.astype(np.float64), bias.astype(np.float64)
        self.momentum, self.bias_momentum = np.zeros_like(self.w), np.zeros_like(self.bias)
        self.margin, self.k, self.with_bias = margin, k, with_bias

    def step(self, x: np.ndarray, labels: np.ndarray, classes: np.ndarray) -> tuple[float, np.ndarray]:
        """The loss and its gradient by x; W moves."""
        rows = (classes[:, None] * self.k + np.arange(self.k)).ravel()
        hot = np.arange(len(classes)) == np.searchsorted(classes, labels)[:, None]
        w, x = self.w[rows], x.astype(np.float64)
        lengths = [np.linalg.norm(a, axis=1, keepdims=True) if self.margin.normalised else np.ones((len(a), 1))
                   for a in (x, w)]
        u, v = x / lengths[0], w / lengths[1]
        similarities = (u @ v.T + self.bias[rows]).reshape(len(x), -1, self.k)
        nearest = np.arange(self.k) == similarities.argmax(axis=2)[..., None]
        z, slope = self._logits(similarities.max(axis=2), hot)
        p = np.exp(z - z.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        d = ((p - hot) / len(x) * slope)[..., None] * nearest
        d = d.reshape(len(x), -1)
        d_x, d_w = (self._through_norm(g, unit, length) for g, unit, length in zip((d @ v, d.T @ u), (u, v), lengths))
        self.momentum[rows] = MU * self.momentum[rows] - LR * (d_w + WD * w)
        self.w[rows] += self.momentum[rows]
        if self.with_bias:
            self.bias_momentum[rows] = MU * self.bias_momentum[rows] - LR * (d.sum(axis=0) + WD * self.bias[rows])
            self.bias[rows] += self.bias_momentum[rows]
        return float(-np.log(p[hot]).mean()), d_x

    def _logits(self, similarities: np.ndarray, hot: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logits and their slopes by the similarities."""
        m = self.margin
        if not m.normalised:
            return similarities, np.ones_like(similarities)
        theta = np.arccos(similarities)
        psi, slope = np.cos(m.m1 * theta + m.m2) - m.m3, m.m1 * np.sin(m.m1 * theta + m.m2) / np.sin(theta)
        return m.s * np.where(hot, psi, similarities), m.s * np.where(hot, slope, 1)

    def _through_norm(self, gradient: np.ndarray, unit: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        if not self.margin.normalised:
            return gradient
        return (gradient - (gradient * unit).sum(axis=1, keepdims=True) * unit) / lengths


@pytest.mark.parametrize("kind", [on_cpu, on_context, on_torch],
                         ids=["numba", "mxnet", "torch"])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("ratio", [1.0, 0.7])
@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("loss", [*LOSSES, "softmax with a bias"])
def test_steps_agree_with_float64(loss: str, k: int, ratio: float, shards: int, kind: Callable[..., Any]) -> None:
    """Tolerance 2e-5 of the largest: logits reach 64 and lose 4e-6 to float32; momentum adds the errors of the steps.

    Rows that were not drawn keep every bit.
    """
    random = np.random.RandomState(11)
    margin, with_bias = LOSSES[loss.split()[0]], loss.endswith("bias")
    w = random.standard_normal((CLASSES * k, DIM)).astype(np.float32)
    bias = random.standard_normal(len(w)).astype(np.float32) * with_bias
    made = []
    for start, stop in split_classes(CLASSES, shards):
        shard = kind(start, stop, DIM, normalised=margin.normalised, scale=margin.scale, sub_centres=k,
                     with_bias=with_bias)
        rows = slice(start * k, stop * k)
        shard.load(ShardState(w[rows].copy(), 0 * w[rows], bias[rows].copy(), 0 * bias[rows]))
        made.append(shard)
    head = ShardedHead(made, margin, SingleProcess(), MU, WD, sampler=ClassSampler(ratio, 3))
    reference, touched = Reference(w, bias, margin, k, with_bias), set()
    for step in range(STEPS):
        x, labels = random.standard_normal((BATCH, DIM)).astype(np.float32), random.randint(0, 6, BATCH)
        drawn = [head.sampler(labels, step, s.start, s.stop) for s in made]
        classes = np.concatenate([np.arange(s.start, s.stop) if d is None else d for s, d in zip(made, drawn)])
        touched.update(classes.tolist())
        loss_expected, d_expected = reference.step(x, labels, classes)
        result = head.forward_backward(x, labels)
        head.step(LR)
        assert result.loss == pytest.approx(loss_expected, rel=2e-5)
        np.testing.assert_allclose(result.d_features, d_expected, rtol=0, atol=2e-5 * np.abs(d_expected).max())
        assert ratio == 1 or len(classes) < CLASSES
    for name, expected in (("centres", reference.w), ("momentum", reference.momentum), ("bias", reference.bias)):
        found = np.concatenate([getattr(shard.state(), name) for shard in made])
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * max(np.abs(expected).max(), 1))
    others = np.repeat([c not in touched for c in range(CLASSES)], k)
    assert np.array_equal(np.concatenate([shard.state().centres for shard in made])[others], w[others])
