# SPDX-License-Identifier: Apache-2.0
"""MobileFaceNet (arXiv 1804.07573) as arcface_torch has it: channels between bottlenecks are wider than the paper's,
those within are not.

Pixels are scaled by 1/127.5 and batch norm adds 1e-5, as there, so that PyTorch's weights are taken as they are
(:mod:`recognition.networks.mbf_weights`).
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from recognition.config import types
from recognition.networks import sym
from recognition.networks.families.blocks import Blocks
from recognition.networks.graph import Graph

EPSILON = 1e-5
LAST = 512  # channels before the embedding, whatever the multiplier


def get_symbol(*, emb_size: int = 512, net_blocks: Sequence[int] = (1, 4, 6, 2), net_multiplier: float = 2.0,
               net_act: str = "prelu", bn_mom: float = 0.9) -> Graph:
    """The network of the embedding ``fc1_output`` (N, emb_size) by ``data``, pixels 0..255 (N, 3, H, W), RGB.

    ``net_blocks``      residual bottlenecks on the maps of 1/2, 1/4, 1/8 and 1/16 of the image's size; a 1 at the first
                        place is a plain convolution of 64 groups
    ``net_multiplier``  factor on the channels between bottlenecks: 2 is mbf, 4 mbf_large

    The other options are those of :class:`Blocks`. A value that is not known is a :class:`UserError`.
    """
    first, second, third, fourth = types.four_counts.check(net_blocks, "net_blocks")
    scale = types.choice(1, 2, 4).check(net_multiplier, "net_multiplier")
    net = _Layers(Blocks(net_act, bn_mom))
    narrow, wide = 64 * scale, 128 * scale
    body = net.conv((sym.Variable("data") - 127.5) * (1 / 127.5), "conv_1", narrow, kernel=3, stride=2)
    if first == 1:
        body = net.conv(body, "conv_2_dw", narrow, kernel=3, groups=64)
    else:
        body = net.residuals(body, "res_2", first, narrow, 128)
    body = net.bottleneck(body, "dconv_23", narrow, 128, stride=2)
    body = net.residuals(body, "res_3", second, narrow, 128)
    body = net.bottleneck(body, "dconv_34", wide, 256, stride=2)
    body = net.residuals(body, "res_4", third, wide, 256)
    body = net.bottleneck(body, "dconv_45", wide, 512, stride=2)
    body = net.residuals(body, "res_5", fourth, wide, 256)
    body = net.conv(body, "conv_6sep", LAST)
    body = sym.Convolution(body, num_filter=LAST, kernel=(7, 7), stride=(1, 1), pad=(0, 0), num_group=LAST,
                           no_bias=True, name="conv_6dw7_7_conv2d")
    body = sym.Flatten(net.norm(body, "conv_6dw7_7_batchnorm"))
    body = sym.FullyConnected(body, num_hidden=emb_size, no_bias=True, name="pre_fc1")
    return net.norm(body, "fc1").graph()


class _Layers:
    """The layers of one network."""

    def __init__(self, blocks: Blocks) -> None:
        self.blocks = blocks

    def norm(self, data: sym.Symbol, name: str) -> sym.Symbol:
        return sym.BatchNorm(data, fix_gamma=False, eps=EPSILON, momentum=self.blocks.bn_mom, name=name)

    def linear(self, data: sym.Symbol, name: str, channels: int, **options: Any) -> sym.Symbol:
        kernel, stride, groups = (options.get(key, 1) for key in ("kernel", "stride", "groups"))
        data = sym.Convolution(data, num_filter=channels, kernel=(kernel, kernel), stride=(stride, stride),
                               pad=(kernel // 2, kernel // 2), num_group=groups, no_bias=True, name=name + "_conv2d")
        return self.norm(data, name + "_batchnorm")

    def conv(self, data: sym.Symbol, name: str, channels: int, **options: Any) -> sym.Symbol:
        return self.blocks.activation(self.linear(data, name, channels, **options), name + "_relu")

    def bottleneck(self, data: sym.Symbol, name: str, channels: int, inner: int, stride: int) -> sym.Symbol:
        """Widen to ``inner``, filter each channel by itself, and project to ``channels`` without an activation."""
        data = self.conv(data, name + "_conv_sep", inner)
        data = self.conv(data, name + "_conv_dw", inner, kernel=3, stride=stride, groups=inner)
        return self.linear(data, name + "_conv_proj", channels)

    def residuals(self, data: sym.Symbol, name: str, count: int, channels: int, inner: int) -> sym.Symbol:
        for index in range(count):
            data = self.bottleneck(data, f"{name}_block{index}", channels, inner, stride=1) + data
        return data
