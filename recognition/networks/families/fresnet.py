# SPDX-License-Identifier: Apache-2.0
"""Residual networks for 112 x 112 faces: four stages that halve the map, of two-convolution units (arXiv 1512.03385).

The improved unit, ``net_unit`` 3, is that of ArcFace (arXiv 1801.07698, section 3.2.1, "IR").
"""
from __future__ import annotations

from typing import Callable

from recognition.config import types
from recognition.networks import sym
from recognition.networks.families.blocks import Blocks, scale_pixels
from recognition.networks.families.embedding import embed
from recognition.networks.graph import Graph

STAGE_CHANNELS = (64, 128, 256, 512)
STAGE_UNITS: dict[int, tuple[int, int, int, int]] = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    49: (3, 4, 14, 3),
    50: (3, 4, 14, 3),
    74: (3, 6, 24, 3),
    90: (3, 8, 30, 3),
    98: (3, 4, 38, 3),
    99: (3, 8, 35, 3),
    100: (3, 13, 30, 3),
    101: (3, 4, 23, 3),
    124: (3, 13, 40, 5),
    134: (3, 10, 50, 3),
    136: (3, 13, 48, 3),
    140: (3, 15, 48, 3),
    152: (3, 8, 36, 3),
    160: (3, 24, 49, 3),
    198: (6, 26, 60, 6),  # r200 of arcface_torch
    200: (3, 24, 36, 3),
    269: (3, 30, 48, 8),
    2060: (3, 128, 896, 3),  # r2060 of arcface_torch
}


def get_symbol(*, num_layers: int, emb_size: int = 512, net_output: str = "E", net_unit: int = 3, net_input: int = 1,
               net_act: str = "prelu", net_se: int = 0, bn_mom: float = 0.9, workspace: int = 256) -> Graph:
    """The network of the embedding ``fc1_output`` (N, emb_size) by ``data``, pixels 0..255 (N, 3, H, W), RGB.

    ``num_layers``  a key of :data:`STAGE_UNITS`
    ``net_unit``    1 activation after the sum; 2 activation before the convolutions; 3 batch norm first and last
    ``net_input``   1 scaled pixels, 3 x 3 convolution; 0 the same with 7 x 7 and stride 2, for larger images; 2 as 1,
                    with batch norm in place of the fixed scaling
    ``net_se``      1 adds squeeze and excitation to each unit

    The other options are those of :class:`Blocks` and :func:`embed`. A value that is not known is a :class:`UserError`.
    """
    types.choice(*STAGE_UNITS).check(num_layers, "num_layers")
    types.choice(*UNITS).check(net_unit, "net_unit")
    types.choice(0, 1, 2).check(net_input, "net_input")
    types.choice(0, 1).check(net_se, "net_se")
    blocks = Blocks(net_act, bn_mom, workspace)
    # Only this unit halves the map in its first convolution, and only after the large input layer.
    early = net_unit == 1 and net_input == 0
    body = input_layers(blocks, net_input)
    for stage, (units, channels) in enumerate(zip(STAGE_UNITS[num_layers], STAGE_CHANNELS), start=1):
        for unit in range(1, units + 1):
            stride = 2 if unit == 1 else 1
            strides = (stride, 1) if early or net_unit == 2 else (1, stride)
            body = UNITS[net_unit](blocks, body, f"stage{stage}_unit{unit}", channels, strides, bool(net_se))
    return embed(blocks, body, net_output, emb_size, STAGE_CHANNELS[-1])


def input_layers(blocks: Blocks, net_input: int) -> sym.Symbol:
    """The layers in front of the stages, from ``data``."""
    data = sym.Variable("data")
    if net_input == 2:
        data = blocks.batch_norm(data, "bn_data", fix_gamma=True)
    else:
        data = scale_pixels(sym.identity(data, name="id"))
    kernel, stride = (7, 2) if net_input == 0 else (3, 1)
    body = blocks.convolution(data, "conv0", STAGE_CHANNELS[0], kernel, stride)
    return blocks.activation(blocks.batch_norm(body, "bn0"), "relu0")


def projection(blocks: Blocks, data: sym.Symbol, name: str, channels: int, stride: int) -> sym.Symbol:
    """The shortcut past a unit that halves the map; past the others the data themselves."""
    if stride == 1:
        return data
    return blocks.batch_norm(blocks.convolution(data, name + "_conv1sc", channels, 1, stride), name + "_sc")


def _unit_post_activation(blocks: Blocks, data: sym.Symbol, name: str, channels: int, strides: tuple[int, int],
                          excite: bool) -> sym.Symbol:
    body = blocks.convolution(data, name + "_conv1", channels, 3, strides[0])
    body = blocks.activation(blocks.batch_norm(body, name + "_bn1"), name + "_relu1")
    body = blocks.convolution(body, name + "_conv2", channels, 3, strides[1])
    body = blocks.batch_norm(body, name + "_bn2")
    if excite:
        body = blocks.squeeze_excite(body, name, channels)
    return blocks.activation(body + projection(blocks, data, name, channels, max(strides)), name + "_relu3")


def _unit_pre_activation(blocks: Blocks, data: sym.Symbol, name: str, channels: int, strides: tuple[int, int],
                         excite: bool) -> sym.Symbol:
    active = blocks.activation(blocks.batch_norm(data, name + "_bn1"), name + "_relu1")
    body = blocks.convolution(active, name + "_conv1", channels, 3, strides[0])
    body = blocks.activation(blocks.batch_norm(body, name + "_bn2"), name + "_relu2")
    body = blocks.convolution(body, name + "_conv2", channels, 3, strides[1])
    if excite:
        body = blocks.squeeze_excite(body, name, channels)
    if max(strides) == 1:
        return body + data
    return body + blocks.convolution(active, name + "_sc", channels, 1, max(strides))


def _unit_improved(blocks: Blocks, data: sym.Symbol, name: str, channels: int, strides: tuple[int, int],
                   excite: bool) -> sym.Symbol:
    body = blocks.convolution(blocks.batch_norm(data, name + "_bn1"), name + "_conv1", channels, 3, strides[0])
    body = blocks.activation(blocks.batch_norm(body, name + "_bn2"), name + "_relu1")
    body = blocks.convolution(body, name + "_conv2", channels, 3, strides[1])
    body = blocks.batch_norm(body, name + "_bn3")
    if excite:
        body = blocks.squeeze_excite(body, name, channels)
    return body + projection(blocks, data, name, channels, max(strides))


UNITS: dict[int, Callable[..., sym.Symbol]] = {
    1: _unit_post_activation,
    2: _unit_pre_activation,
    3: _unit_improved,
}
