# SPDX-License-Identifier: Apache-2.0
"""MnasNet (Tan et al., arXiv 1807.11626): the searched network of inverted bottlenecks, B1, for 112 x 112 faces."""
from __future__ import annotations

from typing import NamedTuple

from recognition.config import types
from recognition.errors import UserError
from recognition.networks import sym
from recognition.networks.families.blocks import scale_pixels
from recognition.networks.families.embedding import embed
from recognition.networks.families.gluon_blocks import GluonBlocks
from recognition.networks.graph import Graph

NAME = "mnasnet0_"


class Stage(NamedTuple):
    """A run of bottlenecks. Only the first has the stride and the kernel; the others have 3 x 3 and a shortcut."""

    name: str
    expansion: int
    channels: int
    bottlenecks: int
    stride: int
    kernel: int


STAGES = (
    Stage("stage2_", 3, 24, 3, 2, 3),
    Stage("stage3_", 3, 40, 3, 2, 5),
    Stage("stage4_1_", 6, 80, 3, 2, 5),
    Stage("stage4_2_", 6, 96, 2, 1, 3),
    Stage("stage5_1_", 6, 192, 4, 2, 5),
    Stage("stage5_2_", 6, 320, 1, 1, 3),
)
FIRST_CHANNELS, SEPARABLE_CHANNELS, LAST_CHANNELS = 32, 16, 1024


def get_symbol(*, emb_size: int = 256, net_output: str = "GDC", net_multiplier: float = 1.0, net_act: str = "prelu",
               bn_mom: float = 0.9) -> Graph:
    """The network of the embedding ``fc1_output`` (N, emb_size) by ``data``, pixels 0..255 (N, 3, H, W), RGB.

    ``net_multiplier``  factor on the channels of every stage, rounded down

    The other options are those of :class:`Blocks` and :func:`embed`. A value that is not known is a :class:`UserError`.
    """
    if int(SEPARABLE_CHANNELS * types.real(above=0).check(net_multiplier, "net_multiplier")) == 0:
        raise UserError(f"net_multiplier: found {net_multiplier:g}, expected at least {1 / SEPARABLE_CHANNELS:g}, "
                        "which leaves one channel")
    net = _Layers(net_act, bn_mom)
    first, channels = int(FIRST_CHANNELS * net_multiplier), int(SEPARABLE_CHANNELS * net_multiplier)
    body = net.unit(scale_pixels(sym.Variable("data")), NAME + "stage1_conv0_", 0, first, kernel=3)
    body = net.unit(body, NAME + "stage1_sepconv0_", 0, first, kernel=3, groups=first)
    body = net.unit(body, NAME + "stage1_sepconv0_", 1, channels)
    for stage in STAGES:
        for number in range(stage.bottlenecks):
            scope = f"{NAME}{stage.name}expandedconv{number}_"
            inner, channels = channels * stage.expansion, int(stage.channels * net_multiplier)
            if number == 0:
                body = net.bottleneck(body, scope, inner, channels, stage.kernel, stage.stride)
            else:
                body = net.bottleneck(body, scope, inner, channels, 3, 1) + body
    last = int(LAST_CHANNELS * net_multiplier)
    body = net.unit(body, NAME + "stage5_3_", 0, last)
    return embed(net, body, net_output, emb_size, last)


class _Layers(GluonBlocks):

    def unit(self, data: sym.Symbol, scope: str, number: int, channels: int, kernel: int = 1, stride: int = 1,
             groups: int = 1) -> sym.Symbol:
        data = self.norm(self.conv(data, scope, number, channels, kernel, stride, groups), scope, number)
        return self.act(data, scope, number)

    def bottleneck(self, data: sym.Symbol, scope: str, inner: int, channels: int, kernel: int,
                   stride: int) -> sym.Symbol:
        """Widen to ``inner``, filter each channel by itself, and project to ``channels`` without an activation."""
        data = self.unit(data, scope + "expand_", 0, inner)
        data = self.unit(data, scope + "dwise_", 0, inner, kernel, stride, groups=inner)
        return self.norm(self.conv(data, scope + "linear_", 0, channels), scope + "linear_", 0)
