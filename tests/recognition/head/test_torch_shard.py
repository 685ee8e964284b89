# SPDX-License-Identifier: Apache-2.0
"""The PyTorch shard's own promises: chunks, memory, digits, bits, and states that move between kinds of shards."""
from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

from recognition.engines.cpu.shard import CpuShard  # noqa: E402
from recognition.engines.torch import shard as torch_shard  # noqa: E402
from recognition.engines.torch import stored_rows  # noqa: E402
from recognition.engines.torch.shard import TorchShard  # noqa: E402
from recognition.head.margin import Margin  # noqa: E402
from recognition.head.sampling import ClassSampler  # noqa: E402
from recognition.head.shard import ShardState, split_classes  # noqa: E402
from recognition.head.sharded import ShardedHead  # noqa: E402
from recognition.optim.adamw import AdamW  # noqa: E402
from recognition.processes.communicator import SingleProcess  # noqa: E402

ARCFACE, SOFTMAX = Margin(64, 1, 0.5), Margin(normalised=False)
CLASSES, DIM, BATCH = 700, 24, 20
ON_CPU = functools.partial(TorchShard, torch.device("cpu"))


def make_head(kind: Any, margin: Margin = ARCFACE, shards: int = 1, ratio: float = 1.0, adamw: AdamW | None = None,
              **options: Any) -> ShardedHead:
    made = [kind(*place, DIM, normalised=margin.normalised, scale=margin.scale, **options)
            for place in split_classes(CLASSES, shards)]
    return ShardedHead(made, margin, SingleProcess(), sampler=ClassSampler(ratio, 3), adamw=adamw)


def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.RandomState(step)
    return random.standard_normal((BATCH, DIM)).astype(np.float32), random.randint(0, CLASSES, BATCH)


def train(head: ShardedHead, first: int, last: int, lr: float = 0.1) -> list[np.ndarray]:
    """Gradients by the features of each step."""
    gradients = []
    for step in range(first, last):
        gradients.append(head.forward_backward(*batch(step)).d_features)
        head.step(lr)
    return gradients


def state_of(head: ShardedHead) -> ShardState:
    return ShardState(*(np.concatenate(parts) for parts in zip(*(shard.state() for shard in head.shards))))


def load(head: ShardedHead, state: ShardState, steps: int) -> None:
    for shard in head.shards:
        rows = slice(shard.start * shard.sub_centres, shard.stop * shard.sub_centres)
        shard.load(ShardState(*(array[rows].copy() for array in state)))
    head.steps = steps


class Watched(TorchDispatchMode):
    """The most numbers of a tensor that an operation makes, and how many numbers the host waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.largest, self.waits = 0, 0

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        self.waits += operation is torch.ops.aten._local_scalar_dense.default
        made = operation(*arguments, **(options or {}))
        taken = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((arguments, options))
                 if isinstance(leaf, torch.Tensor)}
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage().data_ptr() not in taken:
                self.largest = max(self.largest, leaf.untyped_storage().nbytes())
        return made


@contextmanager
def chunks_of(rows: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setitem(torch_shard.TORCH_ROWS_A_CHUNK, "cpu", rows)
        yield


@pytest.mark.parametrize("on_host", [False, True], ids=["on the device", "on the host"])
@pytest.mark.parametrize("ratio", [1.0, 0.8])
@pytest.mark.parametrize(("margin", "options"), [
    (ARCFACE, {}), (ARCFACE, {"sub_centres": 2}), (ARCFACE, {"ceiling": 12.8}), (SOFTMAX, {"with_bias": True})],
    ids=["arcface", "two sub-centres", "a filter", "softmax with a bias"])
@pytest.mark.parametrize("adamw", [None, AdamW()], ids=["sgd", "adamw"])
def test_no_array_of_a_step_grows_with_the_classes(
        adamw: AdamW | None, margin: Margin, options: dict[str, Any], ratio: float, on_host: bool,
        monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest is that of a chunk (its logits, its gradient, the int64 places of its nearest sub-centres), or the
    targets' centres. Nor does the host wait more often with more chunks."""
    waits = []
    for rows in (32, 64):
        with chunks_of(rows, monkeypatch):
            head = make_head(ON_CPU, margin, ratio=ratio, adamw=adamw, on_host=on_host, **options)
            train(head, 0, 1)  # makes the second moments and the buffer of rows on their way
            with Watched() as watched:
                head.forward_backward(*batch(1))
                assert head.step(0.1, measure=True)
            # The places of a sample's rows come with the draw: 8 bytes a row.
            k = options.get("sub_centres", 1)
            drawn = 0 if ratio == 1 else 8 * round(CLASSES * ratio) * k
            assert watched.largest <= max(4 * rows * max(BATCH, DIM), 4 * BATCH * k * DIM, drawn)
            waits.append(watched.waits)
    assert waits[0] == waits[1] <= 6


@pytest.mark.parametrize("on_host", [False, True], ids=["on the device", "on the host"])
@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("ratio", [1.0, 0.5])
@pytest.mark.parametrize(("margin", "options"), [
    (ARCFACE, {}), (ARCFACE, {"sub_centres": 3}), (ARCFACE, {"ceiling": 12.8}), (SOFTMAX, {"with_bias": True})],
    ids=["arcface", "three sub-centres", "a filter", "softmax with a bias"])
def test_chunks_do_not_matter(margin: Margin, options: dict[str, Any], ratio: float, shards: int, on_host: bool,
                              monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the CPU shard, which has no chunks: float32 sums in another order, 1e-6 a step that s = 64 amplifies. A
    small rate, lest a cosine comes to lie on the filter's other side."""
    wanted = make_head(CpuShard, margin, shards, ratio, **options)
    expected = train(wanted, 0, 3, 1e-4)
    for rows in (64, 1000):
        with chunks_of(rows, monkeypatch):
            head = make_head(ON_CPU, margin, shards, ratio, on_host=on_host, **options)
            for ours, theirs in zip(train(head, 0, 3, 1e-4), expected):
                np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * np.abs(theirs).max())
        for ours, theirs in zip(state_of(head), state_of(wanted)):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * max(np.abs(theirs).max(initial=0), 1e-3))


@pytest.mark.parametrize("on_host", [False, True], ids=["on the device", "on the host"])
@pytest.mark.parametrize("adamw", [None, AdamW()], ids=["sgd", "adamw"])
def test_a_state_goes_on_to_the_same_bits(adamw: AdamW | None, on_host: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(torch_shard.TORCH_ROWS_A_CHUNK, "cpu", 128)
    whole, begun, ended = (make_head(ON_CPU, ratio=0.6, adamw=adamw, on_host=on_host) for _ in range(3))
    train(begun, 0, 2, 0.01)
    load(ended, state_of(begun), 2)
    assert [a.tobytes() for a in train(ended, 2, 5, 0.01)] == [a.tobytes() for a in train(whole, 0, 5, 0.01)[2:]]
    assert [a.tobytes() for a in state_of(ended)] == [a.tobytes() for a in state_of(whole)]


@pytest.mark.parametrize("adamw", [None, AdamW(eps=0.1)], ids=["sgd", "adamw"])
@pytest.mark.parametrize("kinds", [(ON_CPU, CpuShard), (CpuShard, ON_CPU)], ids=["to numba", "from numba"])
def test_a_state_goes_on_in_another_kind_of_shard(kinds: tuple[Any, Any], adamw: AdamW | None) -> None:
    """Against one that did all steps. Tolerance as for the chunks."""
    begun, ended, whole = (make_head(kind, shards=shards, adamw=adamw)
                           for kind, shards in ((kinds[0], 2), (kinds[1], 1), (CpuShard, 1)))
    train(begun, 0, 3)
    load(ended, state_of(begun), 3)
    train(ended, 3, 6)
    train(whole, 0, 6)
    for ours, theirs in zip(state_of(ended), state_of(whole)):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * max(np.abs(theirs).max(initial=0), 1e-3))


@pytest.mark.parametrize("rest", [1e-3, 1e-6, 1e-12])
def test_digits_of_a_target_that_is_nearly_certain(rest: float) -> None:
    """1 - p is 1e-3 to 1e-12, and the gradient keeps 1.2e-5 of itself: three roundings (a unit vector, its product, the
    logit) by 6e-8 of logits up to 60. A difference of float32 numbers would keep 6e-5 of 1e-3, nothing of 1e-12."""
    w = np.zeros((CLASSES, DIM), np.float32)
    w[:, 1] = 1
    w[0, :2] = 1, 0
    cosine = 1 + np.log(rest / (CLASSES - 1)) / 64  # of the others, as the target's is 1
    w[1:, 0], w[1:, 1] = cosine, np.sqrt(1 - cosine**2)
    x = np.eye(1, DIM, dtype=np.float32)
    head = make_head(ON_CPU, Margin(64))
    load(head, ShardState(w, np.zeros_like(w), *np.zeros((2, CLASSES), np.float32)), 0)
    found = head.forward_backward(x, np.array([0])).d_features[0, 1]
    units = w[1:].astype(np.float64) / np.linalg.norm(w[1:].astype(np.float64), axis=1, keepdims=True)
    exponentials = np.exp(64 * (units[:, 0] - 1))
    wanted = 64 * (exponentials[:, None] * units).sum(axis=0)[1] / (1 + exponentials.sum())
    assert found == pytest.approx(wanted, rel=1.2e-5)


def test_logits_far_below_the_scale() -> None:
    """All centres opposite to the features: exp(64 * (cos - 1)) is 0 in float32, so 64 may not be the reference."""
    head = make_head(ON_CPU, Margin(64))
    w = np.random.RandomState(0).standard_normal((CLASSES, DIM)).astype(np.float32)
    w[:, 0] = -40
    load(head, ShardState(w, np.zeros_like(w), *np.zeros((2, CLASSES), np.float32)), 0)
    result = head.forward_backward(np.eye(1, DIM, dtype=np.float32), np.array([5]))
    cosines = w[:, 0].astype(np.float64) / np.linalg.norm(w.astype(np.float64), axis=1)
    assert result.loss == pytest.approx(np.log(np.exp(64 * (cosines - cosines[5])).sum()), rel=1e-5)
    assert np.abs(result.d_features).max() > 0


def test_centres_beyond_float32_are_told_and_their_gradient_is_not_a_number() -> None:
    """As soon as a squared norm overflows, which its centre need not."""
    for grown in (1e20, np.inf, np.nan):
        head = make_head(ON_CPU, SOFTMAX, shards=2)
        head.forward_backward(*batch(0))
        assert head.finite
        head.step(0.1)
        state = head.shards[1].state()
        centres = state.centres.copy()
        centres[7] = grown
        head.shards[1].load(state._replace(centres=centres))
        x, labels = batch(1)
        head.shards[1].select(None)
        head.shards[1].similarities(x, labels)
        head.shards[1].statistics(np.zeros(BATCH))
        head.shards[1].gradient(np.zeros(BATCH), BATCH, np.zeros(BATCH))
        head.step(0.0)
        assert not head.finite
        result = head.forward_backward(x, labels)
        assert np.isnan(result.loss) and np.isnan(result.d_features).all()


def test_arrays_that_travel_together_are_apart_there() -> None:
    given = [np.arange(5, dtype=np.int32), np.zeros((0, 3), np.int64), np.float32([[1, 2, 3]]).T, np.arange(4)[::-2]]
    found = stored_rows.copied(given, torch.device("cpu"))
    for array, tensor in zip(given, found):
        assert tensor.numpy().dtype == array.dtype and tensor.data_ptr() % 16 == 0
        np.testing.assert_array_equal(tensor.numpy(), array)
    found[0][:] = -1
    assert given[0][1] == 1 and found[2][0] == 1
