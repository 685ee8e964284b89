# SPDX-License-Identifier: Apache-2.0
"""ResNeXt (Xie et al., arXiv 1611.05431) for 112 x 112 faces: ``fresnet`` of bottlenecks of grouped convolutions.

Partial FC names ``fresnext`` and publishes no file of it. This is what its ``resnet.py`` makes of bottlenecks with the
ResNeXt unit that stands there and that nothing uses.
"""
from __future__ import annotations

from recognition.config import types
from recognition.networks import sym
from recognition.networks.families.blocks import Blocks
from recognition.networks.families.embedding import embed
from recognition.networks.families.fresnet import STAGE_UNITS, input_layers, projection
from recognition.networks.graph import Graph

STAGE_CHANNELS = (256, 512, 1024, 2048)
GROUPS = 32
LAST = 512  # channels in front of the embedding


def get_symbol(*, num_layers: int, emb_size: int = 512, net_output: str = "FC", net_input: int = 1,
               net_act: str = "prelu", net_se: int = 0, bn_mom: float = 0.9, workspace: int = 256) -> Graph:
    """The network of the embedding ``fc1_output`` (N, emb_size) by ``data``, pixels 0..255 (N, 3, H, W), RGB.

    ``num_layers``  a key of :data:`recognition.networks.families.fresnet.STAGE_UNITS`, which has the units of a stage

    The other options are those of ``fresnet``. A value that is not known is a :class:`UserError`.
    """
    types.choice(*STAGE_UNITS).check(num_layers, "num_layers")
    types.choice(0, 1, 2).check(net_input, "net_input")
    types.choice(0, 1).check(net_se, "net_se")
    blocks = Blocks(net_act, bn_mom, workspace)
    body = input_layers(blocks, net_input)
    for stage, (units, channels) in enumerate(zip(STAGE_UNITS[num_layers], STAGE_CHANNELS), start=1):
        for unit in range(1, units + 1):
            body = _unit(blocks, body, f"stage{stage}_unit{unit}", channels, 2 if unit == 1 else 1, bool(net_se))
    body = blocks.activation(blocks.batch_norm(blocks.convolution(body, "convd", LAST, 1), "bnd"), "relud")
    return embed(blocks, body, net_output, emb_size, LAST)


def _unit(blocks: Blocks, data: sym.Symbol, name: str, channels: int, stride: int, excite: bool) -> sym.Symbol:
    """A bottleneck with batch norm first and last; its last convolution halves the map where ``stride`` is 2."""
    body = blocks.convolution(blocks.batch_norm(data, name + "_bn1"), name + "_conv1", channels // 2, 1, groups=GROUPS)
    body = blocks.activation(blocks.batch_norm(body, name + "_bn2"), name + "_relu1")
    body = blocks.convolution(body, name + "_conv2", channels // 2, 3, groups=GROUPS)
    body = blocks.activation(blocks.batch_norm(body, name + "_bn3"), name + "_relu2")
    body = blocks.batch_norm(blocks.convolution(body, name + "_conv3", channels, 1, stride), name + "_bn4")
    if excite:
        body = blocks.squeeze_excite(body, name, channels)
    return body + projection(blocks, data, name, channels, stride)
