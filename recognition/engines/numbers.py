# SPDX-License-Identifier: Apache-2.0
"""The numbers of 16 bits that ``fp16`` and the devices ask for, whichever engine computes, and their loss scale."""
from __future__ import annotations

from recognition.config.devices import on_gpus, require_bfloat16
from recognition.engines.interface import Computing
from recognition.optim.loss_scale import LossScale

# Gradients are multiplied by it while they travel as float16, unless the loss has a scale: numbers from 512 on
# overflow, those from 4.8e-7 on keep 11 bits. 44 million parameters have gradients of 7e-4 where their norm is 5.
RAISED_TO_TRAVEL = 2.0**7
DEFAULT_SCALE = 1024.0  # of float16, where no loss scale is given


def describe_numbers(computing: Computing) -> str:
    """The line about the backbone's numbers, printed before training starts; empty for float32."""
    if scale := make_loss_scale(computing):
        return f"float16 with a loss scale of {scale.value:g}, halved when gradients overflow; float32 master weights"
    return ("bfloat16 in place of float16, which needs a GPU; it has float32's range, so there is no loss scale; "
            "float32 master weights") if computing.in_16_bits else ""


def raised_to_travel(numbers: str, loss_scale: LossScale | None) -> float:
    """The factor of gradients that travel between processes as ``numbers``."""
    return RAISED_TO_TRAVEL if numbers == "float16" and loss_scale is None else 1.0


def make_loss_scale(computing: Computing) -> LossScale | None:
    """The loss scale of float16; None for float32 and bfloat16."""
    if computing.in_16_bits and on_gpus(computing.devices):
        return LossScale(computing.loss_scale or DEFAULT_SCALE)
    return None


def require_numbers(computing: Computing) -> None:
    """Check that this machine has the numbers.

    :raises UserError: if the processor has none of 16 bits.
    """
    if computing.in_16_bits and not on_gpus(computing.devices):
        require_bfloat16("--fp16-scale, fp16")
