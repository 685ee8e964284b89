# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.sets.pairs import draw_pairs
from recognition.errors import UserError


def available(counts: list[int]) -> int:
    owners = np.repeat(np.arange(len(counts)), counts)
    same = owners[:, None] == owners[None, :]
    upper = np.triu(np.ones_like(same), 1)
    return min(int((same & upper).sum()), int((~same & upper).sum()))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 9), min_size=2, max_size=12), st.integers(1, 10), st.integers(0, 99), st.data())
def test_pairs_are_distinct_truthful_and_in_folds(counts, folds, seed, data):
    most = available(counts) // folds
    if most == 0:
        with pytest.raises(UserError, match="verification pairs"):
            draw_pairs(counts, folds, seed=seed)
        return
    wanted = data.draw(st.integers(1, most))  # up to every pair that there is
    images, issame = draw_pairs(counts, folds, wanted, seed)
    owners = np.repeat(np.arange(len(counts)), counts)
    assert images.shape == (2 * folds * wanted, 2)
    assert images.dtype == np.int64
    assert (images[:, 0] != images[:, 1]).all()
    assert len({frozenset(pair) for pair in images.tolist()}) == len(images)
    np.testing.assert_array_equal(owners[images[:, 0]] == owners[images[:, 1]], issame)
    np.testing.assert_array_equal(issame.reshape(folds, 2, wanted), np.tile([[[True], [False]]], (folds, 1, wanted)))


def test_identities_take_part_equally():
    counts = [12] * 50 + [40] * 10
    images, issame = draw_pairs(counts, folds=10, pairs_per_fold=60)
    owners = np.repeat(np.arange(60), counts)[images]
    of_same = np.bincount(owners[issame, 0], minlength=60)
    of_different = np.bincount(owners[~issame].ravel(), minlength=60)
    assert of_same.tolist() == [10] * 60
    assert of_different.tolist() == [20] * 60
    assert len({frozenset(pair) for pair in owners[~issame].tolist()}) == 600  # 600 couples of the 1770 that there are


def test_large_sets_are_drawn_at_once():
    images, _ = draw_pairs([30] * 20000)
    assert len(images) == 6000


def test_default_takes_what_there_is_and_says_when_it_is_too_little():
    assert len(draw_pairs([10] * 5).images) == 2 * 220  # 225 pairs of the same person in 10 folds
    assert len(draw_pairs([100] * 100).images) == 6000
    with pytest.raises(UserError, match=r"50 images of 5 held-out identities make 225 .* at least 230 of each"):
        draw_pairs([10] * 5, pairs_per_fold=23)


def test_same_seed_same_pairs():
    first, again, other = (draw_pairs([8] * 20, seed=seed).images for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
