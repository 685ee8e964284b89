# SPDX-License-Identifier: Apache-2.0
"""Optimisers of the backbone, which update many parameters in one call, and their moments.

The formulas are those of the other engines, so states move between them: PyTorch's own SGD keeps a momentum without the
learning rate. Weight decay falls on all parameters, even biases and batch norm's, as in the legacy code.
"""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from recognition.engines.torch.imports import torch
from recognition.optim.adamw import AdamW

Tensors = Mapping[str, torch.Tensor]
Key = TypeVar("Key")
LARGEST = torch.finfo(torch.float32).max


class SgdOptimiser:
    """MXNet's SGD with momentum: ``m = mu m - lr (g + wd w);  w += m``."""

    def __init__(self, parameters: Tensors, names: Sequence[str], mu: float, wd: float) -> None:
        self.mu, self.wd = mu, wd
        self.moments = {"momentum": _zeros(parameters, names)}
        self.updates: dict[str, int] = {}

    @torch.no_grad()
    def __call__(self, weights: Tensors, gradients: Tensors, lrs: Mapping[str, float], rescale: float) -> None:
        for lr, names in alike(lrs):
            w, g, m = ([of[name] for name in names] for of in (weights, gradients, self.moments["momentum"]))
            torch._foreach_mul_(m, self.mu)
            torch._foreach_add_(m, g, alpha=readable(-lr * rescale))
            torch._foreach_add_(m, w, alpha=readable(-lr * self.wd))
            torch._foreach_add_(w, m)


class AdamWOptimiser:
    """AdamW of :mod:`recognition.optim.adamw`, which is PyTorch's, by its fused kernels. A parameter's moments are
    corrected by the number of its own updates, which is less than the number of steps if it was frozen, or a step was
    left out."""

    def __init__(self, parameters: Tensors, names: Sequence[str], adamw: AdamW, wd: float) -> None:
        self.adamw, self.wd = adamw, wd
        self.moments = {kind: _zeros(parameters, names) for kind in ("momentum", "second_moment")}
        self.updates = dict.fromkeys(names, 0)

    @torch.no_grad()
    def __call__(self, weights: Tensors, gradients: Tensors, lrs: Mapping[str, float], rescale: float) -> None:
        """Update ``weights``. Gradients are overwritten by ``rescale`` times what they were."""
        for name in lrs:
            self.updates[name] += 1
        for (lr, updates), names in alike({name: (lr, self.updates[name]) for name, lr in lrs.items()}):
            step, w = self.adamw.step(lr, self.wd, updates), [weights[name] for name in names]
            g = [laid_out_as(weights[name], gradients[name]) for name in names]
            moments = [[of[name] for name in names] for of in self.moments.values()]
            count, divisor = (torch.full((), value, device=w[0].device) for value in (float(updates), 1 / rescale))
            torch._fused_adamw_(w, g, *moments, [], [count] * len(w), lr=lr, beta1=step.beta1, beta2=step.beta2,
                                weight_decay=step.wd, eps=self.adamw.eps, amsgrad=False, maximize=False,
                                grad_scale=divisor)


def laid_out_as(weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """The gradient, in a copy if its numbers do not lie in the order of the weight's."""
    same = gradient.stride() == weight.stride() or (gradient.is_contiguous() and weight.is_contiguous())
    return gradient if same else torch.empty_like(weight).copy_(gradient)


def _zeros(parameters: Tensors, names: Sequence[str]) -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(parameters[name], requires_grad=False) for name in names}


def readable(value: float) -> float:
    """A number in a form that PyTorch takes for float32 tensors: the largest in place of those beyond."""
    return max(-LARGEST, min(value, LARGEST))


def alike(keys: Mapping[str, Key]) -> Iterable[tuple[Key, list[str]]]:
    """Each key with the names that have it."""
    if len(set(keys.values())) == 1:  # the usual case, quickly
        return [(next(iter(keys.values())), list(keys))]
    names = defaultdict[Key, list[str]](list)
    for name, key in keys.items():
        names[key].append(name)
    return names.items()
