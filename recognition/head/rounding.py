# SPDX-License-Identifier: Apache-2.0
"""Stochastic rounding of class centres to 16 bits: random bits as a function of seed, step and place alone.

A bfloat16 holds the upper half of a float32. To round, 16 random bits are added to the lower half, which is then cut
off: the result is the neighbour above with the probability of its nearness, so that updates far below a last place
count on average. A number that bfloat16 holds stays as it is. The bits come from a hash (Wellons' "lowbias32") of a
row's number among all classes and the number's place in the row; so they do not depend on the cut into shards, and a
run that goes on gets those of the run that stopped. Shards of every engine compute the same bits, each in its own form;
``tests/recognition/head/test_torch_rounding.py`` has the reference in NumPy.
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
