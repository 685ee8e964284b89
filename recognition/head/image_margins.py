# SPDX-License-Identifier: Apache-2.0
"""Margins that depend on the image: AdaFace, MagFace, ElasticFace.

Each gives the images of a batch their own m2 and m3 of :class:`recognition.head.margin.Margin`, from the norms of their
features, their cosines or random numbers. Nothing else of the head changes: only the B targets have margins, so shards,
samples, sub-centres and kernels know nothing of it. CurricularFace (Huang et al., arXiv 2004.00288) is not here: it
changes the logits of other classes, by a threshold of each row. See docs/margins.md.

N rows: the images of all processes.
"""
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

STREAM = 0x454C  # of the random numbers, beside those of the same seed for other purposes


class NormTerms(NamedTuple):
    """The terms of the loss that depend on the norm of a feature; (N,) float64 each."""

    m2_slope: np.ndarray  # the derivative of m2
    loss: np.ndarray  # added to each row's cross entropy
    loss_slope: np.ndarray  # its derivative


class ImageMargins(ABC):
    """The margins of the images of each batch; here, what those have that keep no statistics and need norms alone."""

    needs_norms: bool = True  # those of the features, for which the host waits if these are on a device
    needs_cosines: bool = False  # those of the targets, which cost an exchange of N numbers

    @abstractmethod
    def __call__(self, norms: np.ndarray, cosines: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
        """m2 and m3, (N,) float64 each.

        :param norms: (N,) float64 of the features; ``cosines``: (N,) of the targets. Zeros if they are not needed.
        :param step: updates done before this batch.
        """

    def by_norm(self, norms: np.ndarray) -> NormTerms | None:
        """The terms of the loss that depend on the norms; None: it is not differentiated by them."""
        return None

    def keep(self) -> None:
        """Keep the running statistics of the last batch: its step is taken."""
        return None

    def state(self) -> list[float]:
        """The running statistics, for a training state."""
        return []

    def load(self, state: Sequence[float]) -> None:
        """Go on from ``state``; if it is of another kind, begin anew."""
        return None


@dataclass
class AdaFace(ImageMargins):
    """AdaFace (Kim et al., arXiv 2204.00964, section 3.3): the norm stands for the quality of an image.

    With ``q = clip(h (|x| - mean) / deviation, -1, 1)`` it is ``m2 = -m q``, ``m3 = m + m q``. Mean and deviation of
    the norms, clipped to LIMITS, are running ones, of which each batch is ``share``. They are not differentiated.
    """

    m: float = 0.4
    h: float = 0.333
    share: float = 0.01
    _kept: tuple[float, float] = field(default=(20.0, 100.0), init=False)  # as published; mean and deviation
    _now: tuple[float, float] = field(default=(20.0, 100.0), init=False)  # with those of the last batch

    LIMITS = 0.001, 100.0

    def __call__(self, norms: np.ndarray, cosines: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
        norms = np.clip(norms, *self.LIMITS)
        deviation = norms.std(ddof=1) if len(norms) > 1 else 0.0
        mean, deviation = (self.share * new + (1 - self.share) * old
                           for new, old in zip((norms.mean(), deviation), self._kept))
        self._now = float(mean), float(deviation)
        quality = np.clip(self.h * (norms - mean) / (deviation + 1e-3), -1, 1)
        return -self.m * quality, self.m + self.m * quality

    def keep(self) -> None:
        self._kept = self._now

    def state(self) -> list[float]:
        return list(self._kept)

    def load(self, state: Sequence[float]) -> None:
        if len(state) == 2:
            self._kept = state[0], state[1]


@dataclass
class MagFace(ImageMargins):
    """MagFace (Meng et al., arXiv 2103.06627, eq. 3 to 5): the margin grows with the norm, and long features cost less.

    With the norm a, clipped to ``norms``, m2 is linear between ``margins``, and ``weight * (a / u^2 + 1 / a)`` is added
    to the loss, u the largest norm. Both are differentiated by the norm, within ``norms``.
    """

    norms: tuple[float, float] = (10.0, 110.0)
    margins: tuple[float, float] = (0.45, 0.8)
    weight: float = 20.0

    @property
    def _rise(self) -> float:
        return (self.margins[1] - self.margins[0]) / (self.norms[1] - self.norms[0])

    def __call__(self, norms: np.ndarray, cosines: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
        m2 = self.margins[0] + self._rise * (np.clip(norms, *self.norms) - self.norms[0])
        return m2, np.zeros_like(m2)

    def by_norm(self, norms: np.ndarray) -> NormTerms:
        a, upper = np.clip(norms, *self.norms), self.norms[1]
        inside = (norms > self.norms[0]) & (norms < upper)
        return NormTerms(np.where(inside, self._rise, 0.0), self.weight * (a / upper**2 + 1 / a),
                         np.where(inside, self.weight * (1 / upper**2 - 1 / a**2), 0.0))


@dataclass
class ElasticFace(ImageMargins):
    """ElasticFace (Boutros et al., arXiv 2109.09416): each image's margin is drawn anew, normal around the mean.

    It is m2 if that has a mean other than 0 (ElasticFace-Arc), else m3 (-Cos). With ``needs_cosines`` (Arc+, Cos+) the
    largest margins go to the images that are farthest from their centres. Draws are a function of seed and step.
    """

    m2: float
    m3: float
    deviation: float
    seed: int
    needs_cosines: bool = False
    needs_norms = False

    def __call__(self, norms: np.ndarray, cosines: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
        random = np.random.default_rng([self.seed, STREAM, step])
        drawn = random.normal(self.m2 or self.m3, self.deviation, len(norms))
        if self.needs_cosines:
            by_nearness = np.argsort(-cosines, kind="stable")
            drawn[by_nearness] = np.sort(drawn)
        other = np.full_like(drawn, self.m3 if self.m2 else 0.0)
        return (drawn, other) if self.m2 else (other, drawn)
