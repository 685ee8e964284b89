# SPDX-License-Identifier: Apache-2.0
"""All pairs of N embeddings, 1:1: TAR at low FAR, exact, in memory that does not grow with the number of pairs.

Two passes of matrix products over blocks. The first goes over all pairs and keeps the few highest scores of different
identities (``rates.Highest``): they are the thresholds. The second goes over the pairs of one identity
alone, which lie near the diagonal as the rows are sorted by identity, and counts how many lie above. A histogram of
scores would give a threshold that is right to the width of a bin; here it is the score itself, as float32 gives it.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

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

BLOCK = 2048  # rows: a block of scores is 16 MiB


class AllPairs(NamedTuple):
    """What all pairs show."""

    same_pairs: int
    different_pairs: int
    rates: list[Rate]
    curve: tuple[np.ndarray, np.ndarray]  # FAR and TAR, to the highest FAR asked for or as far as CURVE_SCORES go


def count_pairs(identities: np.ndarray) -> tuple[int, int]:
    """The numbers of pairs of one identity and of two."""
    counts = np.unique(identities, return_counts=True)[1].astype(object)  # whole numbers of any size
    same = int((counts * (counts - 1) // 2).sum())
    return same, len(identities) * (len(identities) - 1) // 2 - same


def check_pairs(identities: np.ndarray, fars: Sequence[float], name: str) -> None:
    """Raise UserError if there are no pairs of one identity or of two, or too high a FAR for so many."""
    same, different = count_pairs(identities)
    if not same or not different:
        kinds = "of one identity" if different else "of two identities"
        raise UserError(f"{name}: found {len(identities)} images, no two of them {kinds}, expected pairs of both kinds")
    scores_needed(fars, different, name)


def evaluate_all_pairs(embeddings: np.ndarray, identities: np.ndarray, fars: Sequence[float], name: str = "all",
                       block: int = BLOCK) -> AllPairs:
    """TAR at each FAR over all pairs.

    :param embeddings: float32 ``(N, D)``, normalised
    :param identities: int64 ``(N,)``
    :param block: rows at a time; memory is for two blocks, their scores, and the scores kept
    :raises UserError: as :func:`check_pairs`
    """
    check_pairs(identities, fars, name)
    order = np.argsort(identities, kind="stable")
    embeddings, identities = embeddings[order], identities[order]
    same, different = count_pairs(identities)
    highest = Highest(max(scores_needed(fars, different, name), min(different, CURVE_SCORES)))
    with tqdm(total=same + different, desc=name, unit=" pairs", unit_scale=True, disable=None) as bar:
        for scores, is_same, is_pair in _score_blocks(embeddings, identities, block, near_diagonal=False):
            highest.add(scores if is_same is None else scores[is_pair & ~is_same])
            bar.update(int(scores.size if is_same is None else is_pair.sum()))
    kept = highest.descending()
    if highest.seen != different or np.isnan(kept).any():
        raise ValueError(f"{name}: embeddings that are not finite")
    asked = thresholds_at(fars, kept, different)
    places = curve_places(len(kept))
    thresholds = np.concatenate([asked, kept[places]])
    accepted = np.zeros(len(thresholds), np.int64)
    for scores, is_same, is_pair in _score_blocks(embeddings, identities, block, near_diagonal=True):
        accepted += count_above(scores[is_same & is_pair], thresholds)
    return AllPairs(same, different, rates_at(fars, kept, different, accepted[: len(fars)], same, asked),
                    curve_at(kept, places, different, accepted[len(fars) :], same))


def _score_blocks(embeddings: np.ndarray, identities: np.ndarray, block: int,
                  near_diagonal: bool) -> Iterator[tuple[np.ndarray, ...]]:
    """Scores of blocks on and right of the diagonal, with masks of what is of one identity and of what is a pair (right
    of the diagonal itself). The masks are None for blocks without an identity in common; with ``near_diagonal`` those
    are left out."""
    starts = range(0, len(embeddings), block)
    for low in starts:
        rows = slice(low, low + block)
        for left in starts[low // block :]:
            columns = slice(left, left + block)
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
