# SPDX-License-Identifier: Apache-2.0
"""The products and the exponential under the CPU shard, against float64."""
from __future__ import annotations

import math

import numba
import numpy as np
import pytest

from recognition.engines.cpu import kernels
from recognition.engines.cpu.tiles import NARROW_COLUMNS, WIDE_COLUMNS, dot, multiply, prefetch


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("width", sorted({WIDE_COLUMNS, NARROW_COLUMNS, 1}))
@pytest.mark.parametrize("rows", [1, 4, 5, 6, 8, 13])
def test_a_strip_against_float64(rows: int, width: int, add: bool) -> None:
    """Rows of both operands are gathered. Tolerance: 37 terms of size 1, each rounded to 6e-8."""
    random, depth = np.random.default_rng(rows), 37
    a, b = (random.standard_normal((n, m), dtype=np.float32) for n, m in ((20, depth), (60, width + 3)))
    c = random.standard_normal((rows, width + 5), dtype=np.float32)
    before, a_index, b_index = c.copy(), random.permutation(20)[:rows], random.permutation(60)[:depth]
    multiply(width, rows, a.ctypes.data, a_index.ctypes.data, 4 * depth, 4, b.ctypes.data, b_index.ctypes.data,
             4 * (width + 3), c.ctypes.data, 4 * (width + 5), depth, int(add))
    expected = a[a_index].astype(np.float64) @ b[b_index, :width] + (before[:, :width] if add else 0)
    np.testing.assert_allclose(c[:, :width], expected, rtol=0, atol=2e-5)
    np.testing.assert_array_equal(c[:, width:], before[:, width:])  # nothing beside the strip


@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 512, 515])
def test_inner_products_of_any_length(length: int) -> None:
    a, b = np.random.default_rng(length).standard_normal((2, length), dtype=np.float32)
    prefetch_all(a)
    assert dot(a, b) == pytest.approx(float(a.astype(np.float64) @ b), abs=1e-4)


@numba.njit
def prefetch_all(array):  # type: ignore[no-untyped-def]
    prefetch(array.ctypes.data, array.nbytes)


def test_the_exponential_is_good_to_float32() -> None:
    x = np.concatenate([np.linspace(-86.9, 80, 40001), [0.0, -1e-8]]).astype(np.float32)
    found = np.array([kernels._exp(value) for value in x], np.float64)
    np.testing.assert_allclose(found, np.exp(x.astype(np.float64)), rtol=3e-7)
    assert [kernels._exp(np.float32(value)) for value in (-87.5, -1e30, -np.inf)] == [0, 0, 0]
    assert math.isnan(kernels._exp(np.float32(np.nan)))
    assert not np.isfinite(kernels._exp(np.float32(np.inf)))  # a logit above the maximum: the loss must show it


@pytest.mark.parametrize("rows, sub_centres", [(1, 1), (191, 1), (192, 1), (5000, 1), (100_000, 1), (4998, 3),
                                               (7007, 7), (10, 10)])
def test_groups_cover_the_shard_and_split_no_class(rows: int, sub_centres: int) -> None:
    bounds = kernels.bounds_of(rows, sub_centres)
    assert bounds[0] == 0 and bounds[-1] == rows and np.all(np.diff(bounds) > 0)
    assert np.all(bounds[:-1] % sub_centres == 0) and len(bounds) <= kernels.MOST_GROUPS + 1


@pytest.mark.parametrize("columns", [1, 16, 17, 64, 150])
def test_panels_hold_blocks_of_columns(columns: int) -> None:
    matrix = np.arange(7 * columns, dtype=np.float32).reshape(7, columns)
    blocks, start = kernels.column_blocks(matrix), 0
    while start < columns:
        width = next(w for w in (WIDE_COLUMNS, NARROW_COLUMNS, 1) if columns - start >= w)
        block = blocks[start * 7 : (start + width) * 7].reshape(7, width)
        np.testing.assert_array_equal(block, matrix[:, start : start + width])
        start += width
