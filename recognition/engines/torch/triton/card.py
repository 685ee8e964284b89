# SPDX-License-Identifier: Apache-2.0
"""Whether Triton's kernels can run on a device, by what it is and what is installed."""
from __future__ import annotations

import importlib.util

from recognition.engines.torch.imports import torch

OLDEST_CARD = (8, 0)  # compute capability: bfloat16, asynchronous copies, 160 KB of shared memory


def why_no_kernels(device: torch.device) -> str:
    """Why not; empty if nothing is known to be in the way."""
    if device.type != "cuda":
        return "the kernels are for GPUs"
    found = torch.cuda.get_device_capability(device)
    if found < OLDEST_CARD:
        return "compute capability {}.{} is below {}.{}".format(*found, *OLDEST_CARD)
    return "" if importlib.util.find_spec("triton") else "Triton is not installed"
