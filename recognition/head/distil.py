# SPDX-License-Identifier: Apache-2.0
"""The pull of embeddings to those of a teacher, in closed form.

With x^ = x / |x| of the student and t^ = t / |t| of the teacher the loss of an image is

    |x^ - t^|^2 = 2 - 2 x^ . t^            its gradient by x:  -2 (t^ - (t^ . x^) x^) / |x|

It is that of embeddings in FitNets and its kin (Romero et al., arXiv 1412.6550) on the unit sphere, where faces are
compared: half of it is the angular loss of VarGFaceNet's training (arXiv 1910.04985).
"""
from __future__ import annotations

from typing import NamedTuple

import numpy as np

from recognition.head.shard import EPSILON


class Pull(NamedTuple):
    """The sum of the losses of all rows, from 0 to 4 a row, and its gradient by the student's embeddings."""

    loss: float
    d_features: np.ndarray  # float32 (b, D)


@np.errstate(over="ignore")  # of features, which the loop then finds
def pull(features: np.ndarray, wanted: np.ndarray) -> Pull:
    """Loss and gradient of the student's ``features``, float32 (b, D), against the teacher's ``wanted``, (b, D) of any
    length but 0."""
    norms = np.sqrt((features * features).sum(axis=1, keepdims=True) + EPSILON)  # as the head's
    unit = features / norms
    target = wanted / np.sqrt(np.square(wanted, dtype=np.float64).sum(axis=1, keepdims=True))
    cosines = (unit * target).sum(axis=1, keepdims=True)
    d_features = -2 * (target - cosines * unit) / norms
    return Pull(float(2 * len(features) - 2 * cosines.sum()), d_features.astype(np.float32))
