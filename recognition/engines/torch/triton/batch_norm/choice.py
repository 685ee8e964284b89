# SPDX-License-Identifier: Apache-2.0
"""Whether the kernels of batch norm can be used on a device: by the card, and by a trial."""
from __future__ import annotations

import functools

from recognition.engines.torch.imports import torch
from recognition.engines.torch.triton.card import why_no_kernels

F = torch.nn.functional
SIZE, EPS, ALLOWED = (6, 96, 9, 7), 1e-3, 0.01  # of the norm; float16 rounds by 0.0005


@functools.cache
def why_not(device: torch.device) -> str:
    """Why the kernels cannot be used on ``device``; empty if they can."""
    return why_no_kernels(device) or trial(device)


def trial(device: torch.device) -> str:
    """Compile the kernels, and compare them with PyTorch's operators on float16; says what went wrong."""
    generator = torch.Generator().manual_seed(0)
    x, added, d_y = (torch.randn(SIZE, generator=generator).half().to(device, memory_format=torch.channels_last)
                     for _ in range(3))
    vectors = [torch.rand(SIZE[1], generator=generator).to(device) for _ in range(3)]
    try:
        from recognition.engines.torch.triton.batch_norm.function import batch_norm

        leaves = [tensor.detach().requires_grad_() for tensor in (x, *vectors, added)]
        wide = [tensor.detach().float().requires_grad_() for tensor in leaves]
        data, gamma, beta, slope, more = leaves
        y = batch_norm(data, gamma, beta, EPS, slope, more).y
        data, gamma, beta, slope, more = wide
        expected = F.prelu(F.batch_norm(data, None, None, gamma, beta, True, 0, EPS), slope) + more
        found = [y.detach(), *torch.autograd.grad(y, leaves, d_y)]
        wanted = [expected.detach(), *torch.autograd.grad(expected, wide, d_y.float())]
        errors = [float((ours.float() - theirs).norm() / theirs.norm()) for ours, theirs in zip(found, wanted)]
    except Exception as error:  # the compiler's, the driver's, a missing library's: the run goes on without the kernels
        return f"Triton's kernels fail here ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    return "" if max(errors) < ALLOWED else f"Triton's kernels err by {max(errors):.0e} here"
