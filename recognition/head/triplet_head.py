# SPDX-License-Identifier: Apache-2.0
"""The head of a triplet run. It has no class centres: nothing to gather, to update or to save."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recognition.head.shard import Shard
from recognition.head.sharded import HeadResult
from recognition.head.triplet_loss import TripletLoss
from recognition.processes.communicator import Communicator


@dataclass
class TripletHead:
    """A ``Head`` for batches that hold, device by device, anchors, then positives, then negatives.

    Its loss is the mean over the triplets of the global batch. Its accuracy is the share of triplets with
    ``|a - p|^2 < |a - n|^2`` on normalised embeddings, without the margin. It ignores labels: the batch already
    consists of triplets.
    """

    loss: TripletLoss
    device_batch: int  # images of a device, a multiple of 3
    communicator: Communicator
    shards: Sequence[Shard] = ()

    def forward_backward(self, features: np.ndarray, labels: np.ndarray) -> HeadResult:
        by_device = features.reshape(-1, 3, self.device_batch // 3, features.shape[1])
        thirds = by_device.swapaxes(0, 1)  # (3, devices, triplets a device, D)
        losses, gradient, closer = self.loss(thirds.reshape(3, -1, features.shape[1]))
        loss, hits, count = self.communicator.all_reduce(np.array([losses.sum(), closer.sum(), len(losses)]))
        d_features = (gradient / count).reshape(thirds.shape).swapaxes(0, 1).reshape(features.shape)
        return HeadResult(float(loss / count), float(hits / count), d_features.astype(np.float32))

    def target_angles(self) -> None:
        """Return None: there are no centres."""

    def step(self, lr: float, measure: bool = False) -> None:
        """Do nothing: there are no centres."""

    @property
    def finite(self) -> bool:
        """True: there is no centre that could overflow."""
        return True

    def leave_out(self) -> None:
        """Do nothing: there are no centres."""

    def running(self) -> list[float]:
        """Nothing: there is no margin between images and centres."""
        return []

    def go_on(self, steps: int, running: Sequence[float]) -> None:
        """Do nothing: the loss is that of the batch alone."""
