# SPDX-License-Identifier: Apache-2.0
"""The hashes of a draw in one kernel, where PyTorch's operators take fifteen. Beside a step each kernel may have to
wait for a place on the card."""
from __future__ import annotations

from contextlib import nullcontext

import triton
import triton.language as tl

from recognition.engines.torch.imports import torch
from recognition.engines.torch.rounding import signed
from recognition.engines.torch.triton.steps import hashed

CLASSES = 4096  # of a program


@triton.jit(do_not_specialize=["key", "threshold", "first", "classes"])
def draw(chosen, key, threshold, first, classes, CLASSES: tl.constexpr):  # type: ignore[no-untyped-def]
    """Whether the hash of each of the classes ``first .. first + classes - 1`` is below ``threshold``: uint8."""
    place = tl.program_id(0) * CLASSES + tl.arange(0, CLASSES)
    words = hashed((first + place).to(tl.uint32) ^ key.to(tl.uint32))
    tl.store(chosen + place, (words < threshold.to(tl.uint32)).to(tl.uint8), mask=place < classes)


def drawn(key: int, threshold: int, start: int, stop: int, device: torch.device) -> torch.Tensor:
    """True for each of the classes ``start .. stop - 1`` whose hash with ``key`` is below ``threshold``."""
    chosen = torch.empty(stop - start, dtype=torch.bool, device=device)
    if stop > start:
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            draw[(triton.cdiv(stop - start, CLASSES),)](
                chosen.view(torch.uint8), signed(key), signed(threshold), start, stop - start,
                CLASSES=CLASSES)
    return chosen
