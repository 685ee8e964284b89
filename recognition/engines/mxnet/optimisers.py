# SPDX-License-Identifier: Apache-2.0
"""Optimisers of the backbone, which update many parameters in one call, and their moments."""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from recognition.engines.mxnet.imports import mx
from recognition.optim.adamw import AdamW

NDArrays = Mapping[str, mx.nd.NDArray]
LEAST_NORMAL_FLOAT32 = 1.2e-38  # MXNet reads no operator's parameter that is less, but for 0
PARAMETERS_A_CALL = 32  # parameters per fused update; the operators take at most 60 and 45


class SgdOptimiser:
    """MXNet's SGD with momentum: ``m = mu m - lr (g + wd w);  w += m``."""

    def __init__(self, parameters: NDArrays, names: Sequence[str], mu: float, wd: float) -> None:
        self.mu, self.wd = readable(mu), wd
        self.moments = {"momentum": {name: mx.nd.zeros_like(parameters[name]) for name in names}}
        self.updates: dict[str, int] = {}

    def __call__(self, weights: NDArrays, gradients: NDArrays, lrs: Mapping[str, float], rescale: float) -> None:
        momentum = self.moments["momentum"]
        for names in _groups(list(lrs)):
            triples = [array for name in names for array in (weights[name], gradients[name], momentum[name])]
            mx.nd.multi_sgd_mom_update(*triples, out=[weights[name] for name in names], num_weights=len(names),
                                       momentum=self.mu, lrs=[lrs[name] for name in names],
                                       wds=[self.wd] * len(names), rescale_grad=rescale)


class AdamWOptimiser:
    """AdamW of :mod:`recognition.optim.adamw`. A parameter's moments are corrected by the number of its own updates,
    which is less than the number of steps if it was frozen, or a step was left out."""

    def __init__(self, parameters: NDArrays, names: Sequence[str], adamw: AdamW, wd: float) -> None:
        self.adamw, self.wd = adamw, wd
        self.moments = {kind: {name: mx.nd.zeros_like(parameters[name]) for name in names}
                        for kind in ("momentum", "second_moment")}
        self.updates = dict.fromkeys(names, 0)

    def __call__(self, weights: NDArrays, gradients: NDArrays, lrs: Mapping[str, float], rescale: float) -> None:
        for name in lrs:
            self.updates[name] += 1
        for updates in sorted({self.updates[name] for name in lrs}):
            step = self.adamw.step(1.0, self.wd, updates)
            for names in _groups([name for name in lrs if self.updates[name] == updates]):
                arrays = [[of[name] for name in names] for of in (weights, gradients, *self.moments.values())]
                mx.nd.contrib.multi_adamw_update(
                    *arrays, rescale, lrs=[step.factor] * len(names), wds=[step.wd] * len(names),
                    etas=[lrs[name] for name in names], beta1=readable(step.beta1), beta2=readable(step.beta2),
                    epsilon=step.eps, out=arrays[0])


def readable(value: float) -> float:
    """A number >= 0 in a form that MXNet's operators can read: 0 for numbers too small for float32."""
    return value if value >= LEAST_NORMAL_FLOAT32 else 0.0


def _groups(names: Sequence[str]) -> Iterator[Sequence[str]]:
    return (names[low : low + PARAMETERS_A_CALL] for low in range(0, len(names), PARAMETERS_A_CALL))
