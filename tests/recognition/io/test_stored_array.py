# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from recognition.errors import UserError
from recognition.io.checksums import write_npy
from recognition.io.stored_array import open_npy


@pytest.fixture
def whole(tmp_path: Path) -> np.ndarray:
    array = np.random.default_rng(0).random((5000, 3), np.float32)
    write_npy(tmp_path / "a.npy", array)
    return array


def test_rows_are_those_of_the_array_in_memory(whole: np.ndarray, tmp_path: Path) -> None:
    stored = open_npy(tmp_path / "a.npy")
    assert stored.shape == whole.shape and stored.dtype == whole.dtype and len(stored) == len(whole)
    assert np.array_equal(stored, whole)
    for part in (slice(0, 0), slice(7, 4), slice(4990, 9000), slice(None), slice(3, 40)):
        assert np.array_equal(stored[part], whole[part]) and np.array_equal(stored[part][1:3], whole[part][1:3])
    random = np.random.default_rng(1)
    for rows in (np.arange(0), np.array([4999]), np.array([4, 4, 3]), np.arange(5000)[::-1], np.arange(0, 5000, 3),
                 random.integers(0, 5000, 50), random.permutation(5000)):
        assert np.array_equal(stored[rows], whole[rows])
    assert np.asarray(stored[:2], np.float64).dtype == np.float64


def test_rows_that_are_not_there(whole: np.ndarray, tmp_path: Path) -> None:
    stored = open_npy(tmp_path / "a.npy")
    for rows in ([5000], [-1], [3, 7000]):
        with pytest.raises(IndexError):
            stored[np.array(rows)]
    os.truncate(tmp_path / "a.npy", 1000)
    assert np.array_equal(stored[:50], whole[:50])
    with pytest.raises(UserError, match=r"a\.npy: it was cut short while it was used: it ends at byte 1000, "):
        np.asarray(stored)
    os.replace(tmp_path / "a.npy", tmp_path / "b.npy")  # another file of that name is another array
    write_npy(tmp_path / "a.npy", whole + 1)
    assert np.array_equal(stored[:50], whole[:50])


def test_bad_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.ones((4, 5), order="F"))
    with pytest.raises(ValueError, match=r"\(4, 5\), expected rows of numbers"):
        open_npy(path)
    np.save(path, np.array([{}]), allow_pickle=True)
    with pytest.raises(ValueError, match="expected rows of numbers"):
        open_npy(path)
    np.save(path, np.ones(3))
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError):
            open_npy(path)
    path.write_bytes(content[:10] + b"\xff\xfe{".ljust(len(content) - 34) + content[-24:])
    with pytest.raises(ValueError, match="a header that cannot be read"):
        open_npy(path)
    np.save(path, np.ones(1))
    path.write_bytes(path.read_bytes().replace(b"(1,), }   ", b"(True,), }"))
    with pytest.raises(ValueError, match=r"\(True,\), expected rows of numbers"):
        open_npy(path)
    path.write_bytes(content + b"x")
    with pytest.raises(ValueError, match="found 25 bytes for float64"):
        open_npy(path)


def test_no_more_is_in_memory_than_the_rows_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    write_npy(path, np.zeros((100_000, 100), np.float32))
    tracemalloc.start()
    try:
        stored = open_npy(path)
        assert stored[np.arange(10, 100_000, 9999)].shape == (10, 100)
        assert np.asarray(stored[40_000:40_100]).shape == (100, 100)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
