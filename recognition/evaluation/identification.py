# SPDX-License-Identifier: Apache-2.0
"""Identification: which identity of a gallery is it? Ranks, the CMC curve, and TPIR at FPIR for probes that may be
missing from the gallery.

Scores are inner products; higher is nearer. A tie counts against the probe: its mate's rank is one more than the number
of others that score at least as high, so a network that maps everything to one point identifies nobody.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from recognition.errors import UserError
from recognition.evaluation.rates import allowed_accepts

BLOCK_BYTES = 64 << 20  # of one block of scores


class Search(NamedTuple):
    """The result of a search of the gallery for P probes."""

    mate: np.ndarray  # float32 (P,): highest score of the probe's own identity, -inf if the gallery lacks it
    other: np.ndarray  # float32 (P,): highest score of any other identity, -inf if there is none
    rank: np.ndarray  # int64 (P,): rank of the mate, from 1; 0 if the gallery lacks it

    @property
    def mated(self) -> np.ndarray:
        """True for each probe whose identity is in the gallery: bool ``(P,)``."""
        return self.rank > 0


class Tpir(NamedTuple):
    """True positive identification rate at a false positive identification rate."""

    fpir: float  # the wanted one
    threshold: float  # an identification: the best score lies above it
    tpir: float

    def as_json(self) -> dict[str, Any]:
        """The fields for a JSON file, with None for a threshold that is not finite."""
        return {**self._asdict(), "threshold": self.threshold if np.isfinite(self.threshold) else None}


def search(probes: np.ndarray, probe_ids: np.ndarray, gallery: np.ndarray, gallery_ids: np.ndarray) -> Search:
    """Search a gallery for each probe, in blocks of probes.

    :param probes: float32 ``(P, D)``, ``gallery`` float32 ``(G, D)``, normalised
    :param probe_ids: int64 ``(P,)``, ``gallery_ids`` int64 ``(G,)``. If an identity has several entries, the best one
        counts, and the others do not lower its rank.
    """
    count = len(probes)
    result = Search(np.full(count, -np.inf, np.float32), np.full(count, -np.inf, np.float32), np.zeros(count, np.int64))
    step = max(1, BLOCK_BYTES // (8 * max(1, len(gallery))))  # for scores and their mask
    for start in range(0, count, step):
        rows = slice(start, min(count, start + step))
        scores = probes[rows] @ gallery.T
        own = probe_ids[rows, None] == gallery_ids[None, :]
        mated = own.any(axis=1)
        result.mate[rows] = np.max(scores, axis=1, where=own, initial=-np.inf)
        scores[own] = -np.inf
        result.other[rows] = scores.max(axis=1, initial=-np.inf)
        above = np.count_nonzero(scores >= result.mate[rows, None], axis=1)
        result.rank[rows] = np.where(mated, above + 1, 0)
    return result


def cmc(ranks: np.ndarray, up_to: int) -> np.ndarray:
    """The share of mated probes whose mate's rank is at most 1, 2, ..., ``up_to``: float64 ``(up_to,)``.

    :param ranks: int64, of mated probes, from 1.
    """
    if not len(ranks):
        return np.full(up_to, np.nan)
    return np.cumsum(np.bincount(np.minimum(ranks, up_to + 1), minlength=up_to + 2))[1 : up_to + 1] / len(ranks)


def tpir_at(fpirs: Sequence[float], found: Search, name: str = "gallery") -> list[Tpir]:
    """TPIR at each FPIR: NIST's open-set identification with rank 1.

    At most ``fpir U`` of the U probes that are not in the gallery may find somebody above the threshold. Any other
    probe counts as identified if its best match is its mate and lies above the threshold.

    :raises UserError: if all probes are in the gallery, or none is.
    """
    mated = found.mated
    if mated.all() or not mated.any():
        what = "in the gallery" if mated.any() else "missing from it"
        raise UserError(f"{name}: all {len(mated)} probes are {what}, expected some of both kinds")
    unmated = np.sort(found.other[~mated])[::-1]
    thresholds = []
    for fpir in fpirs:
        allowed = allowed_accepts(fpir, len(unmated))
        thresholds.append(unmated[allowed] if allowed < len(unmated) else np.float32(-np.inf))
    right = found.mate[mated & (found.rank == 1)]
    return [Tpir(fpir, float(threshold), np.count_nonzero(right > threshold) / int(mated.sum()))
            for fpir, threshold in zip(fpirs, thresholds)]
