# SPDX-License-Identifier: Apache-2.0
"""Label smoothing in closed form against dense float64 NumPy, and against PyTorch's cross entropy by autograd."""
from __future__ import annotations

from typing import Any, Callable

import numpy as np
import pytest

from recognition.config.options import Config, refuse_unsupported
from recognition.engines.choose import choose_engine
from recognition.errors import UserError
from recognition.head.margin import Margin
from recognition.head.sampling import ClassSampler
from recognition.head.shard import ShardState, split_classes
from recognition.head.sharded import ShardedHead
from recognition.optim.adamw import AdamW
from recognition.processes.communicator import SingleProcess
from recognition.training.parts import make_head as head_of
from tests.recognition.head.shards import on_context, on_cpu, on_torch, on_triton

CLASSES, BATCH, DIM, SHARE = 23, 12, 8, 0.1
MARGINS = [Margin(16, 1, 0.3), Margin(16, 1, 0, 0.2), Margin(16, 1.2, 0.1, 0.1), Margin(16), Margin(normalised=False)]
Kind = Callable[..., Any]


KINDS = pytest.mark.parametrize("kind", [on_cpu, on_context, on_torch], ids=["host", "mxnet", "torch"])


def problem() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Features, labels, centres and biases."""
    random = np.random.RandomState(0)
    return (random.standard_normal((BATCH, DIM)).astype(np.float32), random.randint(0, CLASSES, BATCH),
            random.standard_normal((CLASSES, DIM)).astype(np.float32), random.standard_normal(CLASSES).astype("f4"))


def make_head(kind: Kind, w: np.ndarray, bias: np.ndarray | None, margin: Margin, shards: int = 1,
              **options: Any) -> ShardedHead:
    made = [kind(*bounds, DIM, normalised=margin.normalised, scale=margin.scale, with_bias=bias is not None)
            for bounds in split_classes(CLASSES, shards)]
    for shard in made:
        rows = slice(shard.start, shard.stop)
        b = np.zeros(CLASSES, np.float32) if bias is None else bias
        shard.load(ShardState(w[rows], np.zeros_like(w[rows]), b[rows], np.zeros_like(b[rows])))
    return ShardedHead(made, margin, SingleProcess(), **{"mu": 0.0, "wd": 0.0, "smoothing": SHARE, **options})


def mean_loss(x: np.ndarray, w: np.ndarray, bias: np.ndarray, labels: np.ndarray, margin: Margin,
              chosen: np.ndarray | None = None) -> float:
    """The mean cross entropy with smoothed labels, dense, in float64; of the classes ``chosen``, or of all."""
    rows = np.arange(len(x))
    if margin.normalised:
        x, w = (v / np.sqrt((v * v).sum(axis=1, keepdims=True) + 1e-10) for v in (x, w))
    z = x @ w.T + bias
    z[rows, labels] = margin.target(z[rows, labels])[0] / margin.scale
    z = margin.scale * z
    wanted = np.zeros_like(z)
    wanted[rows, labels] = 1 - SHARE
    if chosen is not None:
        z[:, np.setdiff1d(np.arange(CLASSES), chosen)] = -np.inf
    there = np.isfinite(z)
    wanted += there * SHARE / there[0].sum()
    logs = z - z.max(axis=1, keepdims=True)
    logs -= np.log(np.exp(logs).sum(axis=1, keepdims=True))
    return float(-np.where(there, wanted * np.where(there, logs, 0), 0).sum() / len(x))


def numeric(function: Callable[[np.ndarray], float], at: np.ndarray, h: float = 1e-6) -> np.ndarray:
    gradient, at = np.zeros(at.shape), at.astype(np.float64)
    for place in np.ndindex(*at.shape):
        moved = [at.copy(), at.copy()]
        moved[0][place] += h
        moved[1][place] -= h
        gradient[place] = (function(moved[0]) - function(moved[1])) / (2 * h)
    return gradient


@KINDS
@pytest.mark.parametrize("margin", MARGINS, ids=["arcface", "cosface", "combined", "none", "softmax"])
@pytest.mark.parametrize("shards", [1, 3])
def test_loss_and_gradients_against_finite_differences(kind: Kind, margin: Margin, shards: int) -> None:
    """The centres' gradient is read off a step of plain SGD. Tolerance 2e-5 of the largest: float32 similarities."""
    x, labels, w, bias = problem()
    with_bias = not margin.normalised
    head = make_head(kind, w, bias if with_bias else None, margin, shards)
    result = head.forward_backward(x, labels)
    own = bias * with_bias
    assert result.loss == pytest.approx(mean_loss(x.astype(float), w.astype(float), own, labels, margin), rel=1e-5)
    head.step(1.0)
    states = [shard.state() for shard in head.shards]
    found = [(result.d_features, numeric(lambda v: mean_loss(v, w.astype(float), own, labels, margin), x)),
             (w - np.concatenate([state.centres for state in states]),
              numeric(lambda v: mean_loss(x.astype(float), v, own, labels, margin), w))]
    if with_bias:
        found.append((bias - np.concatenate([state.bias for state in states]),
                      numeric(lambda v: mean_loss(x.astype(float), w.astype(float), v, labels, margin), bias)))
    for ours, theirs in found:
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * max(np.abs(theirs).max(), 0.05))


@KINDS
def test_a_sample_of_the_classes_divides_the_share_among_itself(kind: Kind) -> None:
    x, labels, w, _ = problem()
    sampler = ClassSampler(0.7, 5)
    chosen = sampler(labels, 0, 0, CLASSES)
    assert chosen is not None and len(chosen) < CLASSES
    head = make_head(kind, w, None, MARGINS[0], sampler=sampler)
    wanted = mean_loss(x.astype(float), w.astype(float), np.zeros(CLASSES), labels, MARGINS[0], chosen)
    assert head.forward_backward(x, labels).loss == pytest.approx(wanted, rel=1e-5)
    head.step(1.0)
    theirs = numeric(lambda v: mean_loss(x.astype(float), v, np.zeros(CLASSES), labels, MARGINS[0], chosen), w)
    np.testing.assert_allclose(w - head.shards[0].state().centres, theirs, rtol=0, atol=2e-5 * np.abs(theirs).max())


def test_torch_computes_the_same_by_autograd() -> None:
    """An independent form: ``torch.nn.functional.cross_entropy(label_smoothing=...)``, float64."""
    torch = pytest.importorskip("torch")
    x, labels, w, _ = problem()
    a, b = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (x, w))
    cosines = torch.nn.functional.normalize(a) @ torch.nn.functional.normalize(b).T
    at = torch.nn.functional.one_hot(torch.tensor(labels), CLASSES)
    loss = torch.nn.functional.cross_entropy(16 * (cosines - 0.2 * at), torch.tensor(labels), label_smoothing=SHARE)
    loss.backward()
    head = make_head(on_cpu, w, None, Margin(16, 1, 0, 0.2), 2)
    result = head.forward_backward(x, labels)
    head.step(1.0)
    assert result.loss == pytest.approx(loss.item(), rel=1e-5)
    np.testing.assert_allclose(result.d_features, a.grad, rtol=0, atol=2e-6)
    after = np.concatenate([shard.state().centres for shard in head.shards])
    np.testing.assert_allclose(w - after, b.grad, rtol=0, atol=2e-6)


@pytest.mark.parametrize("adamw", [None, AdamW()], ids=["sgd", "adamw"])
def test_triton_of_torch_takes_the_chunks(adamw: AdamW | None) -> None:
    """Triton's first pass, in float32, three steps end where those of chunks do. Tolerance 1e-5."""
    x, labels, w, _ = problem()
    heads = [make_head(kind, w, None, MARGINS[0], adamw=adamw) for kind in (on_torch, on_triton)]
    for _ in range(3):
        results = [head.forward_backward(x, labels) for head in heads]
        assert results[1].loss == pytest.approx(results[0].loss, rel=1e-5)
        for head in heads:
            head.step(0.05)
    one, other = (head.shards[0].state().centres for head in heads)
    np.testing.assert_allclose(other, one, rtol=0, atol=1e-5 * np.abs(one).max())


@KINDS
def test_a_tiny_share_changes_nothing(kind: Kind) -> None:
    x, labels, w, _ = problem()
    plain, tiny = (make_head(kind, w, None, MARGINS[0], smoothing=share) for share in (0.0, 1e-9))
    for head in (plain, tiny):
        head.forward_backward(x, labels)
        head.step(1.0)
    one, other = (head.shards[0].state().centres for head in (plain, tiny))
    np.testing.assert_allclose(other, one, rtol=0, atol=1e-6)


def test_a_configuration_gives_its_smoothing() -> None:
    config = Config(label_smoothing=0.2, emb_size=8)
    made = head_of(config, 7, choose_engine(), SingleProcess())
    assert isinstance(made, ShardedHead) and made.smoothing == 0.2
    for options, reason in (({"loss_K": 2}, "sub-centres"), ({"loss_name": "triplet", "per_batch_size": 6}, "triplet"),
                            ({"interclass_filtering_threshold": 0.3}, "interclass_filtering_threshold")):
        with pytest.raises(UserError, match=f"^label_smoothing: found 0.2, but .*{reason}"):
            refuse_unsupported(Config(label_smoothing=0.2, **options))
