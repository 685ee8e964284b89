# SPDX-License-Identifier: Apache-2.0
"""Templates: one embedding for several images of a subject, as in the IJB protocols."""
from __future__ import annotations

from typing import NamedTuple

import numpy as np

from recognition.errors import UserError
from recognition.evaluation.embed_images import normalised

IMAGES_AT_ONCE = 8192  # embeddings in float64 at a time, and those of the template in which they end


class Templates(NamedTuple):
    """T templates in ascending order of their numbers."""

    numbers: np.ndarray  # int64 (T,)
    embeddings: np.ndarray  # float32 (T, D), normalised

    def rows(self, wanted: np.ndarray, where: str) -> np.ndarray:
        """The rows of the templates numbered ``wanted``.

        :raises UserError: beginning with ``where``, if a template has no image.
        """
        found = np.minimum(np.searchsorted(self.numbers, wanted), len(self.numbers) - 1)
        missing = np.flatnonzero(self.numbers[found] != wanted)
        if missing.size:
            raise UserError(f"{where}: found template {wanted.flat[missing[0]]} in place {missing[0] + 1}, expected "
                            f"one of the {len(self.numbers)} templates that have images")
        return found


def aggregate(embeddings: np.ndarray, templates: np.ndarray, media: np.ndarray,
              weights: np.ndarray | None = None) -> Templates:
    """Average the images of each medium, sum the media of each template, and normalise.

    A video of a hundred frames thus counts as much as one photograph. Sums are computed in float64.

    :param embeddings: float32 ``(N, D)``; if they are not normalised, they count by their norm
    :param templates: int64 ``(N,)``, ``media`` likewise
    :param weights: float ``(N,)``, a factor of each image: the detector's scores
    :raises UserError: if the embedding of a template is zero or not finite
    """
    order = np.lexsort([media, templates])
    of_template, of_media = templates[order], media[order]
    first_of_template = np.flatnonzero(np.diff(of_template, prepend=of_template[0] - 1))
    changes = np.diff(of_template, prepend=of_template[0] - 1) | np.diff(of_media, prepend=of_media[0] - 1)
    first_of_media = np.flatnonzero(changes)
    numbers = of_template[first_of_template]
    found = np.empty((len(numbers), embeddings.shape[1]), np.float32)
    ends = np.append(first_of_template, len(order))
    low = 0
    while low < len(numbers):
        high = max(low + 1, int(np.searchsorted(ends, ends[low] + IMAGES_AT_ONCE, side="right")) - 1)
        start, stop = ends[low], ends[high]
        block = embeddings[order[start:stop]].astype(np.float64)
        if weights is not None:
            block *= weights[order[start:stop], None]
        inside = first_of_media[np.searchsorted(first_of_media, start) : np.searchsorted(first_of_media, stop)]
        means = np.add.reduceat(block, inside - start) / np.diff(inside, append=stop)[:, None]
        sums = np.add.reduceat(means, np.searchsorted(inside, ends[low:high]))
        found[low:high] = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-300)
        low = high
    return Templates(numbers, normalised(found, lambda row: f"template {numbers[row]}"))
