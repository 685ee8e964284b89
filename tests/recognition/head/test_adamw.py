# SPDX-License-Identifier: Apache-2.0
"""AdamW against a float64 reference written here: its loops, and the head over shards, processes and samples."""
from __future__ import annotations

from typing import Any, Callable

import numpy as np
import pytest

from recognition.config.options import Config
from recognition.engines.cpu.adamw_kernel import update_centres_adamw
from recognition.engines.cpu.shard import CpuShard
from recognition.engines.mxnet import shard
from recognition.engines.mxnet.imports import mx
from recognition.head.margin import Margin
from recognition.head.sampling import ClassSampler
from recognition.head.shard import ShardState, initial_centres, split_classes
from recognition.head.sharded import ShardedHead
from recognition.optim.adamw import AdamW, AdamWStep
from recognition.processes.communicator import SingleProcess
from recognition.training.parts import adamw_of
from tests.recognition.head.shards import KINDS

ARCFACE, COSFACE, SOFTMAX = Margin(64, 1, 0.5), Margin(64, 1, 0, 0.35), Margin(normalised=False)
# A step's size does not depend on that of the gradient, so where the gradient is next to nothing its rounding decides.
# A larger eps than the default keeps that out of the comparisons of whole heads.
SMOOTH = AdamW(0.8, 0.95, 0.1)
CLASSES, DIM, LR, WD = 11, 8, 0.02, 0.1
MOMENTS = ("centres", "momentum", "second_moment")


class Reference:
    """AdamW in float64 over rows, those not named in a step untouched; ``step`` counts for all rows alike."""

    def __init__(self, w: np.ndarray, adamw: AdamW) -> None:
        self.w, self.beta1, self.beta2, self.eps = w.astype(np.float64), *adamw
        self.m, self.v, self.t = np.zeros_like(self.w), np.zeros_like(self.w), 0

    def step(self, gradient: np.ndarray, lr: float, wd: float, rows: Any = slice(None)) -> None:
        self.t += 1
        g = gradient[rows].astype(np.float64)
        self.m[rows] = self.beta1 * self.m[rows] + (1 - self.beta1) * g
        self.v[rows] = self.beta2 * self.v[rows] + (1 - self.beta2) * g * g
        m_hat, v_hat = self.m[rows] / (1 - self.beta1**self.t), self.v[rows] / (1 - self.beta2**self.t)
        self.w[rows] -= lr * (m_hat / (np.sqrt(v_hat) + self.eps) + wd * self.w[rows])


def gradient_by_w(x: np.ndarray, w: np.ndarray, labels: np.ndarray, margin: Margin) -> np.ndarray:
    """The gradient of the mean cross entropy over the rows of ``w``, dense, float64."""
    x, rows = x.astype(np.float64), np.arange(len(x))
    if margin.normalised:
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
    norms = np.linalg.norm(w, axis=1, keepdims=True) if margin.normalised else np.ones((len(w), 1))
    unit = w / norms
    cos = x @ unit.T
    scale = float(margin.s) if margin.normalised else 1.0
    z, slope = scale * cos, np.full(cos.shape, scale)
    if margin.normalised:
        theta = np.arccos(cos[rows, labels])
        z[rows, labels] = margin.s * (np.cos(margin.m1 * theta + margin.m2) - margin.m3)
        slope[rows, labels] *= margin.m1 * np.sin(margin.m1 * theta + margin.m2) / np.sin(theta)
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[rows, labels] -= 1
    d_unit = (p * slope / len(x)).T @ x
    if not margin.normalised:
        return d_unit
    return (d_unit - (d_unit * unit).sum(axis=1, keepdims=True) * unit) / norms


def make_head(kind: Callable[..., Any], w: np.ndarray, margin: Margin, shards: int = 1, sub_centres: int = 1,
              ratio: float = 1.0, adamw: AdamW | None = SMOOTH, wd: float = WD) -> ShardedHead:
    made = []
    for start, stop in split_classes(len(w) // sub_centres, shards):
        shard = kind(start, stop, w.shape[1], normalised=margin.normalised, scale=margin.scale, sub_centres=sub_centres)
        part = w[start * sub_centres : stop * sub_centres].copy()
        shard.load(ShardState(part, np.zeros_like(part), *np.zeros((2, len(part)), np.float32)))
        made.append(shard)
    return ShardedHead(made, margin, SingleProcess(), 0.0, wd, sampler=ClassSampler(ratio, 3), adamw=adamw)


def joined(head: ShardedHead, name: str = "centres") -> np.ndarray:
    return np.concatenate([getattr(shard.state(), name) for shard in head.shards])


def some_centres(rows: int = CLASSES) -> np.ndarray:
    return (0.3 * np.random.RandomState(1).standard_normal((rows, DIM))).astype(np.float32)


def batches(count: int, classes: int = CLASSES) -> list[tuple[np.ndarray, np.ndarray]]:
    random = np.random.RandomState(2)
    return [(random.standard_normal((9, DIM)).astype(np.float32), random.randint(0, classes, 9)) for _ in range(count)]


def by_numba(w: np.ndarray, m: np.ndarray, v: np.ndarray, gradient: np.ndarray, step: AdamWStep) -> None:
    numbers = (np.float32(n) for n in (step.beta1, step.beta2, step.lr * step.factor, step.eps, step.lr * step.wd))
    rows, inverse = np.arange(len(w)), np.ones(len(w), np.float32)
    update_centres_adamw(w, m, v, rows, gradient, inverse, False, *numbers)


def by_mxnet(w: np.ndarray, m: np.ndarray, v: np.ndarray, gradient: np.ndarray, step: AdamWStep) -> None:
    arrays = [mx.nd.array(a) for a in (w, gradient, m, v)]
    shard._step(step, *arrays)
    for ours, array in zip((w, m, v), (arrays[0], *arrays[2:])):
        ours[:] = array.asnumpy()


def by_torch(w: np.ndarray, m: np.ndarray, v: np.ndarray, gradient: np.ndarray, step: AdamWStep) -> None:
    torch = pytest.importorskip("torch")
    from recognition.engines.torch import shard_steps
    shard_steps.step(step, *(torch.from_numpy(a) for a in (w, gradient.copy(), m, v)))


@pytest.mark.parametrize("update", [by_numba, by_mxnet, by_torch])
@pytest.mark.parametrize("adamw", [AdamW(), AdamW(0.5, 0.9, 1e-3), AdamW(0.0, 0.0, 1e-8)])
def test_the_loops_are_the_formula(update: Callable[..., None], adamw: AdamW) -> None:
    """Float32 against float64: 6e-8 of W a step and 1e-6 of the step, 40 times; of the moments 1e-6 of their size."""
    random = np.random.RandomState(4)
    w = random.standard_normal((5, 33)).astype(np.float32)
    m, v, reference = np.zeros_like(w), np.zeros_like(w), Reference(w, adamw)
    for t in range(1, 41):
        gradient = (random.standard_normal(w.shape) * 10.0 ** random.randint(-6, 3)).astype(np.float32)
        reference.step(gradient, LR / t, WD)
        update(w, m, v, gradient, adamw.step(LR / t, WD, t))
        np.testing.assert_allclose(w, reference.w, rtol=0, atol=2e-5)
        np.testing.assert_allclose(m, reference.m, rtol=0, atol=3e-6 * np.abs(reference.m).max())
        np.testing.assert_allclose(v, reference.v, rtol=2e-5)


def test_the_first_update_is_the_learning_rate_whatever_the_gradient() -> None:
    w, gradient = np.ones((1, 4), np.float32), np.array([[1e-3, -1e-3, 5, -5e4]], np.float32)
    by_numba(w, np.zeros_like(w), np.zeros_like(w), gradient, AdamW().step(0.01, 0.0, 1))
    np.testing.assert_allclose(w, [[0.99, 1.01, 0.99, 1.01]], rtol=1e-5)  # 1e-8 of 1e-3 is eps


@KINDS
@pytest.mark.parametrize("margin", [SOFTMAX, ARCFACE, COSFACE], ids=["softmax", "arcface", "cosface"])
def test_a_head_over_steps(kind: Callable[..., Any], margin: Margin) -> None:
    """W and its moments. Gradients are good to 1e-5, by s = 64, and a step to that over eps, 1e-4 of it."""
    head, reference = make_head(kind, some_centres(), margin, shards=2), Reference(some_centres(), SMOOTH)
    for x, labels in batches(8):
        head.forward_backward(x, labels)
        reference.step(gradient_by_w(x, reference.w, labels, margin), LR, WD)
        head.step(LR)
        np.testing.assert_allclose(joined(head), reference.w, rtol=0, atol=5e-4 * LR)
    for name, wanted in (("momentum", reference.m), ("second_moment", reference.v)):
        np.testing.assert_allclose(joined(head, name), wanted, rtol=0, atol=2e-3 * np.abs(wanted).max())
    assert np.abs(joined(head) - some_centres()).max() > 3 * LR


@KINDS
@pytest.mark.parametrize("sub_centres", [1, 3])
def test_rows_that_are_not_drawn_keep_values_and_moments(kind: Callable[..., Any], sub_centres: int) -> None:
    """And those drawn late are corrected by the number of steps, as in Partial FC's AdamW."""
    rows = 60 * sub_centres
    head = make_head(kind, some_centres(rows), ARCFACE, shards=2, sub_centres=sub_centres, ratio=0.3)
    reference, first_drawn_late = Reference(some_centres(rows), SMOOTH), np.zeros(rows, bool)
    for t, (x, labels) in enumerate(batches(6, classes=60)):
        classes = np.concatenate([head.sampler(labels, t, shard.start, shard.stop) for shard in head.shards])
        drawn = (classes[:, None] * sub_centres + np.arange(sub_centres)).ravel()
        first_drawn_late[drawn] |= (t > 2) & ~reference.m[drawn].any(axis=1)
        others = np.setdiff1d(np.arange(rows), drawn)
        before = [joined(head, name)[others] for name in MOMENTS] if t else []
        gradient, w = np.zeros((rows, DIM)), reference.w[drawn]
        unit, x64 = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (w, x.astype(np.float64)))
        cosines = (x64 @ unit.T).reshape(len(x), -1, sub_centres)
        nearest = cosines.argmax(axis=2) + np.arange(len(classes)) * sub_centres  # (B, classes drawn)
        place = np.searchsorted(classes, labels)
        for b in range(len(x)):  # a row of the batch sees the nearest centre of each class
            part = gradient_by_w(x[b : b + 1], w[nearest[b]], place[b : b + 1], ARCFACE) / len(x)
            gradient[drawn[nearest[b]]] += part
        reference.step(gradient, LR, WD, drawn)
        head.forward_backward(x, labels)
        head.step(LR)
        for name, kept in zip(MOMENTS, before):
            assert np.array_equal(joined(head, name)[others], kept)
        np.testing.assert_allclose(joined(head), reference.w, rtol=0, atol=5e-4 * LR)
    assert first_drawn_late.sum() > 5


@KINDS
@pytest.mark.parametrize("sub_centres", [1, 2])
def test_the_number_of_shards_does_not_matter(kind: Callable[..., Any], sub_centres: int) -> None:
    """Only the order of float32 sums differs, 1e-6 of the gradient, and a step by that over eps."""
    heads = [make_head(kind, some_centres(CLASSES * sub_centres), COSFACE, shards, sub_centres) for shards in (1, 2, 4)]
    for x, labels in batches(6):
        for head in heads:
            head.forward_backward(x, labels)
            head.step(LR)
        for name in MOMENTS:
            wanted = joined(heads[0], name)
            for head in heads[1:]:
                np.testing.assert_allclose(joined(head, name), wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@KINDS
def test_a_bias_and_a_ratio_of_one_and_a_state_taken_over(kind: Callable[..., Any]) -> None:
    """Softmax with a bias; after three steps of one head another of two shards goes on from its state."""
    def made(shards: int) -> ShardedHead:
        parts = [kind(start, stop, DIM, normalised=False, scale=1.0, with_bias=True)
                 for start, stop in split_classes(CLASSES, shards)]
        return ShardedHead(parts, SOFTMAX, SingleProcess(), wd=WD, adamw=SMOOTH)

    one, two = made(1), made(2)
    w = initial_centres(0, 0, CLASSES, 1, DIM)
    reference = Reference(np.column_stack([w, np.zeros(CLASSES)]), SMOOTH)
    for t, (x, labels) in enumerate(batches(6)):
        if t == 3:
            state = one.shards[0].state()
            for shard in two.shards:
                shard.load(ShardState(*(array[shard.start : shard.stop].copy() for array in state)))
            two.steps = 3
        for head in (one, two)[: 1 + t // 3]:
            head.forward_backward(x, labels)
            head.step(LR)
        reference.step(gradient_by_w(np.column_stack([x, np.ones(len(x))]), reference.w, labels, SOFTMAX), LR, WD)
    assert np.abs(reference.w[:, -1]).max() > LR
    for head in (one, two):
        np.testing.assert_allclose(joined(head), reference.w[:, :-1], rtol=0, atol=5e-4 * LR)
        np.testing.assert_allclose(joined(head, "bias"), reference.w[:, -1], rtol=0, atol=5e-4 * LR)
        np.testing.assert_allclose(joined(head, "bias_second_moment"), reference.v[:, -1], rtol=1e-4)


@KINDS
def test_sgd_has_no_second_moments(kind: Callable[..., Any]) -> None:
    head = make_head(kind, some_centres(), ARCFACE, adamw=None)
    head.forward_backward(*batches(1)[0])
    head.step(LR)
    state = head.shards[0].state()
    assert state.second_moment.size == state.bias_second_moment.size == 0


def test_factors_of_w_act() -> None:
    """The decay is multiplied by the learning rate, so that a factor of the rate is one of the decay, too."""
    def after(lr: float, wd: float, lr_mult: float = 1.0, wd_mult: float = 1.0) -> np.ndarray:
        head = make_head(CpuShard, some_centres(), ARCFACE, wd=wd)
        head.lr_mult, head.wd_mult = lr_mult, wd_mult
        for x, labels in batches(2):
            head.forward_backward(x, labels)
            head.step(lr)
        return joined(head)

    assert (after(0.04, 0.1, lr_mult=0.5) == after(0.02, 0.1)).all()
    assert (after(0.02, 0.1, wd_mult=4) == after(0.02, 0.4)).all()
    assert (after(0.02, 0.1) != after(0.02, 0.4)).any()
    assert (after(0.02, 0.1, lr_mult=0) == some_centres()).all()


def test_a_configuration_gives_its_adamw() -> None:
    assert adamw_of(Config()) is None
    assert adamw_of(Config(optimizer="adamw")) == AdamW(0.9, 0.999, 1e-8)
    assert adamw_of(Config(optimizer="adamw", adam_beta1=0.8, adam_beta2=0.99, adam_eps=1e-6)) == AdamW(0.8, 0.99, 1e-6)
