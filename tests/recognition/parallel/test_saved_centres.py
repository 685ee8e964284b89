# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from recognition.errors import UserError
from recognition.parallel.saved_centres import SavedCentres, find_centres, is_of_centres, rows_at, rows_between
from recognition.params_file import write_arrays


def shards(*rows: int, dim: int = 3) -> list[np.ndarray]:
    whole = np.random.RandomState(0).rand(sum(rows), dim).astype(np.float32)
    return np.split(whole, np.cumsum(rows)[:-1])


def test_rows_between_joins_and_cuts() -> None:
    parts = shards(4, 0, 3, 5)
    whole = np.concatenate(parts)
    for start in range(12):
        for stop in range(start + 1, 13):
            assert np.array_equal(np.concatenate(rows_between(parts, start, stop)), whole[start:stop])


def test_rows_at_gathers_in_any_order_and_again() -> None:
    parts = shards(4, 0, 3, 5)
    rows = np.array([11, 0, 4, 3, 3, 6, 7])
    found = rows_at(parts, rows)
    assert found.dtype == np.float32 and np.array_equal(found, np.concatenate(parts)[rows])
    assert rows_at(parts, rows[:0]).shape == (0, 3)
    with pytest.raises(IndexError):
        rows_at(parts, np.array([12]))


@pytest.mark.parametrize(("rows", "classes", "k", "fits"), [
    ((11,), 11, 1, True), ((6, 5), 11, 1, True), ((6, 6), 11, 1, True), ((33,), 11, 3, True), ((18, 18), 11, 3, True),
    ((2,) * 10, 11, 1, True),  # as the recipes cut 11 classes for ten devices: nine rows of no class
    ((6, 6), 10, 1, False), ((7, 5), 11, 1, False), ((11,), 11, 3, False), ((12,), 11, 1, False)])
def test_which_numbers_of_classes_fit(rows: tuple[int, ...], classes: int, k: int, fits: bool) -> None:
    misfit = SavedCentres("x", shards(*rows)).misfit(classes, k)
    assert (misfit == "") == fits
    assert fits or (f"found {sum(rows)} rows" in misfit and f"expected {classes * k} for {classes} classes" in misfit)


def test_w_is_found_in_the_checkpoint_before_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "model-0001.params"
    write_arrays(path, {"arg:conv_weight": [np.ones(2)]})
    assert find_centres(path) is None
    for i, part in enumerate(shards(2, 2)):
        write_arrays(tmp_path / f"{i}_centers.param", [[part]])
    found = find_centres(path)
    assert found is not None and found.rows == 4 and found.momentum == []
    for i, part in enumerate(shards(2, 2)):
        write_arrays(tmp_path / f"{i}_centers_mom.param", [[part + 1]])
    found = find_centres(path)
    assert found is not None and np.array_equal(found.momentum[1], found.centres[1] + 1)
    parts = shards(*range(1, 12))  # 11 shards: fc7_10 comes after fc7_9, not after fc7_1
    write_arrays(path, {f"arg:fc7_{i}_weight": [parts[i]] for i in reversed(range(11))})
    found = find_centres(path)
    assert found is not None and np.array_equal(np.concatenate(found.centres), np.concatenate(parts))
    write_arrays(path, {"arg:fc7_weight": [parts[3]], "arg:fc7_bias": [parts[3][:, 0]]})
    found = find_centres(path)
    assert found is not None and found.rows == 4 and np.array_equal(found.bias[0], parts[3][:, 0])


def test_shards_that_do_not_go_together(tmp_path: Path) -> None:
    path = tmp_path / "model-0001.params"
    write_arrays(path, {f"arg:fc7_{i}_weight": [np.ones((2, 3))] for i in (0, 2)})
    found = find_centres(path)
    assert found is not None and found.misfit(4, 1) == "found no fc7_1_weight, expected all shards from 0 on"
    write_arrays(path, {f"arg:fc7_{i}_weight": [np.ones((2, 3 + i))] for i in range(2)})
    with pytest.raises(UserError, match=r"shards of \(2, 3\) and \(2, 4\), expected rows of one length"):
        find_centres(path)
    write_arrays(path, {"arg:fc7_weight": [np.ones((2, 3))], "arg:fc7_bias": [np.ones(3)]})
    with pytest.raises(UserError, match="3 biases for 2 rows"):
        find_centres(path)
    write_arrays(path, {"arg:x": [np.ones(1)]})
    write_arrays(tmp_path / "0_centers.param", [[np.ones((2, 3))], [np.ones((2, 3))]])
    with pytest.raises(UserError, match="found 2 arrays, expected one"):
        find_centres(path)


def test_names_of_w() -> None:
    assert all(map(is_of_centres, ("arg:fc7_weight", "fc7_bias", "fc7_12_weight")))
    assert not any(map(is_of_centres, ("fc7_gamma", "arg:pre_fc7_weight", "aux:fc7_weight", "fc7_0_bias")))
