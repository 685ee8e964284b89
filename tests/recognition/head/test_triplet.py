# SPDX-License-Identifier: Apache-2.0
"""The triplet losses against float64 finite differences, the choice of triplets against loops over all pairs."""
from __future__ import annotations

import tracemalloc
from itertools import combinations

import numpy as np
import pytest

from recognition.data.triplet_choice import PAIRS_AT_ONCE, choose_triplets, positive_pairs
from recognition.head.triplet_loss import TripletLoss

LOSSES = pytest.mark.parametrize("loss", [TripletLoss(0.3), TripletLoss(0.35, angular=True)],
                                 ids=["triplet", "atriplet"])


def reference(features: np.ndarray, loss: TripletLoss) -> np.ndarray:
    """The losses as the contract writes them."""
    anchor, positive, negative = features / np.linalg.norm(features, axis=2, keepdims=True)
    if loss.angular:
        near, far = (np.arccos((anchor * other).sum(1)) for other in (positive, negative))
    else:
        near, far = (np.square(anchor - other).sum(1) for other in (positive, negative))
    return np.maximum(near - far + loss.alpha, 0)


def features(count: int = 40, dim: int = 6) -> np.ndarray:
    """Triplets of which some have a loss and some have none, of norms around 3."""
    random = np.random.RandomState(0)
    anchor = random.standard_normal((count, dim))
    positive, negative = (anchor + scale * random.standard_normal((count, dim)) for scale in (0.6, 0.9))
    return 1.2 * np.stack([anchor, positive, negative])


@LOSSES
def test_losses_and_gradients_against_finite_differences(loss: TripletLoss) -> None:
    """All in float64: the losses differ by rounding and by the 1e-10 in the norm, differences of step 1e-6 by 1e-9."""
    x, h = features(), 1e-6
    losses, gradient, closer = loss(x)
    expected = reference(x, loss)
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-9)
    assert 0 < np.count_nonzero(losses) < len(losses)
    unit = x / np.linalg.norm(x, axis=2, keepdims=True)
    assert np.array_equal(closer, np.square(unit[0] - unit[1]).sum(1) < np.square(unit[0] - unit[2]).sum(1))
    assert 0 < closer.mean() < 1
    for role, k in np.ndindex(3, x.shape[2]):  # a triplet's loss depends on its own features alone
        step = np.zeros_like(x)
        step[role, :, k] = h
        slope = (reference(x + step, loss) - reference(x - step, loss)) / (2 * h)
        np.testing.assert_allclose(gradient[role, :, k], slope, rtol=0, atol=1e-8)


@LOSSES
def test_a_copy_of_the_anchor_gives_finite_gradients(loss: TripletLoss) -> None:
    """|d theta / d x| = 1 / |x| at any angle, so the anchor's gradient is at most the sum of two such."""
    x = features(3)
    x[1, 0] = x[0, 0]  # positive = anchor
    x[2, 1] = x[0, 1]  # negative = anchor
    x[1, 2] = -x[0, 2]
    losses, gradient, _ = loss(x)
    assert np.isfinite(losses).all()
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() < 5 / np.linalg.norm(x, axis=2).min()


def test_positive_pairs_are_all_pairs_of_an_identity() -> None:
    labels = np.repeat([7, 3, 5, 9], [3, 1, 4, 2])
    anchors, positives = positive_pairs(labels)
    expected = [pair for pair in combinations(range(len(labels)), 2) if labels[pair[0]] == labels[pair[1]]]
    assert list(zip(anchors.tolist(), positives.tolist())) == expected
    assert [len(found) for found in positive_pairs(np.arange(4))] == [0, 0]


def bag(identities: int = 40, each: int = 5, dim: int = 16) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.RandomState(1)
    labels = np.repeat(random.permutation(identities), each)
    centres = 3 * random.standard_normal((identities, dim))
    return (centres[labels] + 2 * random.standard_normal((len(labels), dim))).astype(np.float32), labels


def candidates(embeddings: np.ndarray, labels: np.ndarray, alpha: float, max_ap: float,
               slack: float) -> dict[tuple[int, int], set[int]]:
    """The negatives of each positive pair, in float64 and by loops; ``slack`` widens every bound."""
    x = embeddings.astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    found = {}
    for a, p in combinations(range(len(x)), 2):
        d_ap = np.square(x[a] - x[p]).sum()
        if labels[a] == labels[p] and (not max_ap or d_ap <= max_ap + slack):
            d_an = np.square(x[a] - x).sum(1)
            inside = (labels != labels[a]) & (d_an > d_ap - slack) & (d_an < d_ap + alpha + slack)
            found[a, p] = set(np.flatnonzero(inside).tolist())
    return found


@pytest.mark.parametrize("alpha, max_ap", [(0.3, 0.0), (0.05, 0.0), (0.3, 0.5), (2.0, 0.0)])
def test_chosen_triplets_against_loops_over_all_pairs(alpha: float, max_ap: float) -> None:
    """Slack 1e-5: float32 squared distances of unit vectors err by 1e-6."""
    embeddings, labels = bag()
    triplets = choose_triplets(embeddings, labels, alpha, max_ap, (0, 0))
    wide, narrow = (candidates(embeddings, labels, alpha, max_ap, slack) for slack in (1e-5, -1e-5))
    chosen = {(a, p): n for a, p, n in triplets.tolist()}
    assert len(chosen) == len(triplets) > 0
    assert all(n in wide[pair] for pair, n in chosen.items())
    assert {pair for pair, negatives in narrow.items() if negatives} <= set(chosen)


def test_the_bag_is_cut_into_blocks_without_a_seam() -> None:
    """More pairs than a block holds: the candidates at its edges are right too (alpha 4 admits all farther ones)."""
    embeddings, labels = bag(identities=130)
    triplets = choose_triplets(embeddings, labels, 4.0, 0.0, (0, 0))
    pairs = len(positive_pairs(labels)[0])
    assert pairs > 2 * PAIRS_AT_ONCE
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    a, p, n = (unit[column] for column in triplets.T)
    assert ((a * p).sum(1) > (a * n).sum(1) - 1e-5).all()
    assert (labels[triplets[:, 0]] == labels[triplets[:, 1]]).all()
    assert (labels[triplets[:, 0]] != labels[triplets[:, 2]]).all()
    assert len(triplets) > 0.95 * pairs


def test_the_choice_is_a_function_of_its_numbers() -> None:
    embeddings, labels = bag()
    first, again, other = (choose_triplets(embeddings, labels, 0.3, 0.0, (0, n)) for n in (4, 4, 5))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert set(map(tuple, first[:, :2].tolist())) == set(map(tuple, other[:, :2].tolist()))
    assert not (np.diff(first[:, 0]) >= 0).all(), "anchors still in order"


def test_every_candidate_is_as_likely() -> None:
    """The hundreds of draws of one pair: each share within 5 standard deviations of 1 / candidates."""
    embeddings, labels = bag(12, 3)
    (pair, negatives), draws = max(candidates(embeddings, labels, 1.0, 0, 0).items(), key=lambda x: len(x[1])), 600
    found = []
    for n in range(draws):
        triplets = choose_triplets(embeddings, labels, 1.0, 0.0, (n,))
        found.append(int(triplets[(triplets[:, :2] == pair).all(1)][0, 2]))
    share = 1 / len(negatives)
    assert len(negatives) >= 3
    assert set(found) == negatives
    counts = np.bincount(found)[sorted(negatives)] / draws
    assert np.abs(counts - share).max() < 5 * np.sqrt(share * (1 - share) / draws)


def test_no_candidates_no_triplets() -> None:
    labels = np.repeat([0, 1], 3)
    tight = np.repeat(np.eye(2, 8, dtype=np.float32), 3, axis=0)  # negatives at distance 2, positives at 0
    assert choose_triplets(tight, labels, 0.3, 0.0, (0,)).shape == (0, 3)
    assert choose_triplets(tight, np.arange(6), 0.3, 0.0, (0,)).shape == (0, 3)


def test_memory_is_bounded() -> None:
    """Whatever the number of pairs: float32 distances of all of them alone, pairs x n, are 72 MB here."""
    embeddings, labels = bag(600, 5)
    tracemalloc.start()
    choose_triplets(embeddings, labels, 2.0, 0.0, (0,))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30 * PAIRS_AT_ONCE * len(labels)
