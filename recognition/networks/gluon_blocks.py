# SPDX-License-Identifier: Apache-2.0
"""Layers with the names and attributes that Gluon gives them, for families whose public recipes are Gluon networks.

Batch norm has epsilon 1e-5, and PReLU one slope, ``alpha`` (1,), for all channels.
"""
from __future__ import annotations

from dataclasses import dataclass

from recognition.engines.mxnet.imports import mx
from recognition.networks.blocks import Blocks


@dataclass(frozen=True)
class GluonBlocks(Blocks):
    """Layer builders of one network; ``scope`` and the layer's ``number`` of its kind in it make the name.

    Each maps (N, C, H, W) to (N, C', H', W'). A convolution has no bias and keeps the size of the map at stride 1.
    """

    def conv(self, data: mx.sym.Symbol, scope: str, number: int, channels: int, kernel: int = 1, stride: int = 1,
             groups: int = 1) -> mx.sym.Symbol:
        return mx.gluon.nn.Conv2D(channels, kernel, stride, kernel // 2, groups=groups, use_bias=False,
                                  prefix=f"{scope}conv{number}_")(data)

    def norm(self, data: mx.sym.Symbol, scope: str, number: int) -> mx.sym.Symbol:
        return mx.gluon.nn.BatchNorm(momentum=self.bn_mom, prefix=f"{scope}batchnorm{number}_")(data)

    def act(self, data: mx.sym.Symbol, scope: str, number: int, kind: str = "") -> mx.sym.Symbol:
        """The network's activation, or the one named ``kind``."""
        kind = kind or self.net_act
        layer, options = (mx.gluon.nn.PReLU, ()) if kind == "prelu" else (mx.gluon.nn.Activation, (kind,))
        return layer(*options, prefix=f"{scope}{kind}{number}_")(data)
