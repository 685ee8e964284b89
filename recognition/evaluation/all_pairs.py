# SPDX-License-Identifier: Apache-2.0
"""1:1 verification of all pairs of N embeddings: exact TAR at low FAR, in memory that does not grow with the pairs.

There are two passes of matrix products over blocks. The first visits all pairs and keeps the few highest scores of
different identities (``rates.Highest``): they are the thresholds. The second visits the pairs of one identity alone,
which lie near the diagonal as the rows are sorted by identity, and counts how many lie above each threshold. A
histogram of scores would give thresholds to the width of a bin; here each is a score itself, in float32.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from recognition.errors import UserError
from recognition.evaluation.rates import (
    CURVE_SCORES,
    Highest,
    Rate,
    count_above,
    curve_at,
    curve_places,
    rates_at,
    scores_needed,
    thresholds_at,
)
from recognition.progress import progress

ROWS_AT_ONCE = 2048  # a block of scores has 16 MiB; memory is for two blocks, their scores, and the scores kept


class AllPairs(NamedTuple):
    """The rates and the curve of all pairs."""

    same_pairs: int
    different_pairs: int
    rates: list[Rate]
    curve: tuple[np.ndarray, np.ndarray]  # FAR and TAR, up to the highest wanted FAR or to CURVE_SCORES scores


def count_pairs(identities: np.ndarray) -> tuple[int, int]:
    """The number of pairs of one identity, and of pairs of two."""
    counts = np.unique(identities, return_counts=True)[1].astype(object)  # whole numbers of any size
    same = int((counts * (counts - 1) // 2).sum())
    return same, len(identities) * (len(identities) - 1) // 2 - same


def check_pairs(identities: np.ndarray, fars: Sequence[float], name: str) -> None:
    """Check that FARs can be measured on the pairs of ``identities``, int64 (N,).

    :raises UserError: if there are no pairs of one identity or none of two, or if a FAR needs too many scores.
    """
    same, different = count_pairs(identities)
    if not same or not different:
        kinds = "of one identity" if different else "of two identities"
        raise UserError(f"{name}: found {len(identities)} images, no two of them {kinds}, expected pairs of both kinds")
    scores_needed(fars, different, name)


def evaluate_all_pairs(embeddings: np.ndarray, identities: np.ndarray, fars: Sequence[float],
                       name: str = "all") -> AllPairs:
    """TAR at each FAR over all pairs.

    :param embeddings: float32 ``(N, D)``, normalised
    :param identities: int64 ``(N,)``
    :raises UserError: as :func:`check_pairs`
    """
    check_pairs(identities, fars, name)
    order = np.argsort(identities, kind="stable")
    embeddings, identities = embeddings[order], identities[order]
    same, different = count_pairs(identities)
    highest = Highest(max(scores_needed(fars, different, name), min(different, CURVE_SCORES)))
    with progress(total=same + different, desc=name, unit=" pairs", unit_scale=True) as bar:
        for scores, is_same, is_pair in _score_blocks(embeddings, identities, near_diagonal=False):
            highest.add(scores if is_same is None else scores[is_pair & ~is_same])
            bar.update(int(scores.size if is_same is None else is_pair.sum()))
    kept = highest.descending()
    if highest.seen != different or np.isnan(kept).any():
        raise ValueError(f"{name}: embeddings that are not finite")
    asked = thresholds_at(fars, kept, different)
    places = curve_places(len(kept))
    thresholds = np.concatenate([asked, kept[places]])
    accepted = np.zeros(len(thresholds), np.int64)
    for scores, is_same, is_pair in _score_blocks(embeddings, identities, near_diagonal=True):
        accepted += count_above(scores[is_same & is_pair], thresholds)
    return AllPairs(same, different, rates_at(fars, kept, different, accepted[: len(fars)], same, asked),
                    curve_at(kept, places, different, accepted[len(fars) :], same))


def _score_blocks(embeddings: np.ndarray, identities: np.ndarray,
                  near_diagonal: bool) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield blocks of scores (n, m) on and right of the diagonal, each with two masks, bool (n, m): pairs of one
    identity, and pairs at all (right of the diagonal itself). For blocks whose rows and columns share no identity the
    masks are None; ``near_diagonal`` leaves such blocks out."""
    starts = range(0, len(embeddings), ROWS_AT_ONCE)
    for low in starts:
        rows = slice(low, low + ROWS_AT_ONCE)
        for left in starts[low // ROWS_AT_ONCE :]:
            columns = slice(left, left + ROWS_AT_ONCE)
            shares = identities[rows][-1] >= identities[left]  # sorted
            if not shares and near_diagonal:
                break
            scores = embeddings[rows] @ embeddings[columns].T
            if not shares:
                yield scores, None, None  # type: ignore[misc]
                continue
            is_same = identities[rows, None] == identities[None, columns]
            is_pair = np.ones(scores.shape, bool) if left != low else np.triu(np.ones(scores.shape, bool), 1)
            yield scores, is_same, is_pair
