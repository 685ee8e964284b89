# SPDX-License-Identifier: Apache-2.0
"""The head of P processes with S shards each against that of one; threads stand for processes, which runs have."""
from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable

import numpy as np
import pytest

from recognition.engines.mxnet.imports import mx
from recognition.head.image_margins import AdaFace, ElasticFace, ImageMargins, MagFace
from recognition.head.margin import Margin
from recognition.head.sampling import ClassSampler
from recognition.head.shard import split_classes
from recognition.head.sharded import ShardedHead
from recognition.optim.adamw import AdamW
from recognition.processes.communicator import Communicator, SingleProcess
from tests.recognition.head.shards import on_context, on_cpu, on_torch

CLASSES, DIM, BATCH, STEPS = 11, 16, 12, 4
LOSSES = {"softmax": Margin(normalised=False), "nsoftmax": Margin(64), "arcface": Margin(64, 1, 0.5),
          "cosface": Margin(64, 1, 0, 0.35), "combined": Margin(64, 1, 0.3, 0.2)}


KINDS: dict[str, Callable[..., Any]] = {"numba": on_cpu, "mxnet": on_context, "torch": on_torch}


class Threads(SingleProcess):
    """Collectives between threads, over one table and one barrier. One computes at a time: Numba may not bear two."""

    def __init__(self, rank: int, table: list[Any], barrier: threading.Barrier, turn: threading.Lock) -> None:
        self.rank, self.size, self._table, self._barrier, self._turn = rank, len(table), table, barrier, turn

    def _exchange(self, array: np.ndarray) -> list[np.ndarray]:
        self._table[self.rank] = np.array(array)
        self._turn.release()
        try:
            self._barrier.wait(300)
            arrays = list(self._table)
            self._barrier.wait(300)
        finally:
            self._turn.acquire()
        return arrays

    def all_gather(self, array: np.ndarray) -> np.ndarray:
        return np.concatenate(self._exchange(array))

    def all_reduce(self, array: np.ndarray) -> np.ndarray:
        return np.sum(self._exchange(array), axis=0)

    def reduce_scatter(self, array: np.ndarray) -> np.ndarray:
        return np.split(self.all_reduce(array), self.size)[self.rank]

    def sum_in_place(self, name: str, arrays: Sequence[Any]) -> None:
        for array in arrays:
            total = self.all_reduce(array.asnumpy() if isinstance(array, mx.nd.NDArray) else array.numpy())
            array[:] = total if isinstance(array, mx.nd.NDArray) else array.new_tensor(total)


def in_threads(count: int, process: Callable[[Communicator], Any]) -> list[Any]:
    if count == 1:
        return [process(SingleProcess())]
    shared = [None] * count, threading.Barrier(count), threading.Lock()

    def thread(rank: int) -> Any:
        with shared[2]:
            return process(Threads(rank, *shared))

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(thread, range(count)))


def train(processes: int, shards: int, margin: Margin, kind: str, whole: bool, sub_centres: int = 1,
          ratio: float = 1.0, adamw: AdamW | None = None,
          smoothing: float = 0.0, of_images: Callable[[], ImageMargins | None] = lambda: None,
          ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Losses, gradients by all features and W after the steps; with ``whole`` each process has all classes."""
    random = np.random.RandomState(0)
    steps = [(random.standard_normal((BATCH, DIM)).astype(np.float32), random.randint(0, CLASSES, BATCH))
             for _ in range(STEPS)]

    def process(communicator: Communicator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        single = SingleProcess()
        across, replicas = (single, communicator) if whole else (communicator, single)
        ranges = split_classes(CLASSES, across.size * shards)[across.rank * shards :][:shards]
        options: dict[str, Any] = {"normalised": margin.normalised, "scale": margin.scale, "sub_centres": sub_centres,
                                   "with_bias": whole and not margin.normalised}
        made: list[Any] = [KINDS[kind](*part, DIM, **options) for part in ranges]
        head = ShardedHead(made, margin, across, sampler=ClassSampler(ratio), replicas=replicas, adamw=adamw,
                           smoothing=smoothing, of_images=of_images())
        losses, gradients = [], []
        mine = slice(communicator.rank * BATCH // processes, (communicator.rank + 1) * BATCH // processes)
        for x, labels in steps:
            result = head.forward_backward(x[mine], labels[mine])
            head.step(0.01)
            losses.append([result.loss, result.accuracy])
            gradients.append(result.d_features)
        centres = [np.column_stack([shard.state().centres, shard.state().bias]) for shard in head.shards]
        return np.array(losses), np.stack(gradients), np.concatenate(centres)

    found = in_threads(processes, process)
    for losses, _, centres in found:
        assert np.array_equal(losses, found[0][0]) and (not whole or np.array_equal(centres, found[0][2]))
    centres = found[0][2] if whole else np.concatenate([centres for _, _, centres in found])
    return found[0][0], np.concatenate([gradients for _, gradients, _ in found], axis=1), centres


def assert_close(found: tuple[np.ndarray, ...], wanted: tuple[np.ndarray, ...]) -> None:
    """Float32 sums in another order: 1e-6 of the largest a step, which s = 64 may amplify."""
    for ours, theirs in zip(found, wanted):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("whole", [False, True], ids=["cut", "replicated"])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_number_of_processes_does_not_matter(loss: str, whole: bool, kind: str) -> None:
    one = train(1, 1, LOSSES[loss], kind, whole)
    for processes, shards in ((2, 1), (3, 2)):
        assert_close(train(processes, shards, LOSSES[loss], kind, whole), one)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("whole", [False, True], ids=["cut", "replicated"])
@pytest.mark.parametrize("loss", ["softmax", "combined"])
def test_smoothed_labels_of_several_processes(loss: str, whole: bool, kind: str) -> None:
    one = train(1, 1, LOSSES[loss], kind, whole, smoothing=0.2)
    for processes, shards in ((2, 1), (3, 2)):
        assert_close(train(processes, shards, LOSSES[loss], kind, whole, smoothing=0.2), one)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("whole", [False, True], ids=["cut", "replicated"])
@pytest.mark.parametrize("face", [lambda: AdaFace(share=0.5), lambda: MagFace((2, 6)),
                                  lambda: ElasticFace(0.4, 0, 0.2, 1, True)], ids=["adaface", "magface", "elastic"])
def test_margins_of_images_of_several_processes(face: Callable[[], ImageMargins], whole: bool, kind: str) -> None:
    margin = Margin(32, easy=True)
    one = train(1, 1, margin, kind, whole, of_images=face)
    assert_close(train(2, 2, margin, kind, whole, of_images=face), one)


@pytest.mark.parametrize("kind", KINDS)
def test_sub_centres_and_a_sample_that_all_replicas_share(kind: str) -> None:
    """A cut shard draws by its range, so that only replicas of the same cut draw the same."""
    one = train(1, 2, LOSSES["arcface"], kind, True, 3, 0.5)
    assert_close(train(2, 2, LOSSES["arcface"], kind, True, 3, 0.5), one)
    one = train(1, 4, LOSSES["arcface"], kind, False, 3, 0.5)
    assert_close(train(2, 2, LOSSES["arcface"], kind, False, 3, 0.5), one)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("whole", [False, True], ids=["cut", "replicated"])
def test_adamw_and_a_sample(whole: bool, kind: str) -> None:
    """An eps of the gradients' own size: a step does not depend on that size, and of rounding it would make steps."""
    for loss, ratio in (("softmax", 1.0), ("arcface", 0.5)):
        one = train(1, 4, LOSSES[loss], kind, whole, 1, ratio, AdamW(eps=0.1))
        shards = 4 if whole else 2
        assert_close(train(2, shards, LOSSES[loss], kind, whole, 1, ratio, AdamW(eps=0.1)), one)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("loss", ["softmax", "arcface"])
@pytest.mark.parametrize(("whole", "sub_centres", "ratio"), [(False, 1, 1.0), (False, 3, 0.5), (True, 3, 1.0)])
def test_angles_and_the_norm_of_the_gradient(kind: str, whole: bool, processes: int, loss: str, sub_centres: int,
                                             ratio: float) -> None:
    """Against float64: angles between features and their (nearest) centres, 1e-4 rad for cosines in float32 away from
    0 and pi; the norm against the move of W in a plain step of SGD, which float32 knows to 1e-4."""
    random = np.random.RandomState(1)
    x = random.standard_normal((BATCH, DIM)).astype(np.float32)
    labels = random.randint(0, CLASSES, BATCH)
    margin, lr = LOSSES[loss], 8.0

    def process(communicator: Communicator) -> tuple[Any, ...]:
        single = SingleProcess()
        across, replicas = (single, communicator) if whole else (communicator, single)
        ranges = split_classes(CLASSES, across.size * 2)[across.rank * 2 :][:2]
        options: dict[str, Any] = {"normalised": margin.normalised, "scale": margin.scale, "sub_centres": sub_centres,
                                   "with_bias": whole and not margin.normalised}
        head = ShardedHead([KINDS[kind](*part, DIM, **options) for part in ranges], margin, across, mu=0, wd=0,
                           sampler=ClassSampler(ratio), replicas=replicas)
        for shard in head.shards:
            state = shard.state()
            grown = state.centres * np.linspace(20, 60, DIM, dtype=np.float32)
            shard.load(state._replace(centres=grown, bias=state.bias + 0.5 * options["with_bias"]))
        before = np.concatenate([shard.state().centres for shard in head.shards]).astype(np.float64)
        mine = slice(communicator.rank * BATCH // processes, (communicator.rank + 1) * BATCH // processes)
        head.forward_backward(x[mine], labels[mine])
        angles, norm = head.target_angles(), head.step(lr, measure=True)
        after = np.concatenate([shard.state().centres for shard in head.shards]).astype(np.float64)
        head.forward_backward(x[mine], labels[mine])
        assert head.step(lr) is None
        return angles, norm, before, after

    found = in_threads(processes, process)
    before, after = ((found[0][i] if whole else np.concatenate([part[i] for part in found])) for i in (2, 3))
    candidates = before.reshape(CLASSES, sub_centres, DIM)[labels]
    products = np.einsum("bkd,bd->bk", candidates, x.astype(np.float64))
    cosines = products / np.linalg.norm(candidates, axis=2)
    nearest = (cosines if margin.normalised else products).argmax(axis=1)
    wanted = np.arccos(cosines[np.arange(BATCH), nearest] / np.linalg.norm(x, axis=1))
    for angles, norm, *_ in found:
        np.testing.assert_allclose(angles, wanted, rtol=0, atol=1e-4)
        assert norm == pytest.approx(np.linalg.norm(after - before) / lr, rel=1e-4) and norm > 0
