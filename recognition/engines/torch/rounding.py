# SPDX-License-Identifier: Apache-2.0
"""Stochastic rounding to bfloat16 by PyTorch: the bits of :mod:`recognition.head.rounding`."""
from __future__ import annotations

from recognition.engines.torch.imports import torch
from recognition.head.rounding import FACTORS, GOLDEN

_WORD, _HALF, SIGN = 0xFFFFFFFF, 0xFFFF, 1 << 31


def hashed(words: torch.Tensor) -> torch.Tensor:
    """The hash of int64 ``words`` of 32 bits. (PyTorch has few operations on uint32.)"""
    words = words ^ words >> 16
    words = words * FACTORS[0] & _WORD
    words = words ^ words >> 15
    words = words * FACTORS[1] & _WORD
    return words ^ words >> 16


def random_words(key: int, rows: torch.Tensor, dim: int) -> torch.Tensor:
    """32 random bits for each number of rows, int64 (n,) of all classes' rows: int64 (n, dim)."""
    columns = torch.arange(dim, device=rows.device) * GOLDEN & _WORD
    return hashed(hashed(rows & _WORD ^ key)[:, None] + columns & _WORD)


def rounded(values: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """Float32 values as bfloat16, rounded by the lower 16 of ``bits``, int64 of their shape; NaN stays NaN."""
    sums = values.view(torch.int32) + (bits & _HALF).int() & ~_HALF
    return torch.where(values.isnan(), values, sums.view(torch.float32)).bfloat16()


def signed(word: int) -> int:
    """The int32 of the bits of a 32-bit word: PyTorch has few operations without a sign, and Triton would compile anew
    for larger numbers."""
    return word - 2 * SIGN if word >= SIGN else word
