# SPDX-License-Identifier: Apache-2.0
"""The margin of a softmax loss: the target's logit as a function of its similarity.

ArcFace (Deng et al., 2019, eq. 4) writes every published margin as one function of the angle ``theta`` between an
embedding and the centre of its class: ``psi = cos(m1 * theta + m2) - m3``. The other classes keep ``cos(theta)``.
Only the B targets of a step are changed, so this runs in float64 on the host, with any engine. Where the margin differs
between images, m2 and m3 are arrays (:mod:`recognition.head.image_margins`).
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Radians. d psi / d cos = m1 * sin(m1 theta + m2) / sin(theta) has no bound where sin(theta) = 0. A float32 cosine near
# 1 has a precision of 6e-8, its angle one of 3.5e-4: below this limit the angle is rounding noise.
MIN_ANGLE = 1e-3


@dataclass(frozen=True)
class Margin:
    """Logits ``s * cos`` of normalised vectors, ``s * psi(cos)`` at the target; or plain inner products.

    With ``normalised`` False (softmax) embeddings and centres keep their norms, and ``s``, ``m1``, ``m2``, ``m3`` have
    no effect. With ``straight_through`` the derivative at the target is s, as without a margin: the PyTorch recipe
    (arcface_torch) moves the target's logit outside of its graph. With ``easy`` m2 counts where the cosine is positive
    alone, as in MagFace. With ``bounded`` ``m1 theta + m2`` stays between 0 and pi, and where it would leave them the
    derivative is 0, as in AdaFace.
    """

    s: float = 64.0
    m1: float = 1.0
    m2: float | np.ndarray = 0.0  # or (B,)
    m3: float | np.ndarray = 0.0  # or (B,)
    normalised: bool = True
    straight_through: bool = False
    easy: bool = False
    bounded: bool = False

    @property
    def scale(self) -> float:
        """The factor from a similarity to its logit."""
        return self.s if self.normalised else 1.0

    def target(self, similarity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The logits of the targets, and their derivatives by the similarity.

        :param similarity: (B,) cosines, or inner products if not ``normalised``.
        :returns: two float64 arrays (B,): the logit ``s * psi`` and ``s * d psi / d cos``.
        """
        t = np.asarray(similarity, dtype=np.float64)
        if not self.normalised:
            return t, np.ones_like(t)
        if self.m1 == 1.0 and not np.any(self.m2):
            return self.s * (t - self.m3), np.full_like(t, self.s)
        theta, angle = self._angles(t)
        slope = np.ones_like(t) if self.straight_through else self.m1 * np.sin(angle) / np.sin(theta)
        if self.bounded:
            within = np.clip(angle, MIN_ANGLE, np.pi - MIN_ANGLE)
            angle, slope = within, np.where(within == angle, slope, 0.0)
        return self.s * (np.cos(angle) - self.m3), self.s * slope

    def slope_by_m2(self, similarity: np.ndarray) -> np.ndarray:
        """The derivatives of the targets' logits by m2, (B,) float64; not for ``bounded`` margins."""
        t = np.asarray(similarity, dtype=np.float64)
        slope = -self.s * np.sin(self._angles(t)[1])
        return np.where(t > 0, slope, 0.0) if self.easy else slope

    def _angles(self, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The angles of cosines (B,), and those with margins m1 and m2."""
        theta = np.clip(np.arccos(np.clip(t, -1.0, 1.0)), MIN_ANGLE, np.pi - MIN_ANGLE)
        return theta, self.m1 * theta + (np.where(t > 0, self.m2, 0.0) if self.easy else self.m2)
