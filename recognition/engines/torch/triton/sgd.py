# SPDX-License-Identifier: Apache-2.0
"""The step of SGD with momentum over all parameters of a network in one kernel: 5 passes over their memory in place of
the 11 of PyTorch's four calls for many tensors, with the same roundings, and so the same bits."""
from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import numpy as np
import triton
import triton.language as tl

from recognition.engines.torch.imports import torch
from recognition.engines.torch.optimisers import LARGEST, SgdOptimiser, Tensors, laid_out_as
from recognition.engines.torch.stored_rows import copied

NUMBERS = 2048  # that a program updates


@triton.jit
def sgd(weights, gradients, momenta, rates, decays, sizes, tensors, starts, mu, NUMBERS: tl.constexpr):  # type: ignore[no-untyped-def]
    """``m = mu m + rate g + decay w;  w += m``, rounded as PyTorch's add with a factor does: once for both operations.

    :param weights, gradients, momenta: int64, the addresses of float32 tensors; ``rates`` and ``decays``: float32, a
        number a tensor; ``sizes``: int32, how many numbers each has.
    :param tensors, starts: int32, which tensor a program works on, and from which number on.
    """
    tensor = tl.load(tensors + tl.program_id(0))
    at = tl.load(starts + tl.program_id(0)) + tl.arange(0, NUMBERS)
    inside = at < tl.load(sizes + tensor)
    w = tl.load(weights + tensor).to(tl.pointer_type(tl.float32)) + at
    g = tl.load(gradients + tensor).to(tl.pointer_type(tl.float32)) + at
    m = tl.load(momenta + tensor).to(tl.pointer_type(tl.float32)) + at
    values = tl.load(w, mask=inside, other=0.0)
    moment = mu * tl.load(m, mask=inside, other=0.0)
    moment = tl.fma(tl.load(rates + tensor), tl.load(g, mask=inside, other=0.0), moment)
    moment = tl.fma(tl.load(decays + tensor), values, moment)
    tl.store(m, moment, mask=inside)
    tl.store(w, values + moment, mask=inside)


class FusedSgd(SgdOptimiser):
    """:class:`SgdOptimiser` of float32 parameters that are all on one device."""

    def __init__(self, parameters: Tensors, names: Sequence[str], mu: float, wd: float) -> None:
        super().__init__(parameters, names, mu, wd)
        self._programs: dict[tuple[str, ...], list[torch.Tensor]] = {}  # sizes, tensors and starts of those named

    @torch.no_grad()
    def __call__(self, weights: Tensors, gradients: Tensors, lrs: Mapping[str, float], rescale: float) -> None:
        if not lrs:  # all parameters are frozen
            return
        names, lr = tuple(lrs), np.array(list(lrs.values()))
        w, m = ([of[name] for name in names] for of in (weights, self.moments["momentum"]))
        g = [laid_out_as(weights[name], gradients[name]) for name in names]
        device = w[0].device
        if names not in self._programs:
            self._programs[names] = copied(_programs(w), device)
        each = copied([*(np.array([tensor.data_ptr() for tensor in of]) for of in (w, g, m)),
                       *(np.clip(-lr * factor, -LARGEST, LARGEST).astype(np.float32) for factor in (rescale, self.wd))],
                      device)
        sizes, tensors, starts = self._programs[names]
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            sgd[(len(starts),)](*each, sizes, tensors, starts, self.mu, NUMBERS=NUMBERS)


def _programs(tensors: Sequence[torch.Tensor]) -> list[np.ndarray]:
    """Sizes of tensors, and of each program its tensor and its first number; int32."""
    sizes = np.array([tensor.numel() for tensor in tensors], np.int32)
    starts = [np.arange(0, size, NUMBERS, dtype=np.int32) for size in sizes]
    counts = [len(part) for part in starts]
    return [sizes, np.repeat(np.arange(len(sizes), dtype=np.int32), counts), np.concatenate(starts)]


@functools.cache
def works(device: torch.device) -> bool:
    """True if the kernel compiles and gives PyTorch's bits on ``device``, with tensors longer than a program and a
    negative zero: a card whose compiler rounds otherwise keeps PyTorch's calls."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (NUMBERS + 5,), "b": (7, 3, 3, 3), "c": (1,)}
    made = [{name: torch.randn(shape, generator=generator).to(device) for name, shape in shapes.items()}
            for _ in range(3)]
    ends = []
    try:
        for kind in (FusedSgd, SgdOptimiser):
            weights = {name: tensor.clone() for name, tensor in made[0].items()}
            optimiser = kind(weights, list(shapes), 0.9, 5e-4)
            for gradients in made[1:]:
                optimiser(weights, gradients, dict.fromkeys(shapes, 0.1), 0.37)
            ends.append([*weights.values(), *optimiser.moments["momentum"].values()])
    except Exception:  # the compiler's or the driver's: the run goes on with PyTorch's calls
        return False
    return all(torch.equal(ours, theirs) for ours, theirs in zip(*ends))
