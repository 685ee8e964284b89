# SPDX-License-Identifier: Apache-2.0
"""Stochastic rounding of class centres to 16 bits: random bits as a function of seed, step and place alone.

A bfloat16 holds the upper half of a float32. To round, 16 random bits are added to the lower half, which is then cut
off: the result is the neighbour above with the probability of its nearness, so that updates far below a last place
count on average. A number that bfloat16 holds stays as it is. The bits come from a hash (Wellons' "lowbias32") of a
row's number among all classes and the number's place in the row; so they do not depend on the cut into shards, and a
run that goes on gets those of the run that stopped. Shards of every engine compute the same bits: here in NumPy, the
reference; ``engines/torch`` and its Triton kernels have their own form.
"""
from __future__ import annotations

import numpy as np

FACTORS = (0x7FEB352D, 0x846CA68B)  # of the hash
GOLDEN = 0x9E3779B9  # 2^32 by the golden ratio: parts the columns of a row
_WORD = 0xFFFFFFFF


def key_of(seed: int, updates: int, salt: int = 0) -> int:
    """The 32-bit key of an update's random bits: the ``updates``-th of a run with this seed; ``salt`` parts arrays."""
    key = 0
    for part in (seed & _WORD, seed >> 32 & _WORD, updates & _WORD, salt):
        key = int(hashed(np.array([key ^ part], np.uint32))[0]) + GOLDEN & _WORD
    return key


def hashed(words: np.ndarray) -> np.ndarray:
    """A hash of each of uint32 ``words``."""
    words = words ^ (words >> np.uint32(16))
    words = words * np.uint32(FACTORS[0])
    words = words ^ (words >> np.uint32(15))
    words = words * np.uint32(FACTORS[1])
    return words ^ (words >> np.uint32(16))


def random_words(key: int, rows: np.ndarray, dim: int) -> np.ndarray:
    """32 random bits for each number of ``rows``, int64 (n,), numbers of rows among those of all classes: uint32
    (n, dim). The lower half is for the centres, the upper one for their first moment."""
    of_rows = hashed(rows.astype(np.uint32) ^ np.uint32(key))
    return hashed(of_rows[:, None] + np.arange(dim, dtype=np.uint32) * np.uint32(GOLDEN))


def rounded(values: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """Float32 ``values`` as float32 that bfloat16 holds, rounded by the lower 16 of ``bits``, uint32 of their shape.

    What is not a number stays so.
    """
    sums = values.view(np.uint32) + (bits & np.uint32(0xFFFF)) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(values), values, sums.view(np.float32))
