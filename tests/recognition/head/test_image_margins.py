# SPDX-License-Identifier: Apache-2.0
"""Margins that depend on the image, in closed form: against finite differences of a dense float64 form, and against
PyTorch's autograd of the published formulas. Both are written for this test alone."""
from __future__ import annotations

from typing import Any, Callable

import numpy as np
import pytest

from recognition.config.options import Config, refuse_unsupported
from recognition.engines.choose import choose_engine
from recognition.engines.configured import computing_of
from recognition.errors import UserError
from recognition.head.image_margins import AdaFace, ElasticFace, ImageMargins, MagFace
from recognition.head.margin import Margin
from recognition.head.sampling import ClassSampler
from recognition.head.shard import ShardState, split_classes
from recognition.head.sharded import ShardedHead
from recognition.processes.communicator import SingleProcess
from recognition.training.parts import make_head as head_of
from tests.recognition.head.shards import on_context, on_cpu, on_torch, on_triton

CLASSES, BATCH, DIM, S = 23, 12, 8, 16.0
Kind = Callable[..., Any]
FACES: dict[str, Callable[[], ImageMargins]] = {
    "adaface": lambda: AdaFace(0.4, 0.333, 0.9), "magface": MagFace, "arc": lambda: ElasticFace(0.5, 0.0, 0.1, 7),
    "cos_plus": lambda: ElasticFace(0.0, 0.35, 0.1, 7, True)}


def problem(k: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features whose norms lie below, within and above MagFace's; labels; centres. A row is near its centre, as trained
    ones are, so that some cosines are positive."""
    random = np.random.RandomState(3)
    labels, w = random.randint(0, CLASSES, BATCH), random.standard_normal((CLASSES * k, DIM)).astype(np.float32)
    x = 0.5 * w[labels * k] + random.standard_normal((BATCH, DIM)).astype(np.float32)
    return (x * np.linspace(1, 50, BATCH)[:, None]).astype(np.float32), labels, w


def make_head(kind: Kind, w: np.ndarray, face: str, shards: int = 1, k: int = 1, **options: Any) -> ShardedHead:
    margin = Margin(S, easy=face == "magface", bounded=face == "adaface")
    made = [kind(*bounds, DIM, normalised=True, scale=S, sub_centres=k) for bounds in split_classes(CLASSES, shards)]
    for shard in made:
        rows = slice(shard.start * k, shard.stop * k)
        none = np.zeros(len(w[rows]), np.float32)
        shard.load(ShardState(w[rows], np.zeros_like(w[rows]), none, none))
    return ShardedHead(made, margin, SingleProcess(), **{"mu": 0.0, "wd": 0.0, "of_images": FACES[face](), **options})


def published(face: str, cosines: Any, norms: Any, torch: Any, step: int = 0) -> tuple[Any, Any]:
    """The targets' logits and the rows' added loss by the formulas of the papers, differentiable; float64."""
    theta = torch.arccos(cosines)
    if face == "adaface":
        safe = norms.detach().clip(0.001, 100)
        mean, deviation = 0.9 * safe.mean() + 0.1 * 20, 0.9 * safe.std() + 0.1 * 100
        q = (0.333 * (safe - mean) / (deviation + 1e-3)).clip(-1, 1)
        return S * (torch.cos((theta - 0.4 * q).clip(1e-3, np.pi - 1e-3)) - (0.4 + 0.4 * q)), 0 * norms
    if face == "magface":
        a = norms.clip(10, 110)
        with_margin = torch.cos(theta + 0.45 + 0.35 / 100 * (a - 10))
        return S * torch.where(cosines > 0, with_margin, cosines), 20 * (a / 110**2 + 1 / a)
    drawn = np.random.default_rng([7, 0x454C, step]).normal(0.5 if face == "arc" else 0.35, 0.1, BATCH)
    if face == "arc":
        return S * torch.cos(theta + torch.tensor(drawn)), 0 * norms
    ranks = torch.argsort(torch.argsort(cosines.detach(), descending=True))
    return S * (cosines - torch.tensor(np.sort(drawn))[ranks]), 0 * norms


def loss_and_gradients(face: str, x: np.ndarray, labels: np.ndarray, w: np.ndarray, k: int = 1,
                       chosen: np.ndarray | None = None) -> tuple[float, np.ndarray, np.ndarray]:
    torch = pytest.importorskip("torch")
    a, b = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (x, w))
    norms = a.norm(dim=1)
    z = (torch.nn.functional.normalize(a) @ torch.nn.functional.normalize(b).T).reshape(BATCH, CLASSES, k).amax(2)
    rows, targets = torch.arange(BATCH), torch.tensor(labels)
    logits, added = published(face, z[rows, targets], norms, torch)
    at = torch.nn.functional.one_hot(targets, CLASSES)
    z = S * z * (1 - at) + logits[:, None] * at
    if chosen is not None:
        z = z + torch.where(torch.isin(torch.arange(CLASSES), torch.tensor(chosen)), 0.0, -torch.inf)
    loss = torch.nn.functional.cross_entropy(z, targets) + added.mean()
    loss.backward()
    return loss.item(), a.grad.numpy(), b.grad.numpy()


def require_close(head: ShardedHead, x: np.ndarray, labels: np.ndarray, w: np.ndarray,
                  wanted: tuple[float, np.ndarray, np.ndarray]) -> None:
    """Loss and gradients; that of the centres is read off a step of plain SGD. Tolerance 2e-5 of the largest: float32
    similarities."""
    result = head.forward_backward(x, labels)
    assert result.loss == pytest.approx(wanted[0], rel=1e-5)
    head.step(1.0)
    after = np.concatenate([shard.state().centres for shard in head.shards])
    for ours, theirs in ((result.d_features, wanted[1]), (w - after, wanted[2])):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("kind", [on_cpu, on_context, on_torch, on_triton], ids=["host", "mxnet", "torch", "triton"])
@pytest.mark.parametrize("face", FACES)
def test_torch_gives_the_same_by_autograd(kind: Kind, face: str) -> None:
    x, labels, w = problem()
    wanted = loss_and_gradients(face, x, labels, w)
    require_close(make_head(kind, w, face, 1 if kind is on_triton else 3), x, labels, w, wanted)


@pytest.mark.parametrize("kind", [on_cpu, on_context, on_torch], ids=["host", "mxnet", "torch"])
@pytest.mark.parametrize("face", FACES)
def test_torch_gives_the_same_of_sub_centres_and_a_sample(kind: Kind, face: str) -> None:
    x, labels, w = problem(k=2)
    sampler = ClassSampler(0.7, 5)
    chosen = sampler(labels, 0, 0, CLASSES)
    assert chosen is not None and len(chosen) < CLASSES
    wanted = loss_and_gradients(face, x, labels, w, 2, chosen)
    require_close(make_head(kind, w, face, 2, 2, sampler=sampler), x, labels, w, wanted)


def mean_loss(face: str, x: np.ndarray, labels: np.ndarray, w: np.ndarray, at: np.ndarray) -> float:
    """The dense loss in float64 NumPy; ``at``: the features whose norms AdaFace takes, which are not differentiated."""
    norms, rows = np.linalg.norm(x, axis=1), np.arange(BATCH)
    z = S * (x / norms[:, None]) @ (w / np.linalg.norm(w, axis=1, keepdims=True)).T
    cosines, taken, added = z[rows, labels] / S, np.linalg.norm(at, axis=1), np.zeros(BATCH)
    theta = np.arccos(cosines)
    if face == "adaface":
        safe = np.clip(taken, 0.001, 100)
        q = np.clip(0.333 * (safe - 0.9 * safe.mean() - 2) / (0.9 * safe.std(ddof=1) + 10 + 1e-3), -1, 1)
        z[rows, labels] = S * (np.cos(np.clip(theta - 0.4 * q, 1e-3, np.pi - 1e-3)) - 0.4 - 0.4 * q)
    else:
        a = np.clip(norms, 10, 110)
        z[rows, labels] = S * np.where(cosines > 0, np.cos(theta + 0.45 + 0.0035 * (a - 10)), cosines)
        added = 20 * (a / 110**2 + 1 / a)
    highest = z.max(axis=1)
    return float(np.mean(np.log(np.exp(z - highest[:, None]).sum(axis=1)) + highest - z[rows, labels] + added))


@pytest.mark.parametrize("face", ["adaface", "magface"])
def test_the_gradient_by_features_against_finite_differences(face: str) -> None:
    """Tolerance 2e-5 of the largest: float32 similarities; central differences are good to 1e-8."""
    x, labels, w = problem()
    result = make_head(on_cpu, w, face, 2).forward_backward(x, labels)
    at, h = x.astype(np.float64), 1e-5
    numeric = np.zeros(x.shape)
    for place in np.ndindex(*x.shape):
        step = np.zeros(x.shape)
        step[place] = h
        higher, lower = (mean_loss(face, at + moved, labels, w, at) for moved in (step, -step))
        numeric[place] = (higher - lower) / (2 * h)
    assert result.loss == pytest.approx(mean_loss(face, at, labels, w, at), rel=1e-5)
    np.testing.assert_allclose(result.d_features, numeric, rtol=0, atol=2e-5 * np.abs(numeric).max())


def test_magface_pulls_at_norms_within_its_limits_alone() -> None:
    x, labels, w = problem()
    pulls = (make_head(on_cpu, w, "magface").forward_backward(x, labels).d_features * x).sum(axis=1)
    norms = np.linalg.norm(x, axis=1)
    inside = (norms > 10) & (norms < 110)
    assert 0 < inside.sum() < BATCH
    along = np.abs(pulls) / norms
    assert (along[inside] > 1e-5).all() and (along[~inside] < 1e-6).all()  # else no margin moves a norm


def test_adaface_keeps_the_norms_of_steps_that_were_taken() -> None:
    x, labels, w = problem()
    head = make_head(on_cpu, w, "adaface")
    norms = np.clip(np.linalg.norm(x.astype(float), axis=1), 0.001, 100)
    head.forward_backward(x, labels)
    head.leave_out()
    assert head.running() == [20.0, 100.0]
    head.forward_backward(x, labels)
    head.step(0.1)
    assert head.running() == pytest.approx([0.9 * norms.mean() + 2, 0.9 * norms.std(ddof=1) + 10], rel=1e-6)
    again = make_head(on_cpu, head.shards[0].state().centres.copy(), "adaface")
    again.go_on(head.steps, head.running())
    one, other = (h.forward_backward(x, labels) for h in (head, again))
    assert one.loss == other.loss and np.array_equal(one.d_features, other.d_features)


def test_features_that_are_not_finite_leave_adaface_as_it_is() -> None:
    x, labels, w = problem()
    head = make_head(on_cpu, w, "adaface")
    x[0, 0] = np.nan
    assert np.isnan(head.forward_backward(x, labels).loss)
    head.leave_out()
    assert head.running() == [20.0, 100.0]


def test_elastic_margins_are_a_function_of_seed_and_step() -> None:
    norms, cosines = np.ones(4000), np.linspace(1, -1, 4000)
    face = ElasticFace(0.5, 0.1, 0.02, seed=1)
    drawn, other = face(norms, cosines, 5)
    assert np.array_equal(drawn, face(norms, cosines, 5)[0]) and (other == 0.1).all()
    assert abs(drawn.mean() - 0.5) < 0.002 and abs(drawn.std() - 0.02) < 0.001  # five deviations
    for another in (face(norms, cosines, 6)[0], ElasticFace(0.5, 0.1, 0.02, seed=2)(norms, cosines, 5)[0]):
        assert not np.isin(another, drawn).any()
    ordered, _ = ElasticFace(0.5, 0.1, 0.02, 1, needs_cosines=True)(norms, cosines, 5)
    assert np.array_equal(ordered, np.sort(drawn))  # the farther, the larger


def test_a_configuration_gives_its_margins() -> None:
    made = [head_of(Config(emb_size=8, **options), 7, choose_engine(), SingleProcess()) for options in (
        {"loss_margin": "adaface", "loss_m2": 0.3, "adaface_h": 0.2, "adaface_share": 0.1},
        {"loss_margin": "magface", "magface_norms": (1.0, 2.0), "magface_margins": (0.1, 0.2), "magface_weight": 3.0},
        {"loss_margin": "elastic", "elastic_deviation": 0.1, "elastic_sorted": True, "seed": 4}, {})]
    assert [head.of_images for head in made] == [
        AdaFace(0.3, 0.2, 0.1), MagFace((1.0, 2.0), (0.1, 0.2), 3.0), ElasticFace(0.5, 0.0, 0.1, 4, True), None]
    assert [head.margin.easy for head in made] == [False, True, False, False]
    assert [head.margin.bounded for head in made] == [True, False, False, False]


@pytest.mark.parametrize(("options", "reason"), [
    ({"loss_margin": "adaface", "loss_name": "softmax"}, "only a margin loss"),
    ({"loss_margin": "magface", "target_gradient": "straight_through"}, "straight_through"),
    ({"loss_margin": "adaface", "loss_m3": 0.1}, "loss_m1 and loss_m3 are not 1 and 0"),
    ({"loss_margin": "elastic", "loss_m2": 0.0}, "both 0")])
def test_a_margin_that_cannot_be_is_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=f"^loss_margin: found '{options['loss_margin']}', but .*{reason}"):
        refuse_unsupported(Config(**options))


@pytest.mark.parametrize(("options", "expected"), [
    ({"magface_norms": (0, 10)}, "above 0 in ascending order"), ({"magface_norms": (10, 10)}, "ascending"),
    ({"magface_margins": (0.45, 45)}, "at least 0 and at most 3.14"), ({"magface_margins": "ab"}, "such as '0.45,0.8'"),
    ({"elastic_deviation": 1.25}, "above 0 and at most 1")])
def test_numbers_that_are_no_margin_are_refused(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=f"^{next(iter(options))}: found .*{expected}"):
        Config(**options)


def test_features_of_magface_come_to_the_host() -> None:
    """Their gradient by the norm is made there."""
    kept = [computing_of(Config(loss_margin=margin)).keep_features for margin in ("adaface", "magface")]
    assert kept == [True, False]
