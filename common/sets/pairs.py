# SPDX-License-Identifier: Apache-2.0
"""Random verification pairs: distinct, in folds, half of them of one identity, each identity about equally often."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from math import isqrt
from typing import NamedTuple

import numpy as np

from recognition.errors import UserError

DEFAULT_PAIRS_PER_FOLD = 300  # as in LFW


class Pairs(NamedTuple):
    """P pairs of images, which are numbered identity after identity. In each fold the pairs of one identity come first.
    """

    images: np.ndarray  # int64 (P, 2)
    issame: np.ndarray  # bool (P,)


def draw_pairs(images_per_identity: Sequence[int], folds: int = 10, pairs_per_fold: int | None = None,
               seed: int = 0) -> Pairs:
    """Draw ``pairs_per_fold`` pairs of the same identity and as many of different ones for each fold.

    :param pairs_per_fold: None: 300, or as many as the images allow.
    :raises UserError: if the images allow too few.
    """
    counts = [count for count in images_per_identity if count > 0]
    same_available = sum(count * (count - 1) // 2 for count in counts)
    different_available = (sum(counts) ** 2 - sum(count * count for count in counts)) // 2
    available = min(same_available, different_available) // folds
    wanted = max(1, min(DEFAULT_PAIRS_PER_FOLD, available)) if pairs_per_fold is None else pairs_per_fold
    if wanted > available:
        raise UserError(f"verification pairs: {sum(counts)} images of {len(counts)} held-out identities make "
                        f"{same_available} pairs of the same and {different_available} of different identities, "
                        f"expected at least {folds * wanted} of each for {folds} folds of {wanted}")
    rng = np.random.default_rng(seed)
    starts = np.cumsum([0, *(count for count in images_per_identity if count > 0)])
    same = _same_pairs(counts, starts, folds * wanted, rng).reshape(folds, wanted, 2)
    different = _different_pairs(counts, starts, folds * wanted, rng).reshape(folds, wanted, 2)
    issame = np.tile(np.repeat([True, False], wanted), folds)
    return Pairs(np.concatenate([same, different], axis=1).reshape(-1, 2), issame)


def _same_pairs(counts: Sequence[int], starts: np.ndarray, total: int, rng: np.random.Generator) -> np.ndarray:
    """int64 ``(total, 2)`` in random order."""
    possible = [count * (count - 1) // 2 for count in counts]
    pairs = []
    for start, size, share in zip(starts, possible, _shares(possible, total, rng)):
        for number in rng.choice(size, share, replace=False).tolist() if share else ():
            second = (1 + isqrt(1 + 8 * number)) // 2  # numbers 0, 1, 2, 3, ... are (0, 1), (0, 2), (1, 2), (0, 3), ...
            pairs.append((start + number - second * (second - 1) // 2, start + second))
    return rng.permutation(np.array(pairs, np.int64))


def _different_pairs(counts: Sequence[int], starts: np.ndarray, total: int, rng: np.random.Generator) -> np.ndarray:
    """int64 ``(total, 2)`` in random order."""
    couples = list(islice(_couples(rng.permutation(len(counts)).tolist()), total))
    possible = [counts[a] * counts[b] for a, b in couples]
    pairs = []
    for (a, b), size, share in zip(couples, possible, _shares(possible, total, rng)):
        for number in rng.choice(size, share, replace=False).tolist() if share else ():
            pairs.append((starts[a] + number // counts[b], starts[b] + number % counts[b]))
    return rng.permutation(np.array(pairs, np.int64))


def _couples(order: list[int]) -> Iterator[tuple[int, int]]:
    """Yield every two elements of ``order`` once. At any time all elements have had about equally many partners."""
    n = len(order)
    for distance in range(1, n // 2 + 1):
        for i in range(n // 2 if 2 * distance == n else n):
            yield order[i], order[(i + distance) % n]


def _shares(capacities: Sequence[int], total: int, rng: np.random.Generator) -> list[int]:
    """Split ``total`` into shares as equal as the capacities allow; chance decides which ones get one more."""
    sizes = np.asarray(capacities, np.int64)
    low, high = 0, int(sizes.max())
    while low < high:  # find the highest common share whose sum is at most total
        level = (low + high + 1) // 2
        low, high = (level, high) if np.minimum(sizes, level).sum() <= total else (low, level - 1)
    shares = np.minimum(sizes, low)
    open_to_more = np.flatnonzero(sizes > low)
    shares[rng.permutation(open_to_more)[:total - shares.sum()]] += 1
    return shares.tolist()
