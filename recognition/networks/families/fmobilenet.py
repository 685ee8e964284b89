# SPDX-License-Identifier: Apache-2.0
"""MobileNet (Howard et al., arXiv 1704.04861): pairs of a depthwise 3 x 3 and a 1 x 1 convolution."""
from __future__ import annotations

from recognition.config import types
from recognition.errors import UserError
from recognition.networks import sym
from recognition.networks.families.blocks import Blocks, linear, scale_pixels
from recognition.networks.families.embedding import LEGACY_CHANNELS, embed
from recognition.networks.graph import Graph

FIRST_CHANNELS = 32
# Of the pairs conv_2 .. conv_14: channels as a multiple of the first layer's, and stride.
PAIRS = ((2, 1), (4, 2), (4, 1), (8, 2), (8, 1), (16, 2), *[(16, 1)] * 5, (32, 2), (32, 1))


def get_symbol(*, emb_size: int = 256, net_output: str = "GDC", net_multiplier: float = 1.0, net_input: int = 1,
               net_act: str = "prelu", bn_mom: float = 0.9) -> Graph:
    """The network of the embedding ``fc1_output`` (N, emb_size) by ``data``, pixels 0..255 (N, 3, H, W), RGB.

    ``net_multiplier``  factor on the channels of every convolution, counted from the 32 of the first, rounded down
    ``net_input``       0 halves the map in the first convolution, for larger images; 1 and 2 do not

    The other options are those of :class:`Blocks` and :func:`embed`. A value that is not known is a :class:`UserError`.
    """
    types.choice(0, 1, 2).check(net_input, "net_input")
    first = int(FIRST_CHANNELS * types.real(above=0).check(net_multiplier, "net_multiplier"))
    if not first:
        raise UserError(f"net_multiplier: found {net_multiplier:g}, expected at least {1 / FIRST_CHANNELS:g}, "
                        "which leaves one channel")
    blocks = Blocks(net_act, bn_mom)

    def conv(data: sym.Symbol, name: str, channels: int, kernel: int, stride: int = 1,
             groups: int = 1) -> sym.Symbol:
        data = linear(data, name, channels, bn_mom, kernel=kernel, stride=stride, pad=kernel // 2, groups=groups,
                      fix_gamma=True)
        return blocks.activation(data, name + "_relu")

    body = conv(scale_pixels(sym.Variable("data")), "conv_1", first, 3, stride=2 if net_input == 0 else 1)
    channels = first
    for number, (multiple, stride) in enumerate(PAIRS, start=2):
        body = conv(body, f"conv_{number}_dw", channels, 3, stride, groups=channels)
        channels = first * multiple
        body = conv(body, f"conv_{number}", channels, 1)
    # The recipes' GDC has 512 filters for these 1024 channels; other multipliers have no such graph to keep.
    filters = LEGACY_CHANNELS if channels % LEGACY_CHANNELS == 0 else channels
    return embed(blocks, body, net_output, emb_size, channels, filters)
