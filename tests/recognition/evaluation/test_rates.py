# SPDX-License-Identifier: Apache-2.0
"""TAR at FAR against counting every threshold, and against the ROC curve of the same pairs."""
from __future__ import annotations

import numpy as np
import pytest

from recognition.errors import UserError
from recognition.evaluation.rates import (
    Highest,
    allowed_accepts,
    count_above,
    rates_at,
    scores_needed,
    tar_at,
    thin_curve,
    thresholds_at,
)
from recognition.evaluation.roc import tar_at_far

FARS = (0, 1e-3, 0.01, 0.29, 0.5, 1)


def by_counting(far, same, different):
    """The best TAR of all thresholds, each score and below all, whose false accepts are at most far."""
    best = 0.0
    for threshold in [*np.concatenate([same, different]), -np.inf]:
        if np.mean(different > threshold) <= far:
            best = max(best, float(np.mean(same > threshold)))
    return best


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("sizes", [(1, 1), (30, 100), (200, 7), (50, 999)])
def test_against_counting_and_the_curve(sizes, ties):
    random = np.random.default_rng(sum(sizes))
    same = random.normal(1, 1, sizes[0]).astype(np.float32)
    different = random.normal(0, 1, sizes[1]).astype(np.float32)
    if ties:
        same, different = same.round(), different.round()
    rates = tar_at(FARS, same, different)
    for far, rate in zip(FARS, rates):
        assert rate.tar == by_counting(far, same, different)
        assert rate.false_accepts == np.count_nonzero(different > rate.threshold) <= rate.allowed
        assert rate.allowed / len(different) <= far
    issame = np.repeat([True, False], sizes)
    np.testing.assert_array_equal([rate.tar for rate in rates],
                                  tar_at_far(-np.concatenate([same, different]), issame, FARS))


@pytest.mark.parametrize("count", [1, 2, 10, 999, 5000])
@pytest.mark.parametrize("step", [1, 37, 5000])
def test_the_highest_of_a_stream_are_those_of_all(count, step):
    if step == 1 and count == 5000:
        step = 11
    scores = np.random.default_rng(count).normal(size=5000).astype(np.float32).round(2)  # with many ties
    highest = Highest(count)
    for start in range(0, len(scores), step):
        highest.add(scores[start : start + step])
    np.testing.assert_array_equal(highest.descending(), np.sort(scores)[::-1][:count])
    assert highest.seen == 5000


def test_a_long_stream_drops_what_cannot_count_and_stays_small():
    random = np.random.default_rng(0)
    highest, everything = Highest(100), []
    for _ in range(40):
        block = random.normal(size=(50, 100)).astype(np.float32)
        highest.add(block)
        everything.append(block.ravel())
        assert len(highest._kept) <= 100 and highest._waiting_size < 1 << 16
    np.testing.assert_array_equal(highest.descending(), np.sort(np.concatenate(everything))[::-1][:100])
    assert highest.floor > 0


def test_a_streamed_table_is_the_whole_one():
    random = np.random.default_rng(4)
    same, different = random.normal(1, 1, 300).astype(np.float32), random.normal(0, 1, 10000).astype(np.float32)
    fars = (1e-4, 1e-3, 1e-2)
    highest = Highest(scores_needed(fars, 10000))
    for block in np.array_split(different, 13):
        highest.add(block)
    kept = highest.descending()
    assert len(kept) == 101
    thresholds = thresholds_at(fars, kept, 10000)
    accepted = count_above(same, thresholds)
    assert rates_at(fars, kept, 10000, accepted, 300, thresholds) == tar_at(fars, same, different)


def test_the_thin_curve_lies_on_the_curve():
    random = np.random.default_rng(8)
    same = random.normal(1, 1, 500).astype(np.float32).round(2)
    different = random.normal(0, 1, 9000).astype(np.float32).round(2)
    far, tar = thin_curve(same, different, 60)
    np.testing.assert_array_equal(tar[:-1], tar_at_far(-np.concatenate([same, different]),
                                                       np.repeat([True, False], [500, 9000]), far[:-1]))
    assert (far[0], far[-1], tar[-1]) == (0, 1, 1) and (np.diff(far) >= 0).all() and len(far) > 40


def test_a_rate_of_whole_pairs_is_not_rounded_down():
    assert int(0.29 * 100) == 28  # what float64 makes of it
    assert allowed_accepts(0.29, 100) == 29
    for pairs in (1, 7, 100, 1000, 12345):
        for k in range(0, pairs + 1, max(1, pairs // 50)):
            assert allowed_accepts(k / pairs, pairs) == k
    assert [allowed_accepts(far, 10) for far in (0, 1e-6, 0.0999, 1, 2)] == [0, 0, 0, 10, 10]
    assert allowed_accepts(1e-6, 10**9) == 1000


def test_what_cannot_be_told():
    with pytest.raises(UserError, match=r"^ijb: found no pairs of different identities"):
        tar_at(FARS, np.ones(3, np.float32), np.empty(0, np.float32), "ijb")
    with pytest.raises(UserError, match=r"^ijb: found no pairs of one identity"):
        tar_at(FARS, np.empty(0, np.float32), np.ones(3, np.float32), "ijb")
    with pytest.raises(UserError, match=r"^--far: found 0.1, for which 100000001 of the 1000000000 scores .*, expected "
                                        r"at most 0.0168$"):
        scores_needed((1e-6, 0.1), 10**9)
