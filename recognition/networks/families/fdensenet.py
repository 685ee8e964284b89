# SPDX-License-Identifier: Apache-2.0
"""DenseNet (Huang et al., arXiv 1608.06993), DenseNet-BC: each layer reads the maps of all before it in its block."""
from __future__ import annotations

from typing import NamedTuple

from recognition.config import types
from recognition.networks import sym
from recognition.networks.families.blocks import scale_pixels
from recognition.networks.families.embedding import LEGACY_CHANNELS, embed
from recognition.networks.families.gluon_blocks import GluonBlocks
from recognition.networks.graph import Graph

NAME = "densenet0_"
BOTTLENECK = 4  # channels of a layer's 1 x 1 convolution, as a multiple of the growth


class Depth(NamedTuple):
    """Channels of the first convolution, channels that each layer adds, and layers in each block."""

    first: int
    growth: int
    layers: tuple[int, int, int, int]


DEPTHS: dict[int, Depth] = {
    121: Depth(64, 32, (6, 12, 24, 16)),
    161: Depth(96, 48, (6, 12, 36, 24)),
    169: Depth(64, 32, (6, 12, 32, 32)),
    201: Depth(64, 32, (6, 12, 48, 32)),
}


def get_symbol(*, num_layers: int, emb_size: int = 512, net_output: str = "E", net_act: str = "prelu",
               densenet_dropout: float = 0.0, bn_mom: float = 0.9) -> Graph:
    """The network of the embedding ``fc1_output`` (N, emb_size) by ``data``, pixels 0..255 (N, 3, H, W), RGB.

    ``num_layers``        a key of :data:`DEPTHS`
    ``densenet_dropout``  share of values that training drops behind each layer of a block

    The other options are those of :class:`Blocks` and :func:`embed`; the first and the last activation are always
    ReLU. A value that is not known is a :class:`UserError`.
    """
    types.choice(*DEPTHS).check(num_layers, "num_layers")
    types.real(least=0, below=1).check(densenet_dropout, "densenet_dropout")
    channels, growth, layers = DEPTHS[num_layers]
    net = GluonBlocks(net_act, bn_mom)
    body = net.conv(scale_pixels(sym.Variable("data")), NAME, 0, channels, kernel=3)
    body = net.act(net.norm(body, NAME, 0), NAME, 0, "relu")
    body = sym.Pooling(body, kernel=(3, 3), stride=(2, 2), pad=(1, 1), pool_type="max", name=NAME + "pool0")
    for stage, count in enumerate(layers, start=1):
        body = _dense_block(net, body, f"{NAME}stage{stage}_", count, growth, densenet_dropout)
        channels += count * growth
        if stage < len(layers):
            channels //= 2
            body = net.act(net.norm(body, NAME, stage), NAME, stage - 1)
            body = net.conv(body, NAME, stage, channels)
            body = sym.Pooling(body, kernel=(2, 2), stride=(2, 2), pool_type="avg", name=f"{NAME}pool{stage}")
    body = net.act(net.norm(body, NAME, len(layers)), NAME, len(layers), "relu")
    # The recipes' GDC has 512 filters for the 1024 channels of 121 layers; other depths have no such graph to keep.
    filters = LEGACY_CHANNELS if channels % LEGACY_CHANNELS == 0 else channels
    return embed(net, body, net_output, emb_size, channels, filters)


def _dense_block(net: GluonBlocks, data: sym.Symbol, scope: str, count: int, growth: int,
                 dropout: float) -> sym.Symbol:
    """A block of ``count`` layers: (N, C, H, W) -> (N, C + count * growth, H, W)."""
    for layer in range(count):
        body = net.act(net.norm(data, scope, 2 * layer), scope, 2 * layer)
        body = net.conv(body, scope, 2 * layer, BOTTLENECK * growth)
        body = net.act(net.norm(body, scope, 2 * layer + 1), scope, 2 * layer + 1)
        body = net.conv(body, scope, 2 * layer + 1, growth, kernel=3)
        if dropout:
            body = sym.Dropout(body, p=dropout, name=f"{scope}dropout{layer}")
        data = sym.concat(data, body, dim=1, name=f"{scope}concat{layer}")
    return data
