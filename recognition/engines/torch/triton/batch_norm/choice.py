# SPDX-License-Identifier: Apache-2.0
"""Whether the kernels of batch norm can be used on a device: by the card, and by a trial."""
from __future__ import annotations

import functools

import numpy as np

from recognition.engines.torch.imports import torch
from recognition.engines.torch.triton.card import trial, why_no_kernels

F = torch.nn.functional
SIZE, EPS, ALLOWED = (6, 96, 9, 7), 1e-3, 0.01  # of the norm; float16 rounds by 0.0005


@functools.cache
def why_not(device: torch.device) -> str:
    """Why the kernels cannot be used on ``device``; empty if they can."""
    return why_no_kernels(device) or trial(functools.partial(small_pass, device), ALLOWED)


def small_pass(device: torch.device) -> list[tuple[np.ndarray, np.ndarray]]:
    """The output and the gradients of a batch norm on float16: the kernels', and those of PyTorch's operators."""
    from recognition.engines.torch.triton.batch_norm.function import batch_norm

    generator = torch.Generator().manual_seed(0)
    x, added, d_y = (torch.randn(SIZE, generator=generator).half().to(device, memory_format=torch.channels_last)
                     for _ in range(3))
    vectors = [torch.rand(SIZE[1], generator=generator).to(device) for _ in range(3)]
    leaves = [tensor.detach().requires_grad_() for tensor in (x, *vectors, added)]
    wide = [tensor.detach().float().requires_grad_() for tensor in leaves]
    data, gamma, beta, slope, more = leaves
    y = batch_norm(data, gamma, beta, EPS, slope, more).y
    data, gamma, beta, slope, more = wide
    expected = F.prelu(F.batch_norm(data, None, None, gamma, beta, True, 0, EPS), slope) + more
    found = [y.detach(), *torch.autograd.grad(y, leaves, d_y)]
    wanted = [expected.detach(), *torch.autograd.grad(expected, wide, d_y.float())]
    return [(ours.float().cpu().numpy(), theirs.cpu().numpy()) for ours, theirs in zip(found, wanted)]
