# SPDX-License-Identifier: Apache-2.0
"""Stochastic rounding of class centres: the same bits from NumPy, PyTorch and Triton; unbiased; for any cut."""
from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

from recognition.head.rounding import GOLDEN, hashed, key_of
from recognition.head.shard import split_classes

ODD = np.array([0.0, -0.0, 1.0, np.pi, -1e-30, 1e-42, 3.4e38, -np.inf, np.inf, np.nan, 0.1, -2.5e-7], np.float32)


def values(rows: int, dim: int) -> np.ndarray:
    array = np.random.default_rng(1).standard_normal((rows, dim), dtype=np.float32)
    array[0, : len(ODD)] = ODD
    return array


def random_words(key: int, rows: np.ndarray, dim: int) -> np.ndarray:
    """32 random bits for each number of rows, int64 (n,) by their numbers among all classes: uint32 (n, dim)."""
    of_rows = hashed(rows.astype(np.uint32) ^ np.uint32(key))
    return hashed(of_rows[:, None] + np.arange(dim, dtype=np.uint32) * np.uint32(GOLDEN))


def rounded(values: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """Float32 ``values`` as float32 that bfloat16 holds, rounded by the lower 16 of ``bits``, uint32."""
    sums = values.view(np.uint32) + (bits & np.uint32(0xFFFF)) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(values), values, sums.view(np.float32))


def test_numbers_that_bfloat16_holds_stay() -> None:
    held = (values(9, 20).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    for bits in (0, 0xFFFF, 0xFFFFFFFF):
        np.testing.assert_array_equal(rounded(held, np.full(held.shape, bits, np.uint32)), held)


def test_the_mean_of_many_roundings_is_the_number() -> None:
    """100,000 draws between two neighbours that are 2^-7 apart: four standard deviations of a coin, 2^-8 / sqrt(n)."""
    found = rounded(np.full((100, 1000), 1.001, np.float32), random_words(key_of(1, 2), np.arange(100), 1000))
    assert set(np.unique(found)) == {1.0, 1.0078125}
    assert abs(found.mean(dtype=np.float64) - 1.001) < 4 * 2**-8 / np.sqrt(found.size)


def test_the_halves_of_words_are_uniform_and_not_alike() -> None:
    """In 16 bins of 16,000: chi squared of 15 degrees, and of 255 together, below their thousandths' points."""
    words = random_words(key_of(5, 9), np.arange(500), 512).ravel()
    low, high = words >> np.uint32(12) & np.uint32(15), words >> np.uint32(28)
    for bins, most in ((np.bincount(low), 37.7), (np.bincount(high), 37.7), (np.bincount(16 * high + low), 330.5)):
        wanted = len(words) / len(bins)
        assert np.square(bins - wanted).sum() / wanted < most


def test_seed_step_row_and_column_each_change_the_bits() -> None:
    keys = [key_of(*place) for place in ((1, 1), (1, 2), (2, 1), (1, 1, 1), (2**32 + 1, 1))]
    assert len(set(keys)) == 5
    words = np.concatenate([random_words(key, np.array([0, 1, 2**31, 2**32 - 1]), 64).ravel() for key in keys])
    assert len(np.unique(words)) > len(words) - 2


@pytest.mark.parametrize("rows", [np.arange(7), np.array([3, 70_000, 2**31 - 1, 2**31, 2**32 - 2])],
                         ids=["few", "many classes"])
def test_pytorch_rounds_to_the_same_bits(rows: np.ndarray) -> None:
    torch = pytest.importorskip("torch")
    from recognition.engines.torch import rounding

    for key in (key_of(3, 1), 0, 0xFFFFFFFF, 0x80000001):
        words, mine = random_words(key, rows, 20), rounding.random_words(key, torch.from_numpy(rows), 20)
        np.testing.assert_array_equal(mine.numpy().astype(np.uint32), words)
        w = values(len(rows), 20)
        for bits, of_torch in ((words, mine), (words >> np.uint32(16), mine >> 16)):
            found = rounding.rounded(torch.from_numpy(w), of_torch)
            np.testing.assert_array_equal(found.float().numpy(), rounded(w, bits))


def test_triton_rounds_to_the_same_bits_as_torch_and_numpy() -> None:
    """The kernels' step with a gradient and a rate of 0: a moment of MU times itself is what is rounded."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("triton", "3.7", reason="Triton 3.7 or newer is not installed")
    from recognition.engines.torch.triton.shard import TritonShard
    from recognition.head.margin import Margin
    from recognition.head.shard import SGD, ShardState
    from recognition.processes.communicator import SingleProcess

    shard = TritonShard(torch.device("cpu"), 1000, 1037, 20, normalised=True, scale=64.0, seed=11, in_16_bits=True)
    w, m = (np.random.default_rng(seed).standard_normal((37, 20), dtype=np.float32) for seed in (1, 2))
    w, m = (torch.from_numpy(array).bfloat16().float().numpy() for array in (w, m))
    shard.load(ShardState(w, m, *np.zeros((2, 37), np.float32)))
    x, labels = np.eye(4, 20, dtype=np.float32), np.full(4, 1003)
    logit, slope = Margin().target(shard.similarities(x, labels))
    statistics = shard.statistics(logit)
    shard.gradient(statistics[:, 0] + np.log(statistics[:, 1]), 4, slope * 0)
    shard.update(SGD(0.0, 0.7, 0.0, 5), SingleProcess())
    words = random_words(key_of(11, 5), np.arange(1000, 1037), 20)
    moved = np.float32(0.7) * m
    np.testing.assert_array_equal(shard.state().momentum, rounded(moved, words >> np.uint32(16)))
    np.testing.assert_array_equal(shard.state().centres, rounded(w + moved, words))


def test_the_cut_into_shards_does_not_change_torch_bits() -> None:
    """One shard and three; products of other shapes differ by 1e-7 of a gradient, so one number in a thousand may be
    rounded to its other neighbour. With other random bits a third would be."""
    torch = pytest.importorskip("torch")
    from recognition.engines.torch.shard import TorchShard
    from recognition.head.margin import Margin
    from recognition.head.sharded import ShardedHead
    from recognition.processes.communicator import SingleProcess

    build: Any = functools.partial(TorchShard, torch.device("cpu"), seed=4, in_16_bits=True)
    states = []
    for parts in (1, 3):
        shards = [build(*place, 24, normalised=True, scale=64.0) for place in split_classes(300, parts)]
        head = ShardedHead(shards, Margin(), SingleProcess())
        for step in range(2):
            random = np.random.default_rng(step)
            head.forward_backward(random.standard_normal((16, 24), dtype=np.float32), random.integers(0, 300, 16))
            head.step(0.1)
        states.append([np.concatenate(arrays) for arrays in zip(*(shard.state() for shard in shards))])
    for one, three in zip(states[0][:2], states[1][:2]):
        assert np.mean(one != three) < 1e-3
        assert set(np.unique(one.view(np.uint32) & np.uint32(0xFFFF))) == {0}


def test_centres_in_16_bits_train_as_float32_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noisy images of 100 people, 200 steps of falling rate: the loss of the last 50 is that of float32 to 1 %. Rounded
    to the nearest, where most updates of the end are lost, it is 4 % above or more."""
    torch = pytest.importorskip("torch")
    from recognition.engines.torch import stored_rows
    from recognition.engines.torch.shard import TorchShard
    from recognition.head.margin import Margin
    from recognition.head.sharded import ShardedHead
    from recognition.processes.communicator import SingleProcess

    def last_loss(in_16_bits: bool) -> float:
        shard = TorchShard(torch.device("cpu"), 0, 100, 32, normalised=True, scale=32.0, in_16_bits=in_16_bits)
        head, losses = ShardedHead([shard], Margin(32, 1, 0.2), SingleProcess()), []
        people = np.random.default_rng(0).standard_normal((100, 32), dtype=np.float32)
        for step in range(200):
            random = np.random.default_rng(100 + step)
            labels = random.integers(0, 100, 64)
            x = people[labels] + random.standard_normal((64, 32), dtype=np.float32)
            losses.append(head.forward_backward(x, labels).loss)
            head.step(0.02 if step < 140 else 0.002)
        return float(np.mean(losses[-50:]))

    torch.set_num_threads(1)  # two wait for each other longer than so little work takes
    exact, at_random = last_loss(False), last_loss(True)
    monkeypatch.setattr(stored_rows, "rounded", lambda values, bits: values.bfloat16())
    nearest = last_loss(True)
    assert at_random == pytest.approx(exact, rel=0.01) and nearest > 1.04 * exact
