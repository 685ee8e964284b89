# SPDX-License-Identifier: Apache-2.0
"""VarGFaceNet (Yan et al., arXiv 1910.04985): convolutions whose groups all have 8 channels."""
from __future__ import annotations

from recognition.config import types
from recognition.errors import UserError
from recognition.networks import sym
from recognition.networks.families.blocks import Blocks, scale_pixels
from recognition.networks.families.embedding import embed
from recognition.networks.graph import Graph

GROUP_CHANNELS = 8  # channels in a group
FIRST_CHANNELS = 32
STAGES = ((64, 3), (128, 7), (256, 4))  # channels and units of stages 2, 3 and 4
LAST_CHANNELS = 1024  # before the embedding, whatever the multiplier


def get_symbol(*, emb_size: int = 512, net_output: str = "J", net_multiplier: float = 1.25, net_act: str = "prelu",
               net_se: int = 0, bn_mom: float = 0.9, workspace: int = 256) -> Graph:
    """The network of the embedding ``fc1_output`` (N, emb_size) by ``data``, pixels 0..255 (N, 3, 112, 112), RGB.

    ``net_multiplier``  factor on the channels of all stages, which must come in groups of 8
    ``net_se``          1 adds squeeze and excitation to each unit but a stage's first

    The other options are those of :class:`Blocks` and :func:`embed`. A value that is not known is a :class:`UserError`.
    """
    types.choice(0, 1).check(net_se, "net_se")
    types.real(above=0).check(net_multiplier, "net_multiplier")
    first, *widths = (int(channels * net_multiplier) for channels in (FIRST_CHANNELS, *(c for c, _ in STAGES)))
    if not first or any(width % GROUP_CHANNELS for width in (first, *widths)):
        raise UserError(f"net_multiplier: found {net_multiplier:g}, expected a multiple of "
                        f"{GROUP_CHANNELS / FIRST_CHANNELS:g}, so that channels come in groups of {GROUP_CHANNELS}")
    net = _Layers(net_act, bn_mom, workspace)
    body = net.conv(scale_pixels(sym.identity(sym.Variable("data"), name="id")), "vargface_head_conv1", first, 3)
    body = net.activation(body, "vargface_head_conv1_act")
    body = net.unit(body, "vargface_head_head_pooling", first, factor=1, excite=bool(net_se), stride=2)
    before = first
    for stage, (channels, (_, units)) in enumerate(zip(widths, STAGES), start=2):
        body = net.branches(body, f"vargface_stage_{stage}_unit_1", before, channels)
        for unit in range(2, units + 1):
            body = net.unit(body, f"vargface_stage_{stage}_unit_{unit}", channels, factor=2, excite=bool(net_se))
        before = channels
    return embed(net, net.last(body), net_output, emb_size)


class _Layers(Blocks):

    def conv(self, data: sym.Symbol, name: str, channels: int, kernel: int = 1, stride: int = 1,
             groups: int = 1) -> sym.Symbol:
        return self.batch_norm(self.convolution(data, name, channels, kernel, stride, groups), name + "_bn")

    def separable(self, data: sym.Symbol, name: str, inputs: int, channels: int, factor: int, stride: int = 1,
                  active: bool = True) -> sym.Symbol:
        """3 x 3 in groups, from ``inputs`` to ``factor`` times as many channels, then 1 x 1 to ``channels``."""
        name += "_conv2d"
        data = self.conv(data, name + "_depthwise", inputs * factor, 3, stride, groups=inputs // GROUP_CHANNELS)
        data = self.conv(self.activation(data, name + "_depthwise_act"), name + "_pointwise", channels)
        return self.activation(data, name + "_pointwise_act") if active else data

    def unit(self, data: sym.Symbol, name: str, channels: int, factor: int, excite: bool,
             stride: int = 1) -> sym.Symbol:
        """Two separable convolutions and a shortcut, which is a third one where the map is halved."""
        shortcut = data
        if stride > 1:
            shortcut = self.separable(data, name + "_shortcut", channels, channels, factor, stride, active=False)
        body = self.separable(data, name + "_sep1_data", channels, channels, factor, stride)
        body = self.separable(body, name + "_sep2_data", channels, channels, factor, active=False)
        if excite:
            body = self.squeeze_excite(body, name, channels, reduction=4, act="act1")
        return self.activation(body + shortcut, name + "_out_data_act")

    def branches(self, data: sym.Symbol, name: str, inputs: int, channels: int) -> sym.Symbol:
        """The first unit of a stage, which halves the map: the sum of two branches, convolved, and a shortcut."""
        first, second, shortcut = (
            self.separable(data, f"{name}_{part}", inputs, channels, 2, stride=2, active=False)
            for part in ("sep1_data_branch", "sep2_data_branch", "shortcut"))
        body = self.activation(first + second, name + "_sep1_data_act")
        body = self.separable(body, name + "_sep2_data", channels, channels, 2, active=False)
        return self.activation(body + shortcut, name + "_out_data_act")

    def last(self, data: sym.Symbol) -> sym.Symbol:
        """The last layers: (N, C, 7, 7), the map of a 112 x 112 image, to (N, 512, 1, 1)."""
        data = self.activation(self.conv(data, "embed_convx", LAST_CHANNELS), "embed_convx_act")
        data = sym.Convolution(data, num_filter=LAST_CHANNELS, kernel=(7, 7), num_group=LAST_CHANNELS // GROUP_CHANNELS,
                                  no_bias=True, workspace=self.workspace, name="embed_convx_depthwise")
        data = self.batch_norm(data, "embed_convx_depthwise_bn")
        return self.activation(self.conv(data, "embed_convx_pointwise", LAST_CHANNELS // 2),
                               "embed_convx_pointwise_act")
