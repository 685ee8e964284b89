# SPDX-License-Identifier: Apache-2.0
"""Receiver operating characteristic of pairs: the shares of pairs of one identity and of two that a threshold accepts.

A pair is accepted when its distance is at most the threshold. Everything is exact: each distinct distance is a
threshold, equal distances are accepted together, and counts are integers until the last division.
"""
from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from recognition.errors import UserError


class Roc(NamedTuple):
    """Points of the curve, float64, from accepting nothing (threshold -inf) to accepting everything."""

    fpr: np.ndarray  # false accept rate
    tpr: np.ndarray  # true accept rate
    thresholds: np.ndarray

    @property
    def area(self) -> float:
        """The chance that a pair of one identity is nearer than a pair of two, a tie counted half."""
        return float(np.sum(np.diff(self.fpr) * (self.tpr[1:] + self.tpr[:-1])) / 2)


def check_both_classes(issame: np.ndarray, name: str) -> None:
    """Refuse pairs of one class alone: the rate of the other cannot be measured.

    :raises UserError: if ``issame``, bool (P,), is all True or all False.
    """
    if issame.all() or not issame.any():
        found = "of the same identity" if issame.any() else "of different identities"
        raise UserError(f"{name}: all {len(issame)} pairs are {found}, expected pairs of both kinds")


def roc(distances: ArrayLike, issame: ArrayLike, name: str = "pairs") -> Roc:
    """The full curve, a point for each distinct distance.

    It equals ``sklearn.metrics.roc_curve(issame, -distances, drop_intermediate=False)`` with thresholds of the other
    sign.

    :param distances: float ``(P,)``, finite
    :param issame: bool ``(P,)``
    :raises UserError: if ``issame`` is all True or all False
    """
    distances, issame = np.asarray(distances, np.float64), np.asarray(issame, bool)
    check_both_classes(issame, name)
    order = np.argsort(distances, kind="stable")
    ascending = distances[order]
    last_of_equals = np.append(np.flatnonzero(np.diff(ascending)), len(ascending) - 1)
    accepted = np.concatenate(([0], last_of_equals + 1))
    true_accepts = np.concatenate(([0], np.cumsum(issame[order])[last_of_equals]))
    positives = int(true_accepts[-1])
    fpr = (accepted - true_accepts) / (len(issame) - positives)
    return Roc(fpr, true_accepts / positives, np.concatenate(([-np.inf], ascending[last_of_equals])))


def tar_at_far(distances: ArrayLike, issame: ArrayLike, far: ArrayLike, name: str = "pairs") -> np.ndarray:
    """True accept rate at the highest threshold with a false accept rate of at most ``far``; float64, in its shape.

    It is not interpolated. A ``far`` below 1 / (number of different pairs) allows no false accept.
    """
    fpr, tpr, _ = roc(distances, issame, name)
    return tpr[np.searchsorted(fpr, np.asarray(far, np.float64), side="right") - 1]
