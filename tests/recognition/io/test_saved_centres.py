# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from recognition.errors import UserError
from recognition.io.centres import (
    SavedCentres,
    begin_centres,
    centres_in_folder,
    disown_centres,
    find_centres,
    is_of_centres,
    pair_centres,
    rows_at,
    rows_between,
)
from recognition.io.checksums import write_npy
from recognition.io.params import write_arrays


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
    found = SavedCentres("x", shards(*rows)).mismatch(classes, k)
    assert (found == "") == fits
    assert fits or (f"found {sum(rows)} rows" in found and f"expected {classes * k} for {classes} classes" in found)


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
    assert found is not None and np.array_equal(found.momentum[1], np.asarray(found.centres[1]) + 1)
    parts = shards(*range(1, 12))  # 11 shards: fc7_10 comes after fc7_9, not after fc7_1
    write_arrays(path, {f"arg:fc7_{i}_weight": [parts[i]] for i in reversed(range(11))})
    found = find_centres(path)
    assert found is not None and np.array_equal(np.concatenate(found.centres), np.concatenate(parts))
    write_arrays(path, {"arg:fc7_weight": [parts[3]], "arg:fc7_bias": [parts[3][:, 0]]})
    found = find_centres(path)
    assert found is not None and found.rows == 4 and np.array_equal(found.bias[0], parts[3][:, 0])


def test_files_of_a_folder_go_with_the_checkpoint_that_they_were_saved_with(tmp_path: Path) -> None:
    """The recipes' own files, without a note, go with any; those of a run with its last checkpoint alone."""
    paths = [tmp_path / f"model-000{i}.params" for i in range(3)]
    for i, path in enumerate(paths):
        write_arrays(path, {"arg:conv_weight": [np.full(2, i)]})
    for i, part in enumerate(shards(2, 2)):
        for name in ("centers", "centers_mom"):
            write_arrays(tmp_path / f"{i}_{name}.param", [[part]])
    fits = lambda: [find_centres(path).mismatch(4, 1) == "" for path in paths]  # noqa: E731
    assert fits() == [True, True, True]
    begin_centres(tmp_path, 2)  # killed while writing
    assert fits() == [False, False, False] and len(list(tmp_path.glob("?_centers*.param"))) == 4
    pair_centres(tmp_path, paths[1])
    assert fits() == [False, True, False]
    found = find_centres(paths[0])
    assert found is not None and found.mismatch(4, 1) == (
        "they go with model-0001.params as it was when they were saved, not with model-0000.params, says centers.json")
    disown_centres(tmp_path)  # a run that writes no W; the note that there is stays true
    assert fits() == [False, True, False]
    write_arrays(paths[1], {"arg:conv_weight": [np.full(2, 9)]})
    assert fits() == [False, False, False]
    write_arrays(paths[2], {"arg:conv_weight": [np.full(2, 1)]})  # the same arrays under another number
    assert fits() == [False, False, True]
    assert centres_in_folder(tmp_path).mismatch(4, 1) == ""  # asked for by themselves


def test_fewer_processes_leave_no_files_of_more(tmp_path: Path) -> None:
    for i in range(11):
        for name in ("centers", "centers_mom"):
            write_arrays(tmp_path / f"{i}_{name}.param", [[np.ones((2, 3))]])
    begin_centres(tmp_path, 2)
    kept = ["0_centers.param", "0_centers_mom.param", "1_centers.param", "1_centers_mom.param"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [*kept, *(f"{name}.sha256" for name in kept), "centers.json"])


def test_centres_of_a_state_are_those_that_its_manifest_has_the_sums_of(tmp_path: Path) -> None:
    sums = {f"{name}-0.npy": write_npy(tmp_path / f"{name}-0.npy", np.full((3, 2), i, np.float32))
            for i, name in enumerate(("centres", "momentum", "bias"))}
    (tmp_path / "manifest.json").write_text(json.dumps({"files": sums}))
    found = centres_in_folder(tmp_path)
    assert found is not None and found.rows == 3
    shutil.copy(tmp_path / "momentum-0.npy", tmp_path / "centres-0.npy")
    with pytest.raises(UserError, match=r"centres-0\.npy: another file: found momentum-0\.npy"):
        centres_in_folder(tmp_path)
    (tmp_path / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"manifest\.json: not of a training state: maximum recursion"):
        centres_in_folder(tmp_path)


def test_files_that_somebody_left_do_not_go_with_a_checkpoint_saved_later(tmp_path: Path) -> None:
    path = tmp_path / "model-0001.params"
    write_arrays(path, {"arg:conv_weight": [np.ones(2)]})
    disown_centres(tmp_path)
    assert not (tmp_path / "centers.json").exists()
    write_arrays(tmp_path / "0_centers.param", [[np.ones((2, 3))]])
    disown_centres(tmp_path)
    found = find_centres(path)
    assert found is not None
    assert found.mismatch(2, 1).startswith("they were saved before the checkpoints there, not with")
    for text in "[]", "[" * 100_000:
        (tmp_path / "centers.json").write_text(text)
        with pytest.raises(UserError, match=r"centers\.json: not a note of class centres"):
            find_centres(path)


def test_shards_that_do_not_go_together(tmp_path: Path) -> None:
    path = tmp_path / "model-0001.params"
    write_arrays(path, {f"arg:fc7_{i}_weight": [np.ones((2, 3))] for i in (0, 2)})
    found = find_centres(path)
    assert found is not None and found.mismatch(4, 1) == "found no fc7_1_weight, expected all shards from 0 on"
    write_arrays(path, {f"arg:fc7_{i}_weight": [np.ones((2, 3 + i))] for i in range(2)})
    with pytest.raises(UserError, match=r"shards of \(2, 3\) and \(2, 4\), expected rows of one length"):
        find_centres(path)
    for name in "fc7_00_weight", f"fc7_{'9' * 5000}_weight":
        write_arrays(path, {f"arg:{name}": [np.ones((2, 3))]})
        assert find_centres(path) is None
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
