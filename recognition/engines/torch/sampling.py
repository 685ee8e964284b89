# SPDX-License-Identifier: Apache-2.0
"""The draw of :mod:`recognition.head.sampling` on a device: the same classes, in a stream of its own."""
from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np

from recognition.engines.torch.imports import torch
from recognition.engines.torch.rounding import SIGN, signed
from recognition.head.rounding import FACTORS
from recognition.head.sampling import ClassSampler

CLASSES_AT_ONCE = 1 << 22  # 16 MB of hashes


class DeviceSample:
    """Chosen classes among ``start .. stop - 1``, on their device: ``places`` (n,) int64, ascending, from 0.

    :meth:`columns` stands for a search for labels among them, without waiting for the device.
    """

    def __init__(self, sampler: ClassSampler, labels: np.ndarray, step: int, start: int, stop: int,
                 device: torch.device, stream: Any) -> None:
        """:param stream: a CUDA stream, whose end is waited for: not that of the backbone; None on a CPU."""
        self._positives, key = np.unique(labels[(labels >= start) & (labels < stop)]), sampler.key(step)
        with torch.cuda.stream(stream) if stream else nullcontext():
            positives = torch.from_numpy(self._positives - start).to(device)
            chosen = torch.empty(stop - start, dtype=torch.bool, device=device)
            for low in range(start, stop, CLASSES_AT_ONCE):
                high = min(low + CLASSES_AT_ONCE, stop)
                numbers = torch.arange(low, high, dtype=torch.int32, device=device)
                hashes = _hashed(numbers.bitwise_xor_(signed(key)))
                below = min(sampler.threshold, 2 * SIGN - 1) - SIGN  # as signed numbers are compared
                torch.lt(hashes.bitwise_xor_(-SIGN), below, out=chosen[low - start : high - start])
            chosen[positives] = True
            self.places = chosen.nonzero().flatten()
            if stop > start and not len(self.places):
                self.places = positives.new_zeros(1)
            self._of_positives = torch.searchsorted(self.places, positives).cpu().numpy()

    def columns(self, labels: np.ndarray) -> np.ndarray:
        """The places of labels (B,) among the chosen classes; any number for those that are not among the batch's."""
        if not len(self._positives):
            return np.zeros_like(labels)
        found = np.searchsorted(self._positives, labels)
        return self._of_positives[np.minimum(found, len(self._positives) - 1)]


def _hashed(words: torch.Tensor) -> torch.Tensor:
    """The hash of :mod:`recognition.head.rounding` of 32-bit words as int32, in their place: half the bytes of int64,
    which PyTorch would need for words without a sign."""
    for bits, factor in ((16, FACTORS[0]), (15, FACTORS[1])):
        words.bitwise_xor_((words >> bits).bitwise_and_((1 << (32 - bits)) - 1)).mul_(signed(factor))
    return words.bitwise_xor_((words >> 16).bitwise_and_(0xFFFF))
