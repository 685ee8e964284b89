# SPDX-License-Identifier: Apache-2.0
"""MobileFaceNet (Chen et al., arXiv 1804.07573): inverted bottlenecks of depthwise convolutions."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from recognition.config import types
from recognition.networks import sym
from recognition.networks.families.blocks import Blocks, linear, scale_pixels
from recognition.networks.families.embedding import embed
from recognition.networks.graph import Graph


def get_symbol(*, emb_size: int = 128, net_blocks: Sequence[int] = (1, 4, 6, 2), net_output: str = "GDC",
               net_multiplier: float = 1.0, net_act: str = "prelu", bn_mom: float = 0.9) -> Graph:
    """The network of the embedding ``fc1_output`` (N, emb_size) by ``data``, pixels 0..255 (N, 3, H, W), RGB.

    ``net_blocks``      residual bottlenecks on the maps of 1/2, 1/4, 1/8 and 1/16 of the image's size; a 1 at the first
                        place is a plain depthwise convolution, as in the paper
    ``net_multiplier``  factor on the channels of every convolution, rounded to multiples of 8; 1.0 is the paper's

    The other options are those of :class:`Blocks` and :func:`embed`. A value that is not known is a :class:`UserError`.
    """
    first, second, third, fourth = types.four_counts.check(net_blocks, "net_blocks")
    types.real(above=0).check(net_multiplier, "net_multiplier")
    net = Bottlenecks(Blocks(net_act, bn_mom), net_multiplier)
    body = net.conv(scale_pixels(sym.Variable("data")), "conv_1", 64, kernel=3, stride=2)
    if first == 1:
        body = net.conv(body, "conv_2_dw", 64, kernel=3, depthwise=True)
    else:
        body = net.residuals(body, "res_2", first, 64, 64)
    body = net.bottleneck(body, "dconv_23", 64, 128, stride=2)
    body = net.residuals(body, "res_3", second, 64, 128)
    body = net.bottleneck(body, "dconv_34", 128, 256, stride=2)
    body = net.residuals(body, "res_4", third, 128, 256)
    body = net.bottleneck(body, "dconv_45", 128, 512, stride=2)
    body = net.residuals(body, "res_5", fourth, 128, 256)
    body = net.conv(body, "conv_6sep", 512)
    return embed(net.blocks, body, net_output, emb_size, net.width(512))


class Bottlenecks:
    """The layers of one network: ``multiplier`` is a factor on channel counts, ``norm`` has options of batch norm."""

    def __init__(self, blocks: Blocks, multiplier: float = 1.0, **norm: Any) -> None:
        self.blocks, self.multiplier, self.norm = blocks, multiplier, norm

    def width(self, channels: int) -> int:
        return max(8, round(channels * self.multiplier / 8) * 8)

    def linear(self, data: sym.Symbol, name: str, channels: int, *, kernel: int = 1, stride: int = 1, groups: int = 1,
               depthwise: bool = False) -> sym.Symbol:
        width = self.width(channels)
        return linear(data, name, width, self.blocks.bn_mom, kernel=kernel, stride=stride, pad=kernel // 2,
                      groups=width if depthwise else groups, **self.norm)

    def conv(self, data: sym.Symbol, name: str, channels: int, **options: Any) -> sym.Symbol:
        """The same and an activation."""
        return self.blocks.activation(self.linear(data, name, channels, **options), name + "_relu")

    def bottleneck(self, data: sym.Symbol, name: str, channels: int, inner: int, stride: int) -> sym.Symbol:
        """Widen to ``inner``, filter each channel by itself, and project to ``channels`` without an activation."""
        data = self.conv(data, name + "_conv_sep", inner)
        data = self.conv(data, name + "_conv_dw", inner, kernel=3, stride=stride, depthwise=True)
        return self.linear(data, name + "_conv_proj", channels)

    def residuals(self, data: sym.Symbol, name: str, count: int, channels: int, inner: int) -> sym.Symbol:
        for index in range(count):
            data = self.bottleneck(data, f"{name}_block{index}", channels, inner, stride=1) + data
        return data
