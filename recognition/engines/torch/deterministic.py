# SPDX-License-Identifier: Apache-2.0
"""The same bits each time on GPUs, where PyTorch may otherwise add in the order in which threads end; and the fastest
convolutions where any bits will do."""
from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, MutableMapping

from recognition.engines.torch.imports import torch
from recognition.errors import UserError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # cuBLAS reads it when CUDA starts
SAME_BITS = (":4096:8", ":16:8")  # its values with which cuBLAS gives the same bits; the first is faster


@contextlib.contextmanager
def deterministic(environ: MutableMapping[str, str] = os.environ) -> Iterator[None]:
    """Context in which everything on GPUs gives the same bits each time. Enter it before CUDA starts.

    :raises UserError: in place of PyTorch's error about an operator that cannot.
    """
    if environ.get(WORKSPACE) not in SAME_BITS:
        environ[WORKSPACE] = SAME_BITS[0]
    cudnn, before = torch.backends.cudnn, torch.are_deterministic_algorithms_enabled()
    benchmark, fill = cudnn.benchmark, torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    cudnn.benchmark = False  # which takes what is fastest in this run
    torch.utils.deterministic.fill_uninitialized_memory = False  # costs time, and we read no such memory
    try:
        yield
    except RuntimeError as error:
        operator, found, _ = str(error).partition(" does not have a deterministic implementation")
        if not found:
            raise
        raise UserError(f"deterministic: PyTorch's {operator} on GPUs does not give the same bits each time, and this "
                        "run needs it; leave out --deterministic") from error
    finally:
        torch.use_deterministic_algorithms(before)
        cudnn.benchmark, torch.utils.deterministic.fill_uninitialized_memory = benchmark, fill


@contextlib.contextmanager
def fastest_convolutions() -> Iterator[None]:
    """Context in which cuDNN times its algorithms for each new shape and keeps the fastest, which may be another one in
    the next run; inside :func:`deterministic` nothing changes."""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark
    cudnn.benchmark = before or not torch.are_deterministic_algorithms_enabled()
    try:
        yield
    finally:
        cudnn.benchmark = before
