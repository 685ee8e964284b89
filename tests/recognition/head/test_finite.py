# SPDX-License-Identifier: Apache-2.0
"""Whether all numbers of many MXNet arrays are finite."""
from __future__ import annotations

import numpy as np
import pytest

from recognition.engines.mxnet.finite import all_finite, all_usable
from recognition.engines.mxnet.imports import mx


@pytest.mark.parametrize("count", [1, 99, 100, 101, 450])
def test_one_bad_number_among_more_arrays_than_one_call_takes(count: int) -> None:
    arrays = {str(i): mx.nd.full((2, i % 3 + 1), i + 1) for i in range(count)}
    assert all_finite(arrays) and all_finite({}, arrays, {})
    for bad in (np.nan, np.inf, -np.inf):
        arrays[str(count - 1)][1, 0] = bad
        assert not all_finite(arrays) and not all_finite({"sound": mx.nd.ones(3)}, arrays)


def test_numbers_whose_squares_overflow_are_finite_all_the_same() -> None:
    arrays = {"small": mx.nd.ones((2, 3)), "large": mx.nd.full((2, 3), -1e38)}
    assert all_finite(arrays) and not all_usable(arrays)
    assert all_usable({"small": arrays["small"]}) and not all_usable({"nan": mx.nd.array([0.0, np.nan])})
    assert all_finite({}) and all_finite() and all_usable({})
