# SPDX-License-Identifier: Apache-2.0
"""MegaFace's protocol: find a photograph of the same person among a million photographs of others.

Identification: for each ordered pair (probe, mate) of photographs of one person, the gallery is the mate and all
distractors. The rank of the mate is one more than the number of distractors that score at least as high. Verification:
the pairs of one person among the probes are compared with all pairs of a probe and a distractor. Distractors come in
blocks and are not kept.
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence
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

BLOCK_BYTES = 16 << 20  # of one block of scores, which is read while it is in the cache


class Found(NamedTuple):
    """The result of a search among distractors."""

    ranks: np.ndarray  # int64 (pairs,), from 1, one for every ordered pair of probe and mate
    rates: list[Rate]
    same_pairs: int  # unordered
    different_pairs: int
    distractors: int
    curve: tuple[np.ndarray, np.ndarray]  # FAR and TAR, as far as scores were kept


class _Mates(NamedTuple):
    """The mates of each of P probes."""

    scores: list[np.ndarray]  # float32 (mates,) for each probe: its scores with its mates, ascending
    beaten_by: list[np.ndarray]  # int64 (mates + 1,) for each probe: distractors that score at least as high as k mates
    lowest: np.ndarray  # float32 (P,): the lowest score with a mate, inf for a probe without one


def search_distractors(probes: np.ndarray, identities: np.ndarray, blocks: Iterable[np.ndarray], distractors: int,
                       fars: Sequence[float], name: str = "probes") -> Found:
    """Run both protocols in one pass over the distractors.

    :param probes: float32 ``(P, D)``, normalised; ``identities``: int64 ``(P,)``
    :param blocks: float32 ``(n, D)`` each, normalised, ``distractors`` rows in all
    :raises UserError: if no two probes have one identity, or if a FAR needs too many scores.
    """
    mates = _find_mates(probes, identities)
    same_pairs = sum(map(len, mates.scores)) // 2
    if not same_pairs:
        raise UserError(f"{name}: no two of the {len(probes)} probes are of one identity, expected pairs")
    different = len(probes) * distractors
    highest = Highest(max(scores_needed(fars, different, name), min(different, CURVE_SCORES)))
    step = max(1, BLOCK_BYTES // (4 * len(probes)))
    room = np.empty(len(probes) * step, np.float32)
    for block in blocks:
        for low in range(0, len(block), step):
            part = block[low : low + step]
            scores = np.matmul(probes, part.T, out=room[: len(probes) * len(part)].reshape(len(probes), len(part)))
            best = scores.max(axis=1)
            highest.add(scores, best)
            _count(scores, best, mates)
    if highest.seen != different:
        raise ValueError(f"{highest.seen // len(probes)} distractors, {distractors} were announced")
    kept = highest.descending()
    asked, places = thresholds_at(fars, kept, different), curve_places(len(kept))
    accepted = count_above(np.concatenate(mates.scores), np.concatenate([asked, kept[places]]))
    accepted //= 2  # each pair is counted from both sides
    ranks = [1 + np.cumsum(counts[::-1])[::-1][1:] for counts in mates.beaten_by]
    rates = rates_at(fars, kept, different, accepted[: len(fars)], same_pairs, asked)
    curve = curve_at(kept, places, different, accepted[len(fars) :], same_pairs)
    return Found(np.concatenate(ranks), rates, same_pairs, different, distractors, curve)


def _find_mates(probes: np.ndarray, identities: np.ndarray) -> _Mates:
    scores: list[np.ndarray] = [np.empty(0, np.float32)] * len(probes)
    for identity in np.unique(identities):
        rows = np.flatnonzero(identities == identity)
        between = probes[rows] @ probes[rows].T
        between = np.maximum(between, between.T)  # so that both sides of a pair have the same bits
        for i, row in enumerate(rows.tolist()):
            scores[row] = np.sort(np.delete(between[i], i))
    lowest = np.array([of_one[0] if len(of_one) else np.inf for of_one in scores], np.float32)
    return _Mates(scores, [np.zeros(len(of_one) + 1, np.int64) for of_one in scores], lowest)


def _count(scores: np.ndarray, best: np.ndarray, mates: _Mates) -> None:
    """Count the distractors of a block, scores (P, n), in ``mates.beaten_by``: one that scores at least as high as k
    mates counts at k. Most probes need no look: their highest score in the block, ``best`` (P,), is below all mates."""
    for i in np.flatnonzero(best >= mates.lowest).tolist():
        row, of_mates, counts = scores[i], mates.scores[i], mates.beaten_by[i]
        reaching = row[row >= of_mates[0]]
        counts += np.bincount(np.searchsorted(of_mates, reaching, side="right"), minlength=len(counts))
