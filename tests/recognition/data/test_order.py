# SPDX-License-Identifier: Apache-2.0
"""The order of an epoch and the numbers of an image: reproducible, independent, uniform."""
from __future__ import annotations

import numpy as np
import pytest

from recognition.data.order import EpochOrder, uniforms


def test_order_is_pinned() -> None:
    """A run goes on in the same order under every NumPy: these numbers never change."""
    assert EpochOrder(10, 7).permutation(3).tolist() == [2, 4, 7, 3, 5, 1, 8, 9, 0, 6]
    np.testing.assert_array_equal(uniforms(7, 3, np.array([0, 5]), 2), [
        [0.2928888904185696, 0.8178901149710801], [0.2782173855447875, 0.24866153727369067]])


def test_order_is_a_permutation_of_its_own_for_each_seed_and_epoch() -> None:
    orders = {tuple(EpochOrder(100, seed).permutation(epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25
    assert all(sorted(order) == list(range(100)) for order in orders)
    order = EpochOrder(100, 1).permutation(2)
    assert order.dtype == np.int64
    np.testing.assert_array_equal(order, EpochOrder(100, 1).permutation(2))


def test_order_is_uniform() -> None:
    """Chi-square of the place of each image over 4,000 epochs: 49 degrees of freedom, 99.99 % below 98."""
    counts = np.zeros((8, 8))
    for epoch in range(4000):
        counts[np.arange(8), EpochOrder(8, 0).permutation(epoch)] += 1
    assert ((counts - 500) ** 2 / 500).sum() < 98


def test_file_order() -> None:
    assert EpochOrder(5, 1, shuffle=False).permutation(9).tolist() == [0, 1, 2, 3, 4]


def test_negative_seed() -> None:
    with pytest.raises(ValueError, match="seed -1"):
        EpochOrder(5, -1)


def test_uniforms_belong_to_the_image() -> None:
    images = np.arange(1000)
    all_at_once = uniforms(1, 2, images, 10)
    assert all_at_once.shape == (1000, 10) and all_at_once.dtype == np.float64
    np.testing.assert_array_equal(uniforms(1, 2, images[::-7], 4), all_at_once[::-7, :4])
    for other in (uniforms(1, 3, images, 10), uniforms(2, 2, images, 10), uniforms(2, 1, images, 10)):
        assert not np.isin(other, all_at_once).any()


def test_uniforms_are_uniform_and_independent() -> None:
    """Mean and correlations of 100,000 numbers lie within 5 standard errors, cells of a histogram too."""
    n = 100_000
    numbers = uniforms(3, 0, np.arange(n), 4)
    assert numbers.min() >= 0 and numbers.max() < 1
    assert abs(numbers.mean(0) - 0.5).max() < 5 * np.sqrt(1 / 12 / n)
    neighbours = np.c_[numbers[:-1], numbers[1:]]  # columns of an image, and of an image and the next
    assert abs(np.corrcoef(neighbours.T) - np.eye(8)).max() < 5 / np.sqrt(n)
    cells = np.histogram(numbers, 64, (0, 1))[0]
    assert abs(cells - 4 * n / 64).max() < 5 * np.sqrt(4 * n / 64)
