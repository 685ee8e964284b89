# SPDX-License-Identifier: Apache-2.0
"""The ROC against scikit-learn, and its ends."""
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from recognition.errors import UserError
from recognition.evaluation.roc import roc, tar_at_far


def pairs_with_ties(seed: int, count: int = 500):
    """Distances of which many are equal, nearer for pairs of one identity."""
    random = np.random.default_rng(seed)
    issame = random.random(count) < 0.4
    return np.round(random.normal(1.5 - 0.6 * issame, 0.4), 1), issame


@pytest.mark.parametrize("seed", range(5))
def test_like_scikit_learn(seed):
    distances, issame = pairs_with_ties(seed)
    fpr, tpr, thresholds = roc(distances, issame)
    expected = roc_curve(issame, -distances, drop_intermediate=False)
    # The same quotients of the same counts: equal, not only close.
    np.testing.assert_array_equal(fpr, expected[0])
    np.testing.assert_array_equal(tpr, expected[1])
    np.testing.assert_array_equal(thresholds[1:], -expected[2][1:])
    assert thresholds[0] == -np.inf and fpr[0] == tpr[0] == 0
    # Sums of some 40 terms in another order.
    assert roc(distances, issame).area == pytest.approx(roc_auc_score(issame, -distances), abs=1e-14)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=40))
def test_area_is_the_share_of_ordered_pairs_of_pairs(rows):
    distances, issame = np.array([row[0] for row in rows], float), np.array([row[1] for row in rows])
    if issame.all() or not issame.any():
        with pytest.raises(UserError):
            roc(distances, issame)
        return
    same, different = distances[issame][:, None], distances[~issame][None]
    assert roc(distances, issame).area == pytest.approx(np.mean((same < different) + (same == different) / 2))


@pytest.mark.parametrize("far", [0, 1e-6, 0.001, 0.01, 0.1, 0.5, 1])
def test_tar_at_far_against_every_threshold(far):
    distances, issame = pairs_with_ties(7)
    rates = [((distances <= t)[~issame].mean(), (distances <= t)[issame].mean()) for t in (-1, *np.unique(distances))]
    assert tar_at_far(distances, issame, far) == max(tpr for fpr, tpr in rates if fpr <= far)


def test_tar_at_far_takes_a_list():
    distances, issame = [0.1, 0.2, 0.3, 0.4], [True, False, True, False]
    np.testing.assert_array_equal(tar_at_far(distances, issame, [0, 0.49, 0.5, 1]), [0.5, 0.5, 1, 1])


@pytest.mark.parametrize("same, found", [(True, "of the same identity"), (False, "of different identities")])
def test_one_class(same, found):
    with pytest.raises(UserError, match=f"^pairs: all 3 pairs are {found}, expected pairs of both kinds$"):
        roc([1, 2, 3], [same] * 3)
