# SPDX-License-Identifier: Apache-2.0
"""Vision transformer (Dosovitskiy et al., arXiv 2010.11929) as arcface_torch has it: patches of 9 x 9 pixels, no class
token, a ReLU6 between the layers of a block, and an embedding of all tokens together.

In training whole blocks are left out for an image (stochastic depth, arXiv 1603.09382), and some of its patches: no
other token sees them, and a learned token stands for them in the embedding (arXiv 2208.10161, as in arXiv 2111.06377).
arcface_torch takes the patches out; here they stay and are not looked at, so that the network has one shape in
training and after, and the other tokens are the same numbers.

Pixels are scaled by 1/127.5 and norms add what PyTorch's add, so that its weights are taken as they are
(:mod:`recognition.networks.torch_weights.vit_weights`).
"""
from __future__ import annotations

import json
import math
from collections.abc import Sequence

from recognition.config import types
from recognition.errors import UserError
from recognition.networks import sym
from recognition.networks.graph import Graph

PATCH = 9  # side in pixels
WIDTH = 512  # of a token, times net_multiplier
HEADS = 8
SPREAD = {"sigma": 0.02}  # of first weights
NOISE_BITS = 16  # of a patch's random number, by whose rank it is left out
UNSEEN = 1e4  # taken from the scores of patches that are left out: exp(-1e4) is 0, and float16 holds it


def get_symbol(*, num_layers: int = 12, emb_size: int = 512, net_multiplier: float = 1.0, net_drop_path: float = 0.0,
               net_mask_ratio: float = 0.0, bn_mom: float = 0.9, image_shape: Sequence[int] = (112, 112, 3)) -> Graph:
    """The network of the embedding ``fc1_output`` (N, emb_size) by ``data``, pixels 0..255 (N, 3, H, W), RGB.

    ``num_layers``      blocks
    ``net_multiplier``  factor on a token's 512 numbers: 0.5 is vit_t, 1 vit_s and vit_b, 1.5 vit_l, 2 vit_h
    ``net_drop_path``   share of images that miss the last block in training; it grows with depth from 0 on
    ``net_mask_ratio``  share of an image's patches that are left out in training
    ``image_shape``     (H, W, 3), which says how many patches there are; what is left at the right and below is not
                        seen

    A value that is not known is a :class:`UserError`.
    """
    types.integer(least=1).check(num_layers, "num_layers")
    types.real(least=0, below=1).check(net_drop_path, "net_drop_path")
    types.real(least=0, below=1).check(net_mask_ratio, "net_mask_ratio")
    width = round(WIDTH * types.real(above=0).check(net_multiplier, "net_multiplier"))
    if width % HEADS or width != WIDTH * net_multiplier:
        raise UserError(f"net_multiplier: found {net_multiplier}, expected a multiple of {HEADS / WIDTH}")
    rows, columns = (side // PATCH for side in image_shape[:2])
    patches = rows * columns
    if not patches:
        raise UserError(f"image_shape: found {image_shape[0]}x{image_shape[1]}, expected sides of {PATCH} pixels at "
                        "least")
    data = sym.Variable("data")
    kept = int(patches * (1 - net_mask_ratio))
    seen = _seen(data, (rows, columns), kept) if kept < patches else None
    body = _tokens((data - 127.5) * (1 / 127.5), width, patches)
    unseen = None if seen is None else sym.Reshape((seen - 1.0) * UNSEEN, shape=(0, 1, 1, -1), name="unseen")
    for block in range(num_layers):
        dropped = net_drop_path * block / max(1, num_layers - 1)
        body = _block(body, f"block{block}", width, dropped, unseen)
    body = sym.LayerNorm(body, name="norm")
    if seen is not None:
        token = sym.Variable("mask_token_weight", shape=(1, 1, width), init=json.dumps(["normal", SPREAD]))
        body = sym.broadcast_mul(body, seen) + sym.broadcast_mul(1.0 - seen, token)
    body = sym.FullyConnected(sym.Flatten(body), num_hidden=width, no_bias=True, name="feature_fc")
    body = sym.BatchNorm(body, fix_gamma=False, momentum=bn_mom, eps=2e-5, name="feature_bn")
    body = sym.FullyConnected(body, num_hidden=emb_size, no_bias=True, name="pre_fc1")
    return sym.BatchNorm(body, fix_gamma=False, momentum=bn_mom, eps=2e-5, name="fc1").graph()


def _tokens(data: sym.Symbol, width: int, patches: int) -> sym.Symbol:
    """Patches, each by the same linear map, and where they are: (N, 3, H, W) -> (N, patches, width)."""
    start = json.dumps(["uniform", {"scale": 1 / math.sqrt(3 * PATCH ** 2)}])  # PyTorch's of a convolution
    weight, bias = (sym.Variable(f"patch_embed_{part}", init=start) for part in ("weight", "bias"))
    body = sym.Convolution(data, weight, bias, num_filter=width, kernel=(PATCH, PATCH), stride=(PATCH, PATCH),
                           name="patch_embed")
    body = sym.transpose(sym.Reshape(body, shape=(0, 0, -1)), axes=(0, 2, 1))
    places = sym.Variable("pos_embed_weight", shape=(1, patches, width), init=json.dumps(["normal", SPREAD]))
    return sym.broadcast_add(body, places)


def _block(data: sym.Symbol, name: str, width: int, dropped: float, unseen: sym.Symbol | None) -> sym.Symbol:
    """Attention, then two layers for each token by itself; both are added to what they read, (N, patches, width)."""
    body = _attention(sym.LayerNorm(data, name=f"{name}_norm1"), f"{name}_attn", width, unseen)
    data = data + _or_nothing(body, dropped, f"{name}_path1")
    body = sym.LayerNorm(data, name=f"{name}_norm2")
    body = sym.FullyConnected(body, num_hidden=4 * width, flatten=False, name=f"{name}_mlp_fc1")
    body = sym.clip(body, a_min=0, a_max=6)
    body = sym.FullyConnected(body, num_hidden=width, flatten=False, name=f"{name}_mlp_fc2")
    return data + _or_nothing(body, dropped, f"{name}_path2")


def _attention(data: sym.Symbol, name: str, width: int, unseen: sym.Symbol | None) -> sym.Symbol:
    """Each token's mean of all tokens' values, weighed by softmax(q k / sqrt(d)), in HEADS parts of a token."""
    size = width // HEADS
    body = sym.FullyConnected(data, num_hidden=3 * width, flatten=False, no_bias=True, name=f"{name}_qkv")
    body = sym.transpose(sym.Reshape(body, shape=(0, 0, 3 * HEADS, size)), axes=(0, 2, 1, 3))
    parts = sym.SliceChannel(body, num_outputs=3, axis=1)
    query, key, value = (parts[part] for part in range(3))  # (N, HEADS, patches, size)
    scores = sym.batch_dot(query * (1 / math.sqrt(size)), key, transpose_b=True)
    if unseen is not None:
        scores = sym.broadcast_add(scores, unseen)
    body = sym.transpose(sym.batch_dot(sym.softmax(scores, axis=-1), value), axes=(0, 2, 1, 3))
    body = sym.Reshape(body, shape=(0, 0, -3))
    return sym.FullyConnected(body, num_hidden=width, flatten=False, name=f"{name}_proj")


def _or_nothing(data: sym.Symbol, dropped: float, name: str) -> sym.Symbol:
    """A path that in training is zero for that share of the images, and the more for the others."""
    return sym.Dropout(data, p=dropped, axes=(1, 2), name=name) if dropped else data


def _seen(data: sym.Symbol, grid: tuple[int, int], kept: int) -> sym.Symbol:
    """1 for ``kept`` patches of each image, chosen at random in training, and 0 for the others; else 1 for all:
    (N, patches, 1).

    Each patch gets a random number, of bits that a dropout throws, and is kept if fewer than ``kept`` of its image have
    smaller ones. Without a dropout the numbers are the same, and none is smaller.
    """
    ones = sym.slice_axis(sym.ones_like(data), axis=1, begin=0, end=1)
    for axis, size in enumerate(grid, start=2):
        ones = sym.slice_axis(ones, axis=axis, begin=0, end=size)
    ones = sym.Reshape(ones, shape=(0, -1, 1))
    noise = sym.Dropout(sym.tile(ones, reps=(1, 1, NOISE_BITS)), p=0.5, name="mask_bits")
    bits = NOISE_BITS
    while bits > 1:  # the upper half of the bits, times what the lower half can hold
        bits //= 2
        low, high = (sym.slice_axis(noise, axis=2, begin=begin, end=begin + bits) for begin in (0, bits))
        noise = low + high * float(2 ** bits)
    smaller = sym.broadcast_sub(noise, sym.transpose(noise, axes=(0, 2, 1))) > 0.0
    return sym.BlockGrad(sym.sum(smaller, axis=2, keepdims=True) < float(kept), name="seen")
