# SPDX-License-Identifier: Apache-2.0
"""Whether Triton's kernels can run on a device: by what it is, by what is installed, and by a trial."""
from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable

import numpy as np

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


def trial(compute: Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]], allowed: float) -> str:
    """Compile and run kernels, and compare them with PyTorch's operators; says what went wrong, empty if nothing did.

    Triton needs a C compiler and a driver of its age, which a look at versions does not tell.

    :param compute: gives pairs of an array of the kernels' and what it should be.
    :param allowed: norm of the error, as a share of that of the array.
    """
    try:
        errors = [float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)) for ours, theirs in compute()]
    except Exception as error:  # the compiler's, the driver's, a missing library's: the run goes on without the kernels
        return f"Triton's kernels fail here ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    wrong = [error for error in errors if not error < allowed]  # NaN among them, of which max() may tell nothing
    return f"Triton's kernels err by {max(wrong):.0e} here" if wrong else ""
