# SPDX-License-Identifier: Apache-2.0
"""The ways that the bench compares find the same, and the table has a line for each."""
from __future__ import annotations

import pytest

from bench.million import main, run_way


def test_the_ways_agree() -> None:
    """Ranks of 132 probes among 3,000; products of another order may round a score past another: 1e-3 of the pairs."""
    found = {way: run_way(way, 3000, 132, 64) for way in ("blocks", "whole", "by probe")}
    assert 0.01 < found["blocks"]["rank1"] < 0.99  # so there is something to agree on
    for way in ("whole", "by probe"):
        assert found[way]["cmc"] == pytest.approx(found["blocks"]["cmc"], abs=1e-3)
    assert found["whole"]["tar"] == pytest.approx(found["blocks"]["tar"], abs=1e-3)


@pytest.mark.slow
def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--distractors", "2000", "--probes", "100", "--dim", "8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:10].strip() for line in lines[2:]] == ["blocks", "products", "blocks", "whole", "blocks", "by probe"]


def test_all_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--pairs-of", "500", "--dim", "8"]) == 0
    assert "124750 scores, D = 8" in capsys.readouterr().out
