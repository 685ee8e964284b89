# SPDX-License-Identifier: Apache-2.0
"""Sampled class centres: what is drawn, and a sampled step against a full step over the drawn classes alone."""
from __future__ import annotations

from typing import Any, Callable

import numpy as np
import pytest

from recognition.engines.cpu.shard import CpuShard
from recognition.head.margin import Margin
from recognition.head.sampling import ClassSampler
from recognition.head.shard import ShardState, split_classes, target_columns
from recognition.head.sharded import ShardedHead
from recognition.processes.communicator import SingleProcess
from tests.recognition.head.shards import KINDS, on_torch

ARCFACE = Margin(64, 1, 0.5)


def test_a_sample_holds_the_batch_and_each_other_class_with_the_ratio() -> None:
    """Of 98,997 others, 19,799 are expected, with a standard deviation of 126."""
    labels = np.array([1000, 99_999, 5000, 5000, 3, 500_000])
    classes = ClassSampler(0.2, seed=1)(labels, 7, 1000, 100_000)
    assert classes is not None
    assert abs(len(classes) - 3 - 19_799) < 5 * 126 and (np.diff(classes) > 0).all()
    assert classes[0] == 1000 and classes[-1] == 99_999 and 5000 in classes


def test_negatives_are_drawn_uniformly() -> None:
    """Each in 0.3 of 4000 draws: mean 1200, standard deviation 29; two of them together in 0.09: 360, 18."""
    sampler, labels = ClassSampler(0.3), np.array([4, 9])
    chosen = np.zeros((4000, 20))
    for step in range(4000):
        chosen[step, sampler(labels, step, 0, 20)] = 1
    together = chosen.T @ chosen
    others = np.delete(np.delete(together, [4, 9], 0), [4, 9], 1)
    assert together[4, 9] == 4000
    assert np.abs(np.diag(others) - 1200).max() < 5 * 29
    assert np.abs(others[~np.eye(18, dtype=bool)] - 360).max() < 5 * 18


def test_a_sample_is_a_function_of_seed_step_and_class() -> None:
    """Whatever the cut into shards is."""
    labels = np.array([3, 700])
    first = ClassSampler(0.1, 0)(labels, 5, 0, 1000)
    cut = [ClassSampler(0.1, 0)(labels, 5, *place) for place in split_classes(1000, 3)]
    assert np.array_equal(first, np.concatenate(cut))
    others = [ClassSampler(0.1, 1)(labels, 5, 0, 1000), ClassSampler(0.1, 0)(labels, 6, 0, 1000)]
    assert not any(np.array_equal(first, other) for other in others)


def test_a_shard_has_all_classes_of_its_batch_and_at_least_one() -> None:
    classes = ClassSampler(1e-9)(np.arange(50), 0, 0, 100)
    assert classes is not None and classes.tolist() == list(range(50))
    assert ClassSampler(1.0)(np.arange(3), 0, 0, 100) is None
    empty = ClassSampler(1e-9)(np.array([700]), 0, 20, 100)
    assert empty is not None and empty.tolist() == [20]


def ways_to_draw() -> list[Callable[..., Any]]:
    """PyTorch's operators, and Triton's kernel where it is."""
    from recognition.engines.torch.sampling import drawn

    try:
        from recognition.engines.torch.triton.draw import drawn as by_kernel
    except ModuleNotFoundError:
        return [drawn]
    return [drawn, by_kernel]


@pytest.mark.parametrize("ratio", [0.3, 1e-9, 1 - 1e-12])
def test_torch_draws_the_same_sample(ratio: float, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from recognition.engines.torch import sampling

    monkeypatch.setattr(sampling, "CLASSES_AT_ONCE", 77)
    labels = np.array([123, 5, 999, 400, 123])
    for drawn in ways_to_draw():
        for place in [*split_classes(1000, 3), (7, 7), (2**24 - 3, 2**24 + 4100)]:
            sampler = ClassSampler(ratio, 4)
            wanted = sampler(labels, 2, *place)
            found = sampling.DeviceSample(sampler, labels, 2, *place, torch.device("cpu"), None, drawn)
            assert np.array_equal(found.places.numpy() + place[0], wanted)
            assert np.array_equal(target_columns(labels, *place, 3, found), target_columns(labels, *place, 3, wanted))


def head_over(kind: Callable[..., Any], state: ShardState, shards: int, sub_centres: int, ratio: float) -> ShardedHead:
    made = []
    for start, stop in split_classes(len(state.centres) // sub_centres, shards):
        shard = kind(start, stop, state.centres.shape[1], normalised=True, scale=64, sub_centres=sub_centres)
        shard.load(ShardState(*(a[start * sub_centres : stop * sub_centres].copy() for a in state)))
        made.append(shard)
    return ShardedHead(made, ARCFACE, SingleProcess(), sampler=ClassSampler(ratio, 3))


def some_state(classes: int, sub_centres: int) -> ShardState:
    random = np.random.RandomState(0)
    rows = classes * sub_centres
    w, m = (random.standard_normal((rows, 8)).astype(np.float32) * scale for scale in (0.1, 0.001))
    return ShardState(w, m, np.zeros(rows, np.float32), np.zeros(rows, np.float32))


@KINDS
@pytest.mark.parametrize("sub_centres", [1, 3])
def test_a_sampled_step_is_a_full_step_over_the_drawn_classes(kind: Callable[..., Any], sub_centres: int) -> None:
    """Rows not drawn keep every bit; the others, loss and gradients agree to float32 rounding."""
    state = some_state(60, sub_centres)
    random = np.random.RandomState(1)
    x, labels = random.standard_normal((6, 8)).astype(np.float32), random.randint(0, 60, 6)
    sampled = head_over(kind, state, 2, sub_centres, 0.3)
    drawn = np.concatenate([sampled.sampler(labels, 0, s.start, s.stop) for s in sampled.shards])
    rows = (drawn[:, None] * sub_centres + np.arange(sub_centres)).ravel()
    dense = head_over(CpuShard, ShardState(*(a[rows] for a in state[:4])), 1, sub_centres, 1.0)

    found, expected = sampled.forward_backward(x, labels), dense.forward_backward(x, np.searchsorted(drawn, labels))
    sampled.step(0.05)
    dense.step(0.05)
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    np.testing.assert_allclose(found.d_features, expected.d_features, atol=1e-5 * np.abs(expected.d_features).max())
    others = np.setdiff1d(np.arange(60 * sub_centres), rows)
    for name in ("centres", "momentum"):
        after = np.concatenate([getattr(shard.state(), name) for shard in sampled.shards])
        reference = getattr(dense.shards[0].state(), name)
        assert np.array_equal(after[others], getattr(state, name)[others])
        np.testing.assert_allclose(after[rows], reference, rtol=0, atol=1e-5 * np.abs(reference).max())


@KINDS
def test_a_ratio_of_one_is_the_full_head(kind: Callable[..., Any]) -> None:
    state = some_state(21, 1)
    random = np.random.RandomState(2)
    full, one = head_over(kind, state, 2, 1, 1.0), head_over(kind, state, 2, 1, 0.999)
    for _ in range(3):
        x, labels = random.standard_normal((6, 8)).astype(np.float32), random.randint(0, 21, 6)
        assert full.forward_backward(x, labels).loss == one.forward_backward(x, labels).loss
        full.step(0.05)
        one.step(0.05)
    for ours, theirs in zip(full.shards, one.shards):
        assert np.array_equal(ours.state().centres, theirs.state().centres)


def on_torch_that_draws(*place: int, **options: Any) -> Any:
    """A shard that draws as one on a GPU does."""
    shard = on_torch(*place, **options)
    shard.queues_draws = True
    return shard


@pytest.mark.parametrize("kind", [CpuShard, on_torch, on_torch_that_draws])
@pytest.mark.parametrize("sub_centres", [1, 3])
def test_samples_drawn_ahead_are_those_of_the_step(kind: Callable[..., Any], sub_centres: int) -> None:
    """All bits are the same, also after a step that was left out and after one that nobody expected."""
    state = some_state(200, sub_centres)
    random = np.random.RandomState(3)
    batches = [(random.standard_normal((6, 8)).astype(np.float32), random.randint(0, 200, 6)) for _ in range(6)]
    plain, ahead = (head_over(of, state, 2, sub_centres, 0.3) for of in (on_torch if kind != CpuShard else kind, kind))
    for step, (x, labels) in enumerate(batches):
        if step not in (3, 5):
            ahead.expect(batches[step + 1][1])
        assert ahead.forward_backward(x, labels).loss == plain.forward_backward(x, labels).loss
        for head in (plain, ahead):
            head.leave_out() if step == 1 else head.step(0.05)
    for ours, theirs in zip(plain.shards, ahead.shards):
        assert np.array_equal(ours.state().centres, theirs.state().centres)


def test_a_batch_that_was_not_expected_is_an_error() -> None:
    head = head_over(CpuShard, some_state(60, 1), 1, 1, 0.3)
    head.expect(np.array([1, 2]))
    x = np.ones((2, 8), np.float32)
    head.forward_backward(x, np.array([5, 6]))
    head.step(0.05)
    with pytest.raises(ValueError, match="step 1: labels are not those that were expected"):
        head.forward_backward(x, np.array([1, 3]))
