# SPDX-License-Identifier: Apache-2.0
"""The layers between a backbone's last feature map and the embedding: ``config.net_output``.

========  ===========================================================================================================
E         batch norm, dropout 0.4, fully connected, batch norm (ArcFace, arXiv 1801.07698, section 3.2)
F, G, H   without the last batch norm: F batch norm, dropout, fully connected; G without dropout; H fully connected only
FC, I     E without dropout
J         fully connected, batch norm
Z         batch norm, dropout and the flattened map itself: ``emb_size`` must be C * H * W
GAP       batch norm, activation, mean over the map, fully connected, batch norm
GNAP      the map's places scaled to their mean norm, then averaged (arXiv 1811.00116); the mean runs over the whole
          batch, so that an embedding depends a little on the other images of its batch
GDC       a depthwise convolution as large as the map of a 112 x 112 image, 7 x 7 (MobileFaceNets, arXiv 1804.07573)
SFC       batch norm, depthwise 3 x 3 convolution of stride 2, 1 x 1 convolution, fully connected, batch norm
========  ===========================================================================================================

A fully connected layer before a batch norm is called ``pre_fc1``; the last layer is always ``fc1``.
"""
from __future__ import annotations

from typing import Callable, NamedTuple

from recognition.config import types
from recognition.networks import sym
from recognition.networks.families.blocks import Blocks, linear
from recognition.networks.graph import Graph

LEGACY_CHANNELS = 512  # of a map, in the public recipes, if a network does not say


class OutputOptions(NamedTuple):
    """Options that the steps of an output share.

    They are layer builders, size of the embedding, channels of the backbone's last map, and the number of filters of a
    grouped convolution, each of which reads ``channels / filters`` channels.
    """

    blocks: Blocks
    emb_size: int
    channels: int
    filters: int


Step = Callable[[OutputOptions, sym.Symbol], sym.Symbol]


def embed(blocks: Blocks, data: sym.Symbol, net_output: str, emb_size: int, channels: int = LEGACY_CHANNELS,
          filters: int | None = None) -> Graph:
    """The network up to the embedding ``fc1_output`` (N, emb_size) of a map ``data`` (N, channels, H, W), by
    ``net_output``.

    ``filters`` is the number of filters of GDC's and SFC's grouped convolutions; not given, one a channel.
    """
    types.choice(*OUTPUTS).check(net_output, "net_output")
    options = OutputOptions(blocks, emb_size, channels, filters or channels)
    for step in OUTPUTS[net_output]:
        data = step(options, data)
    return data.graph()


def _batch_norm(options: OutputOptions, data: sym.Symbol) -> sym.Symbol:
    return options.blocks.batch_norm(data, "bn1")


def _dropout(options: OutputOptions, data: sym.Symbol) -> sym.Symbol:
    return sym.Dropout(data, p=0.4)


def _activation(options: OutputOptions, data: sym.Symbol) -> sym.Symbol:
    return options.blocks.activation(data, "relu1")


def _mean(options: OutputOptions, data: sym.Symbol) -> sym.Symbol:
    return sym.Flatten(sym.Pooling(data, global_pool=True, kernel=(7, 7), pool_type="avg", name="pool1"))


def _flatten(options: OutputOptions, data: sym.Symbol) -> sym.Symbol:
    return sym.Flatten(data, name="fc1")


def _fully_connected(options: OutputOptions, data: sym.Symbol) -> sym.Symbol:
    return sym.FullyConnected(data, num_hidden=options.emb_size, name="fc1")


def _project(options: OutputOptions, data: sym.Symbol) -> sym.Symbol:
    data = sym.FullyConnected(data, num_hidden=options.emb_size, name="pre_fc1")
    return options.blocks.batch_norm(data, "fc1", fix_gamma=True)


def _depthwise_map(options: OutputOptions, data: sym.Symbol) -> sym.Symbol:
    return linear(data, "conv_6dw7_7", options.filters, options.blocks.bn_mom, kernel=7, groups=options.filters)


def _separable(options: OutputOptions, data: sym.Symbol) -> sym.Symbol:
    blocks, filters = options.blocks, options.filters
    data = sym.Convolution(data, num_filter=filters, kernel=(3, 3), stride=(2, 2), pad=(1, 1), no_bias=True,
                              num_group=filters, name="convf")
    data = blocks.activation(blocks.batch_norm(data, "bnf"), "reluf")
    data = sym.Convolution(data, num_filter=filters, kernel=(1, 1), stride=(1, 1), pad=(0, 0), name="convf2")
    return blocks.activation(blocks.batch_norm(data, "bnf2"), "reluf2")


def _norm_aware_mean(options: OutputOptions, data: sym.Symbol) -> sym.Symbol:
    blocks, channels = options.blocks, options.channels
    if options.emb_size > min(channels, LEGACY_CHANNELS):
        channels = options.emb_size
        data = sym.Convolution(data, num_filter=channels, kernel=(1, 1), stride=(1, 1), pad=(0, 0), no_bias=True,
                                  name="convx")
        data = blocks.activation(blocks.batch_norm(data, "convx_bn"), "convx_relu")
    data = blocks.batch_norm(data, "bn6f", fix_gamma=True)
    norms = sym.sqrt(sym.sum(data * data, axis=1, keepdims=True))
    data = data * sym.tile(sym.broadcast_div(sym.mean(norms), norms), reps=(1, channels, 1, 1))
    data = sym.Pooling(data, global_pool=True, kernel=(7, 7), pool_type="avg")
    if options.emb_size < channels:
        data = blocks.batch_norm(data, "bn6w", fix_gamma=True)
        data = sym.FullyConnected(data, num_hidden=options.emb_size, name="pre_fc1")
    else:
        data = sym.Flatten(data)
    return blocks.batch_norm(data, "fc1", fix_gamma=True)


OUTPUTS: dict[str, tuple[Step, ...]] = {
    "E": (_batch_norm, _dropout, _project),
    "F": (_batch_norm, _dropout, _fully_connected),
    "G": (_batch_norm, _fully_connected),
    "H": (_fully_connected,),
    "I": (_batch_norm, _project),
    "J": (_project,),
    "Z": (_batch_norm, _dropout, _flatten),
    "FC": (_batch_norm, _project),
    "SFC": (_batch_norm, _separable, _project),
    "GAP": (_batch_norm, _activation, _mean, _project),
    "GNAP": (_norm_aware_mean,),
    "GDC": (_depthwise_map, _project),
}
