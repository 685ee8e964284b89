# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from recognition.head.sharded import HeadResult
from recognition.head.triplet_head import TripletHead
from recognition.head.triplet_loss import TripletLoss
from recognition.processes.communicator import SingleProcess

LOSSES = pytest.mark.parametrize("loss", [TripletLoss(0.3), TripletLoss(0.35, angular=True)],
                                 ids=["triplet", "atriplet"])
TRIPLETS, DIM = 12, 8


def run(triplets: np.ndarray, loss: TripletLoss, devices: int) -> tuple[HeadResult, np.ndarray]:
    """The head's result on triplets (T, 3, D), laid out over the devices; its gradient laid out as the triplets."""
    each = len(triplets) // devices
    parts = triplets.reshape(devices, each, 3, DIM)
    batch = parts.swapaxes(1, 2).reshape(-1, DIM)  # anchors, positives, negatives of each device
    head = TripletHead(loss, 3 * each, SingleProcess())
    result = head.forward_backward(batch, np.zeros(len(batch), np.int64))
    head.step(0.1)
    assert result.d_features.dtype == np.float32 and not head.shards
    return result, result.d_features.reshape(devices, 3, each, DIM).swapaxes(1, 2).reshape(triplets.shape)


def sample() -> np.ndarray:
    random = np.random.RandomState(0)
    anchors = random.standard_normal((TRIPLETS, 1, DIM))
    return (anchors + random.standard_normal((TRIPLETS, 3, DIM)) * [[[0], [0.7], [0.9]]]).astype(np.float32)


@LOSSES
def test_mean_loss_accuracy_and_gradient_of_the_mean(loss: TripletLoss) -> None:
    """Tolerance 1e-6: the sums are float64, the gradient is rounded to float32."""
    triplets = sample()
    result, gradient = run(triplets, loss, 1)
    losses, expected, closer = loss(triplets.swapaxes(0, 1))
    assert result.loss == pytest.approx(losses.mean(), rel=1e-12)
    assert result.accuracy == closer.mean()
    np.testing.assert_allclose(gradient, expected.swapaxes(0, 1) / TRIPLETS, rtol=1e-6, atol=1e-9)


@LOSSES
@pytest.mark.parametrize("devices", [2, 3])
def test_the_number_of_devices_does_not_matter(loss: TripletLoss, devices: int) -> None:
    one, gradient = run(sample(), loss, 1)
    several, laid_out_otherwise = run(sample(), loss, devices)
    assert several.loss == pytest.approx(one.loss, rel=1e-12)
    assert several.accuracy == one.accuracy
    np.testing.assert_array_equal(laid_out_otherwise, gradient)


class TwoProcesses(SingleProcess):
    """A communicator as seen by one of two processes that hold the same triplets."""

    size = 2

    def all_reduce(self, array: np.ndarray) -> np.ndarray:
        return 2 * array


def test_the_mean_is_over_all_processes() -> None:
    batch = sample().swapaxes(0, 1).reshape(-1, DIM)
    labels = np.zeros(len(batch), np.int64)
    alone, both = (TripletHead(TripletLoss(0.3), len(batch), communicator()).forward_backward(batch, labels)
                   for communicator in (SingleProcess, TwoProcesses))
    assert both.loss == pytest.approx(alone.loss)
    assert both.accuracy == alone.accuracy
    np.testing.assert_allclose(both.d_features, alone.d_features / 2, rtol=1e-6)
