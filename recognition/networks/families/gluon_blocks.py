# SPDX-License-Identifier: Apache-2.0
"""Layers with the names and attributes that Gluon gives them, for families whose public recipes are Gluon networks.

Batch norm has epsilon 1e-5, and PReLU one slope, ``alpha`` (1,), for all channels.
"""
from __future__ import annotations

from dataclasses import dataclass

from recognition.networks import sym
from recognition.networks.families.blocks import Blocks


def _parameter(name: str, shape: tuple[int, ...], init: str = "") -> sym.Symbol:
    """A variable with Gluon's hints; 0 is a size that follows from the layer's input."""
    first = {"init": init} if init else {}
    return sym.Variable(name, shape=shape, dtype=0, lr_mult=1.0, wd_mult=1.0, storage_type=0, **first)


@dataclass(frozen=True)
class GluonBlocks(Blocks):
    """Layer builders of one network; ``scope`` and the layer's ``number`` of its kind in it make the name.

    Each maps (N, C, H, W) to (N, C', H', W'). A convolution has no bias and keeps the size of the map at stride 1.
    """

    def conv(self, data: sym.Symbol, scope: str, number: int, channels: int, kernel: int = 1, stride: int = 1,
             groups: int = 1) -> sym.Symbol:
        name, pad = f"{scope}conv{number}_", kernel // 2
        weight = _parameter(name + "weight", (channels, 0, kernel, kernel))
        return sym.Convolution(data, weight, name=name + "fwd", kernel=(kernel, kernel), stride=(stride, stride),
                               dilate=(1, 1), pad=(pad, pad), num_filter=channels, num_group=groups, no_bias=True,
                               layout="NCHW")

    def norm(self, data: sym.Symbol, scope: str, number: int) -> sym.Symbol:
        name = f"{scope}batchnorm{number}_"
        parameters = [_parameter(name + end, (0,), init) for end, init in (
            ("gamma", "ones"), ("beta", "zeros"), ("running_mean", "zeros"), ("running_var", "ones"))]
        return sym.BatchNorm(data, *parameters, name=name + "fwd", axis=1, eps=1e-5, momentum=self.bn_mom,
                             fix_gamma=False, use_global_stats=False)

    def act(self, data: sym.Symbol, scope: str, number: int, kind: str = "") -> sym.Symbol:
        """The network's activation, or the one named ``kind``."""
        kind = kind or self.net_act
        name = f"{scope}{kind}{number}_"
        if kind == "prelu":
            slope = _parameter(name + "alpha", (1,), '["constant", {"value": 0.25}]')
            return sym.LeakyReLU(data, slope, act_type="prelu", name=name + "fwd")
        return sym.Activation(data, act_type=kind, name=name + "fwd")
