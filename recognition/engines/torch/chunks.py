# SPDX-License-Identifier: Apache-2.0
"""What a shard in chunks holds of a step: the batch's targets, numbers that make gradients, and one chunk of W."""
from __future__ import annotations

from typing import NamedTuple

import numpy as np

from recognition.engines.torch.imports import torch


class Targets(NamedTuple):
    """The rows of the batch whose class lies in this shard, n of them, ascending by class."""

    batch: np.ndarray  # (n,) int64, their places in the batch
    first: np.ndarray  # (n,) int64, the first selected row of their class
    nearest: np.ndarray  # (n,) int64, the selected row of their nearest sub-centre
    units: torch.Tensor  # (n, D), that centre's unit vector; the centre itself if the head does not normalise
    places: torch.Tensor  # (3, n), the three arrays on the device: each copy there would wait for it


class Given(NamedTuple):
    """The head's numbers for the gradients of a batch, as in :meth:`recognition.head.shard.Shard.gradient`."""

    log_sums: np.ndarray  # (B,)
    rows: int  # of the mean loss
    target_gradients: np.ndarray  # (B,)

    def weights(self, here: np.ndarray, scale: float) -> list[np.ndarray]:
        """The arrays of :class:`Weights`, float32. ``here`` (n,): the rows of the batch that have targets."""
        with np.errstate(invalid="ignore", over="ignore"):
            reference = self.log_sums.astype(np.float32)
            rest = np.exp(reference - self.log_sums) * (scale / self.rows)  # with the digits that the reference lost
            targets = self.target_gradients[here] / rest[here]
        return [array.astype(np.float32) for array in (reference[:, None], rest[:, None], targets)]


class Weights(NamedTuple):
    """Numbers that make a chunk's logits z the gradient by its similarities: ``exp(z - reference) * factor``."""

    reference: torch.Tensor  # (B, 1)
    factor: torch.Tensor  # (B, 1)
    targets: torch.Tensor  # (n,): what stands in place of the exponential, for each of the targets


class Chunk(NamedTuple):
    """Selected rows ``low .. high - 1`` on the device."""

    low: int
    high: int
    centres: torch.Tensor  # (rows, D): a view of W, or a copy
    inverse: torch.Tensor | None  # (rows, 1), of their norms; None if the head does not normalise
    units: torch.Tensor  # (rows, D)

    def through_norm(self, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient by the centres, from that by their unit vectors, in place: ``(g - (g . w^) w^) / |w|``."""
        if self.inverse is None:
            return gradient
        along = torch.linalg.vecdot(gradient, self.units).unsqueeze(1)
        return gradient.addcmul_(self.units, along, value=-1).mul_(self.inverse)


def product(a: torch.Tensor, b: torch.Tensor, plus: torch.Tensor | None = None, factor: float = 1.0) -> torch.Tensor:
    """``factor * a b + plus``: every matrix product of a chunk. a (m, k), b (k, n), ``plus`` (m, n) or (n,)."""
    return a @ b if plus is None else torch.addmm(plus, a, b, alpha=factor)
