# SPDX-License-Identifier: Apache-2.0
"""The pull to a teacher's embeddings: loss and gradient against float64 and against autograd."""
from __future__ import annotations

import numpy as np
import pytest

from recognition.head.distil import pull

RANDOM = np.random.RandomState(0)
X, T = RANDOM.standard_normal((7, 16)) * 3, RANDOM.standard_normal((7, 16)) * 50


def loss64(x: np.ndarray) -> float:
    """The definition: the sum of the squared distances of unit vectors, in float64."""
    unit, target = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, T))
    return float(np.square(unit - target).sum())


def test_loss_and_gradient_are_those_of_the_definition_in_float64() -> None:
    """Central differences of step 1e-5 are good to 1e-9; float32 gives 1e-6 of the largest number."""
    found = pull(X.astype(np.float32), T.astype(np.float32))
    assert found.d_features.dtype == np.float32
    assert found.loss == pytest.approx(loss64(X), rel=1e-6)
    wanted = np.zeros_like(X)
    for place in np.ndindex(*X.shape):
        step = np.zeros_like(X)
        step[place] = 1e-5
        wanted[place] = (loss64(X + step) - loss64(X - step)) / 2e-5
    np.testing.assert_allclose(found.d_features, wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())


def test_the_gradient_is_that_of_autograd_of_torch() -> None:
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(X).requires_grad_()
    unit, target = (torch.nn.functional.normalize(rows) for rows in (x, torch.from_numpy(T)))
    (unit - target).square().sum().backward()
    found = pull(X.astype(np.float32), T.astype(np.float32)).d_features
    np.testing.assert_allclose(found, x.grad.numpy(), rtol=0, atol=2e-6 * np.abs(found).max())


def test_lengths_of_the_teacher_do_not_count_and_no_gradient_is_left_where_both_agree() -> None:
    x = X.astype(np.float32)
    one, other = pull(x, T.astype(np.float32)), pull(x, (T * 1e-3).astype(np.float16))
    np.testing.assert_allclose(one.d_features, other.d_features, atol=1e-3 * np.abs(one.d_features).max())  # float16
    same = pull(x, 2 * x)
    assert abs(same.loss) < 1e-5 and np.abs(same.d_features).max() < 1e-6


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e30])
def test_features_without_a_usable_length_give_no_warning(value: float) -> None:
    found = pull(np.full((2, 4), value, np.float32), np.ones((2, 4), np.float32))
    assert np.isfinite(found.loss) and np.isfinite(found.d_features).all()
