# SPDX-License-Identifier: Apache-2.0
"""The backbone's updates on a device: AdamW's fused kernel against float64, and whether SGD's kernel has the bits of
PyTorch's calls. A run takes those calls where it has not, and says nothing."""
from __future__ import annotations

import numpy as np

from bench.gpu.report import Report, Setting
from recognition.engines.torch.imports import torch
from recognition.engines.torch.optimisers import AdamWOptimiser
from recognition.optim.adamw import AdamW

SHAPES = {"long": (300_005,), "map": (6, 5, 3, 3), "point": (8, 4, 1, 1), "depthwise": (8, 1, 3, 3), "one": (1,)}
RATES = {"long": 0.1, "map": 0.01, "point": 0.1, "depthwise": 0.1, "one": 0.1}
STEPS, WD, RESCALE = 4, 0.05, 0.37


def against_others(setting: Setting, report: Report) -> None:
    """Weights after some steps; the kernel computes in float32, in some versions of PyTorch the powers of beta2, too:
    its first corrections are off by 3e-5."""
    random, adamw = np.random.default_rng(0), AdamW()
    wanted = {name: random.standard_normal(shape) for name, shape in SHAPES.items()}
    weights = {name: torch.from_numpy(array.astype(np.float32)).to(setting.device) for name, array in wanted.items()}
    weights = {name: tensor.to(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor
               for name, tensor in weights.items()}
    before = {name: array.copy() for name, array in wanted.items()}
    optimiser = AdamWOptimiser(weights, list(SHAPES), adamw, WD)
    moments = {name: np.zeros((2, *shape)) for name, shape in SHAPES.items()}
    for number in range(1, STEPS + 1):
        drawn = {name: random.standard_normal(shape) for name, shape in SHAPES.items()}
        gradients = {name: torch.from_numpy(array.astype(np.float32)).to(setting.device)
                     for name, array in drawn.items()}
        optimiser(weights, gradients, RATES, RESCALE)
        for name, (first, second) in moments.items():
            step, g = adamw.step(RATES[name], WD, number), drawn[name] * RESCALE
            first += (1 - step.beta1) * (g - first)
            second += (1 - step.beta2) * (g * g - second)
            wanted[name] -= step.lr * (step.factor * first / (np.sqrt(second) + step.eps) + step.wd * wanted[name])
    for name, array in wanted.items():
        moved = weights[name].cpu().double().numpy() - before[name]
        report.close(f"AdamW, {STEPS} steps: {name}", moved, array - before[name], 1e-4, "norm")
    if setting.gpu:
        from recognition.engines.torch.triton.sgd import works

        report.true("SGD's kernel is used: it has the bits of PyTorch's calls", works(setting.device))
