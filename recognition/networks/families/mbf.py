# SPDX-License-Identifier: Apache-2.0
"""MobileFaceNet (arXiv 1804.07573) as arcface_torch has it: channels between bottlenecks are wider than the paper's,
those within are not.

Pixels are scaled by 1/127.5 and batch norm adds 1e-5, as there, so that PyTorch's weights are taken as they are
(:mod:`recognition.networks.torch_weights.mbf_weights`).
"""
from __future__ import annotations

from collections.abc import Sequence

from recognition.config import types
from recognition.networks import sym
from recognition.networks.families.blocks import Blocks, linear
from recognition.networks.families.fmobilefacenet import Bottlenecks
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
    net = Bottlenecks(Blocks(net_act, bn_mom), eps=EPSILON)
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
    body = sym.Flatten(linear(body, "conv_6dw7_7", LAST, bn_mom, kernel=7, groups=LAST, eps=EPSILON))
    body = sym.FullyConnected(body, num_hidden=emb_size, no_bias=True, name="pre_fc1")
    return sym.BatchNorm(body, fix_gamma=False, momentum=bn_mom, name="fc1", eps=EPSILON).graph()
