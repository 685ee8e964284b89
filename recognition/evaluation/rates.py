# SPDX-License-Identifier: Apache-2.0
"""True accept rate (TAR) at a false accept rate (FAR), exact for any number of pairs of different identities.

The highest scores of pairs of different identities decide the threshold at a low FAR: a FAR of f accepts floor(f N) of
N such pairs, so the threshold is the next highest score, and a pair is accepted when its score lies above it.
:class:`Highest` keeps these few scores of a stream of any length; there is no histogram and no rounding. Equal scores
are accepted or refused together, so the FAR may be lower than the wanted one, but never higher.
:func:`recognition.evaluation.roc.tar_at_far` has the same rule, with distances in place of scores (higher is nearer).
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from recognition.errors import UserError

MOST_SCORES = 1 << 24  # of pairs of different identities, 64 MiB
CURVE_SCORES = 1 << 16  # kept for the curve: small sets have a whole one, not only its first points
CURVE_POINTS = 200


class Rate(NamedTuple):
    """One entry of a table of TAR at FAR."""

    far: float  # the wanted one
    threshold: float  # scores above it are accepted
    tar: float
    false_accepts: int  # with this threshold
    allowed: int  # false accepts that the FAR allows

    def as_json(self) -> dict[str, Any]:
        """The fields for a JSON file, with None for a threshold that accepts everything."""
        return {**self._asdict(), "threshold": self.threshold if np.isfinite(self.threshold) else None}


def allowed_accepts(far: float, pairs: int) -> int:
    """The largest k with ``k / pairs <= far``, computed in float64 like a rate from counts. ``int(far * pairs)`` would
    not do: it gives 28 for 0.29 * 100."""
    k = min(pairs, int(far * pairs))
    while k < pairs and (k + 1) / pairs <= far:
        k += 1
    while k > 0 and k / pairs > far:
        k -= 1
    return k


def scores_needed(fars: Sequence[float], pairs: int, name: str = "pairs", most: int = MOST_SCORES) -> int:
    """The number of the highest of ``pairs`` scores that decide the thresholds at ``fars``.

    :raises UserError: if there are no pairs, or if that number is greater than ``most``.
    """
    if pairs < 1:
        raise UserError(f"{name}: found no pairs of different identities, expected some to find thresholds on")
    wanted = min(pairs, max(allowed_accepts(far, pairs) for far in fars) + 1)
    if wanted > most:
        raise UserError(f"--far: found {max(fars):g}, for which {wanted} of the {pairs} scores of different identities "
                        f"in {name} would be kept, expected at most {most / pairs:.3g}")
    return wanted


class Highest:
    """The ``count`` highest of a stream of scores, float32. It takes memory for twice as many and for one addition."""

    def __init__(self, count: int) -> None:
        self.count, self.seen = count, 0
        self._kept = np.empty(0, np.float32)
        self._waiting: list[np.ndarray] = []
        self._waiting_size = 0
        self.floor = np.float32(-np.inf)  # scores below it cannot be among the highest any more

    def add(self, scores: np.ndarray, best: np.ndarray | None = None) -> None:
        """Add finite scores of any shape. ``best``, the highest score of each row, spares a look at low rows."""
        self.seen += scores.size
        if best is not None:
            scores = scores[best >= self.floor]
        chosen = scores[scores >= self.floor]
        if chosen.size:
            self._waiting.append(chosen)
            self._waiting_size += chosen.size
            if self._waiting_size >= max(self.count, 1 << 16):
                self._merge()

    def _merge(self) -> None:
        kept = np.concatenate([self._kept, *self._waiting])
        self._waiting, self._waiting_size = [], 0
        if len(kept) > self.count:
            kept = np.partition(kept, len(kept) - self.count)[len(kept) - self.count :]
        if len(kept) == self.count and self.count:
            self.floor = kept.min()
        self._kept = kept

    def descending(self) -> np.ndarray:
        """The scores, float32 ``(min(count, seen),)``, the highest first."""
        self._merge()
        return np.sort(self._kept)[::-1]


def thresholds_at(fars: Sequence[float], highest: np.ndarray, pairs: int) -> np.ndarray:
    """For each of ``fars`` the lowest threshold with at most this FAR: float32 (fars,), -inf if everything may be
    accepted.

    :param highest: the highest of the ``pairs`` scores, descending, at least :func:`scores_needed` of them.
    """
    slots = [allowed_accepts(far, pairs) for far in fars]
    return np.array([highest[k] if k < pairs else -np.inf for k in slots], np.float32)


def rates_at(fars: Sequence[float], highest: np.ndarray, pairs: int, accepted: np.ndarray, same_pairs: int,
             thresholds: np.ndarray) -> list[Rate]:
    """The entries of a table of TAR at FAR.

    :param accepted: int64 (fars,), how many of the ``same_pairs`` pairs of one identity lie above each threshold.
    """
    false_accepts = [int(np.searchsorted(-highest, -threshold, side="left")) if np.isfinite(threshold) else pairs
                     for threshold in thresholds]
    return [Rate(far, float(threshold), count / same_pairs, false, allowed_accepts(far, pairs))
            for far, threshold, count, false in zip(fars, thresholds, accepted.tolist(), false_accepts)]


def tar_at(fars: Sequence[float], same: np.ndarray, different: np.ndarray, name: str = "pairs") -> list[Rate]:
    """TAR at each of ``fars`` from all scores: float32 ``(S,)`` of one identity and ``(N,)`` of two.

    :raises UserError: if there are no scores of one identity, or none of two.
    """
    if not same.size:
        raise UserError(f"{name}: found no pairs of one identity, expected some to count true accepts of")
    needed = scores_needed(fars, different.size, name, most=max(different.size, 1))
    highest = np.sort(np.partition(different, different.size - needed)[different.size - needed :])[::-1]
    thresholds = thresholds_at(fars, highest, different.size)
    return rates_at(fars, highest, different.size, count_above(same, thresholds), same.size, thresholds)


def curve_places(kept: int) -> np.ndarray:
    """Places among the ``kept`` highest scores, int64 from 0, at geometric distances: thresholds of a curve to draw."""
    return np.unique(np.geomspace(1, kept, CURVE_POINTS).astype(np.int64)) - 1


def curve_at(highest: np.ndarray, places: np.ndarray, pairs: int, accepted: np.ndarray,
             same_pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """FAR and TAR, float64, at the thresholds ``highest[places]``, up to (1, 1) if all ``pairs`` scores were kept.

    :param accepted: int64, how many of the ``same_pairs`` lie above each threshold
    """
    false = np.searchsorted(-highest, -highest[places], side="left") / pairs
    true = accepted / same_pairs
    return (np.append(false, 1.0), np.append(true, 1.0)) if len(highest) == pairs else (false, true)


def count_above(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """The number of scores above each threshold: int64, in the shape of ``thresholds``."""
    return scores.size - np.searchsorted(np.sort(scores, axis=None), thresholds, side="right").astype(np.int64)


def thin_curve(same: np.ndarray, different: np.ndarray, points: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """FAR and TAR, float64, of a ROC curve to draw, at numbers of false accepts that grow geometrically.

    :param same: float32, all scores of pairs of one identity; ``different``: all of two
    """
    order, descending = np.sort(same), np.sort(different)[::-1]
    allowed = np.unique(np.geomspace(1, different.size, points).astype(np.int64)[:-1])
    thresholds = descending[np.concatenate([[0], allowed[allowed < different.size]])]
    false = np.searchsorted(-descending, -thresholds, side="left")
    true = same.size - np.searchsorted(order, thresholds, side="right")
    return np.append(false / different.size, 1.0), np.append(true / same.size, 1.0)
