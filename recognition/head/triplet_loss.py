# SPDX-License-Identifier: Apache-2.0
"""Triplets: the two losses with their gradients in closed form.

A triplet is an anchor, a positive of the same identity and a negative of another. In FaceNet (Schroff et al., 2015, eq.
3) the negative should be farther from the anchor than the positive by a margin ``alpha``, on normalised embeddings.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

EPSILON = 1e-10  # under the square root of every norm, as in the legacy L2Normalization
# d arccos(t) / dt = -1 / sin has no bound at sin = 0, the angle of an image and its copy. A sine of this size still has
# three digits, when it comes from a float64 cosine.
MIN_SINE = 1e-6


@dataclass(frozen=True)
class TripletLoss:
    """The loss ``relu(d(a, p) - d(a, n) + alpha)`` of normalised embeddings.

    d is the squared distance (``triplet``) or, with ``angular``, the angle in radians (``atriplet``).
    """

    alpha: float
    angular: bool = False

    def __call__(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The losses of T triplets, their gradient, and the triplets whose negative is farther than the positive.

        :param features: (3, T, D) anchors, positives, negatives, not normalised.
        :returns: losses float64 (T,); the gradient of their sum by the features, float64 (3, T, D); bool (T,).
        """
        x = np.asarray(features, np.float64)
        norms = np.sqrt(np.square(x).sum(axis=2, keepdims=True) + EPSILON)
        unit = x / norms
        anchor, others = unit[0], unit[1:]
        cosines = (anchor * others).sum(axis=2)  # (2, T)
        (d_ap, d_an), slopes = self._distance(cosines)
        losses = np.maximum(d_ap - d_an + self.alpha, 0)
        # The loss adds the positive's distance and subtracts the negative's.
        d_cosines = slopes * (losses > 0) * np.array([[1.0], [-1.0]])
        d_unit = np.concatenate([(d_cosines[..., None] * others).sum(axis=0)[None], d_cosines[..., None] * anchor])
        along = (d_unit * unit).sum(axis=2, keepdims=True)
        return losses, (d_unit - along * unit) / norms, d_an > d_ap

    def _distance(self, cosines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The distance of unit vectors with these cosines, and its derivative by the cosine."""
        if not self.angular:
            return 2 - 2 * cosines, np.full_like(cosines, -2.0)
        cosines = np.clip(cosines, -1, 1)
        return np.arccos(cosines), -1 / np.maximum(np.sqrt(1 - np.square(cosines)), MIN_SINE)
