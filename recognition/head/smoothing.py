# SPDX-License-Identifier: Apache-2.0
"""Label smoothing of a softmax over sharded class centres, in closed form.

With the share e the label of a row is ``1 - e`` at its class and ``e / C`` at each of the C classes of the softmax
(Szegedy et al., arXiv 1512.00567, section 7), so its loss is

    log sum_j exp(z_j) - (1 - e) z_y - e / C sum_j z_j

The last sum is linear: without margins it is ``s (x^ . M)`` with M the sum of the unit centres, so its gradient is
``s M`` by x^, and ``s x^`` by each unit centre, the same for all. The passes over W stay as they are: what is constant
is added to their results. It needs that all classes of the softmax have one logit each: no sub-centres, no filter.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from recognition.head.shard import Shard
from recognition.processes.communicator import Communicator


class SmoothedLoss(NamedTuple):
    """The numbers that smoothing adds to the head's; float64. B rows of the gathered batch."""

    loss: np.ndarray  # (B,), to be added to each row's cross entropy
    d_logit: float  # to the gradient of a row's loss by its target's logit
    d_similarity: float  # to the gradient of the mean loss by the target's similarity
    d_unit: np.ndarray  # (D,), to each row of this process's part of the gradient by x^
    d_centre: np.ndarray  # (D + 1,), to the gradient of the mean loss by each unit centre and, last, by each bias


def smooth(share: float, shards: Sequence[Shard], x: np.ndarray, logits: np.ndarray, similarities: np.ndarray,
           scale: float, count: int, communicator: Communicator) -> SmoothedLoss:
    """Smooth by ``share`` > 0; all processes call it together, after ``select``. It reads W once.

    :param x: (B, D) unit features, or features with softmax.
    :param logits: (B,) of the targets, over all shards.
    :param similarities: (B,) with the targets that lie in this process's shards, else 0.
    :param scale: from a similarity to its logit; ``count``: rows that the loss is the mean of.
    """
    own = np.sum([shard.sum_of_centres() for shard in shards], axis=0)  # (D + 2,): M, the sum of biases, classes
    everywhere = communicator.all_reduce(np.concatenate([own, scale * similarities]))
    total, classes, unmargined = everywhere[: len(own) - 1], everywhere[len(own) - 1], everywhere[len(own) :]
    sums = scale * (x.astype(np.float64) @ total[:-1] + total[-1]) + logits - unmargined
    each = share / classes
    weight = each * scale / count
    return SmoothedLoss(share * logits - each * sums, share - each, weight, -weight * own[:-2],
                        -weight * np.append(x.sum(axis=0, dtype=np.float64), len(x)))
