# SPDX-License-Identifier: Apache-2.0
"""Ranks and open-set identification against loops over probes, gallery entries and thresholds."""
from __future__ import annotations

import numpy as np
import pytest

from recognition.errors import UserError
from recognition.evaluation.identification import Search, cmc, search, tpir_at


def case(seed: int, probes: int = 40, gallery: int = 25):
    """Embeddings of few small whole numbers: products are exact in float32, and ties are many."""
    random = np.random.default_rng(seed)
    return (random.integers(-2, 3, (probes, 6)).astype(np.float32), random.integers(0, 12, probes),
            random.integers(-2, 3, (gallery, 6)).astype(np.float32), random.integers(0, 8, gallery))


def by_loops(probes, probe_ids, gallery, gallery_ids):
    for probe, identity in zip(probes.astype(int).tolist(), probe_ids):
        scores = [(sum(a * b for a, b in zip(probe, entry)), who)
                  for entry, who in zip(gallery.astype(int).tolist(), gallery_ids)]
        mates = [score for score, who in scores if who == identity]
        others = [score for score, who in scores if who != identity]
        rank = 1 + sum(score >= max(mates) for score in others) if mates else 0
        yield max(mates, default=-np.inf), max(others, default=-np.inf), rank


@pytest.mark.parametrize("block_bytes", [1, 1000, 1 << 20])
@pytest.mark.parametrize("seed", range(3))
def test_search_against_loops(seed, block_bytes, monkeypatch):
    monkeypatch.setattr("recognition.evaluation.identification.BLOCK_BYTES", block_bytes)
    arguments = case(seed)
    found = search(*arguments)
    mate, other, rank = zip(*by_loops(*arguments))
    np.testing.assert_array_equal(found.mate, mate)
    np.testing.assert_array_equal(found.other, other)
    np.testing.assert_array_equal(found.rank, rank)
    assert 0 < found.mated.sum() < 40


@pytest.mark.parametrize("seed", range(3))
def test_cmc_and_tpir_against_counting(seed):
    arguments = case(seed)
    found = search(*arguments)
    rows = list(by_loops(*arguments))
    ranks = [rank for _, _, rank in rows if rank]
    np.testing.assert_array_equal(cmc(found.rank[found.mated], 30),
                                  [sum(rank <= k for rank in ranks) / len(ranks) for k in range(1, 31)])
    strangers = [other for _, other, rank in rows if not rank]
    for fpir, result in zip((0, 0.1, 0.5, 1), tpir_at((0, 0.1, 0.5, 1), found)):
        best = 0.0
        for threshold in (*np.arange(-30, 30, 0.5), -np.inf):
            if sum(score > threshold for score in strangers) / len(strangers) <= fpir:
                hits = sum(rank == 1 and mate > threshold for mate, _, rank in rows)
                best = max(best, hits / len(ranks))
        assert result.tpir == best


def test_a_network_that_maps_all_to_one_point_identifies_nobody():
    found = search(np.ones((5, 4), np.float32), np.arange(5), np.ones((5, 4), np.float32), np.arange(5))
    np.testing.assert_array_equal(found.rank, 5)
    assert cmc(found.rank, 5).tolist() == [0, 0, 0, 0, 1]


def test_probes_of_one_kind_are_said():
    found = Search(np.ones(3, np.float32), np.zeros(3, np.float32), np.ones(3, np.int64))
    with pytest.raises(UserError, match=r"^G1: all 3 probes are in the gallery, expected some of both kinds$"):
        tpir_at((0.1,), found, "G1")
    with pytest.raises(UserError, match="all 3 probes are missing from it"):
        tpir_at((0.1,), found._replace(rank=np.zeros(3, np.int64)))
