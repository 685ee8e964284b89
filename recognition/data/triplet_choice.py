# SPDX-License-Identifier: Apache-2.0
"""The choice of triplets from a bag of images, by their embeddings.

FaceNet (Schroff et al., 2015, section 3.2) trains on semi-hard negatives: they are farther from the anchor than the
positive already, but by less than the margin ``alpha`` of the loss.
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

EPSILON = np.float32(1e-10)  # under the square root of every norm, as in the loss
PAIRS_AT_ONCE = 512  # positive pairs to find negatives for: about 15 bytes for each pair and image of the bag


def choose_triplets(embeddings: np.ndarray, labels: np.ndarray, alpha: float, max_ap: float,
                    entropy: Sequence[int]) -> np.ndarray:
    """Choose a random negative with ``d_ap < d_an < d_ap + alpha``, squared distances, for each positive pair of a bag.

    A pair without such a negative gives no triplet. The order of the triplets is random.

    :param embeddings: (n, D), not normalised; ``labels``: (n,), with the images of an identity side by side.
    :param max_ap: pairs farther apart than this squared distance are left out (``triplet_max_ap``); 0: no limit.
    :param entropy: whole numbers; the choice is a function of them and of the other arguments alone.
    :returns: int64 (T, 3), rows of the bag: anchor, positive, negative.
    """
    x = np.asarray(embeddings, np.float32)
    unit = x / np.sqrt(np.square(x).sum(axis=1, keepdims=True) + EPSILON)
    anchors, positives = positive_pairs(labels)
    random = np.random.PCG64(np.random.SeedSequence(entropy))
    uniform = (random.random_raw(len(anchors)) >> np.uint64(11)) * 2.0**-53
    negatives = np.empty_like(anchors)
    for low in range(0, len(anchors), PAIRS_AT_ONCE):
        pairs = slice(low, low + PAIRS_AT_ONCE)
        negatives[pairs] = _negatives(unit, labels, anchors[pairs], positives[pairs], uniform[pairs], alpha, max_ap)
    found = np.flatnonzero(negatives >= 0)
    order = found[np.argsort(random.random_raw(len(found)), kind="stable")]
    return np.stack([anchors, positives, negatives], axis=1)[order]


def positive_pairs(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows of all pairs of equal labels, each pair once: int64 anchors, rising, and positives, after their anchors.

    :param labels: (n,), with equal ones side by side.
    """
    rows = np.arange(len(labels))
    starts = np.flatnonzero(np.append(True, labels[1:] != labels[:-1]))
    lengths = np.diff(np.append(starts, len(labels)))
    behind = np.repeat(starts + lengths, lengths) - rows - 1  # rows of the same label after each row
    anchors = np.repeat(rows, behind)
    first_pair = np.cumsum(behind) - behind
    return anchors, anchors + 1 + np.arange(len(anchors)) - first_pair[anchors]


def _negatives(unit: np.ndarray, labels: np.ndarray, anchors: np.ndarray, positives: np.ndarray, uniform: np.ndarray,
               alpha: float, max_ap: float) -> np.ndarray:
    """A random candidate for each pair: int64 (pairs,), -1 if there is none. ``uniform`` in [0, 1) chooses it."""
    rows, row_of = np.unique(anchors, return_inverse=True)
    distances = 2 - 2 * (unit[rows] @ unit.T)
    d_ap = distances[row_of, positives]
    distances[labels[rows, None] == labels] = np.inf
    beyond = distances[row_of] - d_ap[:, None]
    candidates = (beyond > 0) & (beyond < alpha)
    if max_ap > 0:
        candidates[d_ap > max_ap] = False
    counts = np.count_nonzero(candidates, axis=1)
    flat, first = np.flatnonzero(candidates), np.cumsum(counts) - counts
    negatives = np.full(len(anchors), -1)
    some = counts > 0
    negatives[some] = flat[first[some] + (uniform[some] * counts[some]).astype(np.int64)] % len(labels)
    return negatives
