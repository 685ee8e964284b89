# SPDX-License-Identifier: Apache-2.0
"""A residual network of the recipes in PyTorch, for ``backbone.py``. It runs in an environment with PyTorch.

    python bench/networks/torch_backbone.py 50 16 2 training

The arguments are depth, images, threads, and what to time. It does a step for every line on standard input and prints
its seconds, in processor time divided by the threads. Units have batch norm, 3 x 3 convolution, batch norm, PReLU, 3 x
3 convolution, batch norm (Deng et al., arXiv 1801.07698, section 3.2.1); float32, channels last, eager.
"""
from __future__ import annotations

import sys
import time

import torch
from torch import nn

UNITS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 14, 3), 100: (3, 13, 30, 3)}


def convolution(inner: int, outer: int, kernel: int, stride: int = 1) -> nn.Module:
    return nn.Conv2d(inner, outer, kernel, stride, kernel // 2, bias=False)


class Unit(nn.Module):
    """A residual unit from ``(N, inner, H, W)`` to ``(N, outer, H / stride, W / stride)``."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(inner), convolution(inner, outer, 3), nn.BatchNorm2d(outer), nn.PReLU(outer),
            convolution(outer, outer, 3, stride), nn.BatchNorm2d(outer))
        self.shortcut = nn.Identity() if stride == 1 else nn.Sequential(
            convolution(inner, outer, 1, stride), nn.BatchNorm2d(outer))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) + self.shortcut(x)


def backbone(depth: int) -> nn.Module:
    layers: list[nn.Module] = [convolution(3, 64, 3), nn.BatchNorm2d(64), nn.PReLU(64)]
    inner = 64
    for units, outer in zip(UNITS[depth], (64, 128, 256, 512)):
        for unit in range(units):
            layers.append(Unit(inner, outer, 2 if unit == 0 else 1))
            inner = outer
    return nn.Sequential(*layers, nn.BatchNorm2d(512), nn.Dropout(0.4), nn.Flatten(), nn.Linear(512 * 7 * 7, 512),
                         nn.BatchNorm1d(512))


def main() -> None:
    depth, batch, threads, training = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "training"
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = backbone(depth).to(memory_format=torch.channels_last).train(training)
    images = torch.rand(batch, 3, 112, 112).to(memory_format=torch.channels_last)
    for _ in sys.stdin:
        start = time.process_time()
        if training:
            features = model(images)
            features.backward(features.detach())
            model.zero_grad(set_to_none=False)
        else:
            with torch.no_grad():
                model(images)
        print((time.process_time() - start) / threads, flush=True)


if __name__ == "__main__":
    main()
