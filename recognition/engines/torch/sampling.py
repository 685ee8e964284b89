# SPDX-License-Identifier: Apache-2.0
"""The draw of :mod:`recognition.head.sampling` on a device: the same classes, in a stream of its own."""
from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Callable

import numpy as np

from recognition.engines.torch.imports import torch
from recognition.engines.torch.rounding import SIGN, signed
from recognition.engines.torch.stored_rows import Fetched, copied
from recognition.head.rounding import FACTORS
from recognition.head.sampling import ClassSampler

CLASSES_AT_ONCE = 1 << 22  # 16 MB of hashes


class DeviceSample:
    """Chosen classes among ``start .. stop - 1``, on their device. The draw is queued there; whoever asks waits for it.

    :meth:`columns` stands for a search for labels among them.
    """

    def __init__(self, sampler: ClassSampler, labels: np.ndarray, step: int, start: int, stop: int,
                 device: torch.device, stream: Any, drawn: Callable[..., torch.Tensor]) -> None:
        """:param stream: a CUDA stream beside that of the step; None on a CPU.
        :param drawn: the function :func:`drawn`, or one that does the same.
        """
        self._positives, count = np.unique(labels[(labels >= start) & (labels < stop)]), stop - start
        with torch.cuda.stream(stream) if stream else nullcontext():
            asked, = copied([np.append(self._positives - start, count)], device)
            chosen = drawn(sampler.key(step), sampler.threshold, start, stop, device)
            chosen.index_fill_(0, asked[:-1], True)
            # As many places as there are classes, so that the host need not wait for their number.
            self._places = chosen.nonzero_static(size=count, fill_value=count).flatten()
            self._found = Fetched(torch.searchsorted(self._places, asked))

    @property
    def places(self) -> torch.Tensor:
        """The classes (n,) int64, ascending, from 0; one at least if there are any."""
        number = int(self._found()[-1])
        return self._places[:number] if number else torch.zeros_like(self._places[:1])

    def columns(self, labels: np.ndarray) -> np.ndarray:
        """The places of labels (B,) among the chosen classes; any number for those that are not among the batch's."""
        if not len(self._positives):
            return np.zeros_like(labels)
        found = np.searchsorted(self._positives, labels)
        return self._found()[np.minimum(found, len(self._positives) - 1)]


def drawn(key: int, threshold: int, start: int, stop: int, device: torch.device) -> torch.Tensor:
    """True for each of the classes ``start .. stop - 1`` whose hash with ``key`` is below ``threshold``."""
    chosen = torch.empty(stop - start, dtype=torch.bool, device=device)
    for low in range(start, stop, CLASSES_AT_ONCE):
        high = min(low + CLASSES_AT_ONCE, stop)
        hashes = _hashed(torch.arange(low, high, dtype=torch.int32, device=device).bitwise_xor_(signed(key)))
        # Both are compared as numbers without a sign, which int32 has if the highest bit is turned.
        torch.lt(hashes.bitwise_xor_(-SIGN), threshold - SIGN, out=chosen[low - start : high - start])
    return chosen


def _hashed(words: torch.Tensor) -> torch.Tensor:
    """The hash of :mod:`recognition.head.rounding` of 32-bit words as int32, in their place: half the bytes of int64,
    which PyTorch would need for words without a sign."""
    for bits, factor in ((16, FACTORS[0]), (15, FACTORS[1])):
        words.bitwise_xor_((words >> bits).bitwise_and_((1 << (32 - bits)) - 1)).mul_(signed(factor))
    return words.bitwise_xor_((words >> 16).bitwise_and_(0xFFFF))
