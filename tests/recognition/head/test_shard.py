# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from recognition.head import shard
from recognition.head.shard import (
    INITIAL_STD,
    STREAM_CLASSES,
    initial_centres,
    initial_pieces,
    split_classes,
    target_columns,
)


@pytest.mark.parametrize("classes, parts", [(10, 1), (10, 3), (11, 4), (85742, 8), (3, 3)])
def test_shards_differ_by_at_most_one_class_and_cover_all(classes: int, parts: int) -> None:
    ranges = split_classes(classes, parts)
    sizes = [stop - start for start, stop in ranges]
    assert ranges[0][0] == 0 and ranges[-1][1] == classes
    assert all(left[1] == right[0] for left, right in zip(ranges, ranges[1:]))
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("sub_centres", [1, 3])
def test_initial_centres_do_not_depend_on_the_cut(sub_centres: int) -> None:
    classes = 2 * STREAM_CLASSES + 77
    whole = initial_centres(7, 0, classes, sub_centres, 4)
    for parts in (2, 3, 5):
        pieces = [initial_centres(7, start, stop, sub_centres, 4) for start, stop in split_classes(classes, parts)]
        assert np.array_equal(np.concatenate(pieces), whole)
    assert whole.std() == pytest.approx(INITIAL_STD, rel=0.02)  # 33,000 draws: 0.4 % is one standard error
    assert not np.array_equal(initial_centres(8, 0, 10, sub_centres, 4), whole[: 10 * sub_centres])


@pytest.mark.parametrize("sub_centres", [1, 3])
def test_pieces_of_initial_centres_are_the_whole(sub_centres: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In their order, however many threads make them."""
    monkeypatch.setattr(shard, "ROWS_AT_ONCE", 100)
    for start, stop in ((5, 1234), (7, 7)):
        found = np.full(((stop - start) * sub_centres, 4), np.nan, np.float32)
        low = 0
        for rows, values in initial_pieces(7, start, stop, sub_centres, 4):
            assert rows.start == low and len(values) <= 100
            found[rows], low = values, rows.stop
        assert low == len(found) and np.array_equal(found, initial_centres(7, start, stop, sub_centres, 4))


def test_columns_of_labels_outside_the_shard_are_minus_one() -> None:
    columns = target_columns(np.array([0, 4, 5, 9, 10]), 5, 10, 3)
    assert columns.tolist() == [-1, -1, 0, 12, -1]
