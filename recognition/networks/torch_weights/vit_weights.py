# SPDX-License-Identifier: Apache-2.0
"""The parameters of arcface_torch's ViTs as those of the family ``vit``, and back.

Both networks compute the same, so values are taken as they are: names alone differ. Its variants by stochastic depth
and masks (``vit_t_dp005_mask0``) have the same arrays. A network here without masks has no token for what is masked;
arcface_torch's has one that it never reads, which is written as zeros.
"""
from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from recognition.errors import UserError
from recognition.io.params import Arrays
from recognition.networks.families import vit
from recognition.networks.graph import Graph
from recognition.networks.shapes import infer_shapes
from recognition.networks.torch_weights.iresnet import BATCH_NORM, under_their_names

# Width of a token and blocks, with the shares that each leaves out in training. vit_l is what arcface_torch calls
# vit_l_dp005_mask_005; its masks are of a tenth whatever the name says, as random_masking is not told the ratio.
NETWORKS = {"vit_t": (256, 12, 0.1, 0.1), "vit_s": (512, 12, 0.1, 0.1), "vit_b": (512, 24, 0.1, 0.1),
            "vit_l": (768, 24, 0.05, 0.1), "vit_h": (1024, 48, 0.1, 0.0)}
MARK, OUR_MARK = "pos_embed", "pos_embed_weight"  # names that no other network has
TOKEN, OUR_TOKEN = "mask_token", "mask_token_weight"
VARIANT = r"_dp005_mask_?\d+$"  # how names of variants end, which differ in what training leaves out
SIDE = 112  # of arcface_torch's images
_WEIGHT_AND_BIAS = (("weight", "weight"), ("bias", "bias"))
_NORM = (("weight", "gamma"), ("bias", "beta"))
_BLOCK = (("norm1", "norm1", _NORM), ("attn.qkv", "attn_qkv", _WEIGHT_AND_BIAS[:1]),
          ("attn.proj", "attn_proj", _WEIGHT_AND_BIAS), ("norm2", "norm2", _NORM),
          ("mlp.fc1", "mlp_fc1", _WEIGHT_AND_BIAS), ("mlp.fc2", "mlp_fc2", _WEIGHT_AND_BIAS))


def pairs(blocks: int) -> Iterator[tuple[str, str]]:
    """PyTorch's and our name of each array, in PyTorch's order."""
    yield from ((MARK, OUR_MARK), (TOKEN, OUR_TOKEN))
    yield from _layer("patch_embed.proj", "patch_embed", _WEIGHT_AND_BIAS)
    for block in range(blocks):
        for theirs, ours, parts in _BLOCK:
            yield from _layer(f"blocks.{block}.{theirs}", f"block{block}_{ours}", parts)
    yield from _layer("norm", "norm", _NORM)
    yield from _layer("feature.0", "feature_fc", _WEIGHT_AND_BIAS[:1])
    yield from _layer("feature.1", "feature_bn", BATCH_NORM)
    yield from _layer("feature.2", "pre_fc1", _WEIGHT_AND_BIAS[:1])
    yield from _layer("feature.3", "fc1", BATCH_NORM)


def _layer(theirs: str, ours: str, parts: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    return ((f"{theirs}.{a}", f"{ours}_{b}") for a, b in parts)


def from_torch(tensors: Mapping[str, np.ndarray], source: str) -> tuple[str, Graph, Arrays, Arrays]:
    """Name, network, parameters and auxiliary states (float32) from the network's tensors by name.

    :raises UserError: if they are not those of such a ViT for 112 x 112 images; it names ``source``.
    """
    found = {name: value for name, value in tensors.items() if not name.endswith("num_batches_tracked")}
    blocks, width = blocks_of(found), found[MARK].shape[-1]
    names = dict(pairs(blocks))
    name, dropped, masked = _named(width, blocks, source)
    if odd := sorted(names.keys() ^ found.keys()):
        raise UserError(f"{source}: found {len(found)} arrays, expected the {len(names)} of arcface_torch's {name}, "
                        f"which {odd[0]} tells apart")
    graph = vit.get_symbol(num_layers=blocks, net_multiplier=width / vit.WIDTH, net_drop_path=dropped,
                           net_mask_ratio=masked, emb_size=len(found["feature.2.weight"]),
                           image_shape=(SIDE, SIDE, 3))
    shapes = infer_shapes(graph, (3, SIDE, SIDE))
    wanted = {**shapes.arguments, **shapes.auxiliary}
    for theirs, ours in names.items():
        if ours in wanted and found[theirs].shape != wanted[ours]:
            raise UserError(f"{source}: {theirs} is of shape {found[theirs].shape}, expected {wanted[ours]}")
    values = {ours: found[theirs] for theirs, ours in names.items()}
    parameters, states = ({key: values[key].astype(np.float32) for key in group}
                          for group in (shapes.arguments, shapes.auxiliary))
    return name, graph, parameters, states


def _named(width: int, blocks: int, source: str) -> tuple[str, float, float]:
    for name, (known_width, known_blocks, dropped, masked) in NETWORKS.items():
        if (width, blocks) == (known_width, known_blocks):
            return name, dropped, masked
    known = ", ".join(f"{width} and {blocks} ({name})" for name, (width, blocks, *_) in NETWORKS.items())
    raise UserError(f"{source}: found a ViT of tokens of {width} numbers and {blocks} blocks, expected one of "
                    f"arcface_torch's: {known}")


def blocks_of(names: Iterable[str]) -> int:
    """The number of blocks by PyTorch's or our names of arrays."""
    return len({match[1] for name in names if (match := re.match(r"(?:blocks\.|block)(\d+)[._]", name))})


def to_torch(values: Mapping[str, np.ndarray], source: str) -> tuple[str, Arrays]:
    """Name, and tensors by name for ``load_state_dict``, from parameters and auxiliary states of the family.

    :raises UserError: if they are not those of a ViT that arcface_torch has; it names ``source``.
    """
    blocks, (_, patches, width) = blocks_of(values), values[OUR_MARK].shape
    name, *_ = _named(width, blocks, source)
    if patches != (SIDE // vit.PATCH) ** 2:
        raise UserError(f"{source}: found a ViT of {patches} patches, expected one for {SIDE}x{SIDE} images, which "
                        "arcface_torch has")
    values = {OUR_TOKEN: np.zeros((1, 1, width), np.float32), **values}
    if values.keys() != {ours for _, ours in pairs(blocks)}:
        raise UserError(f"{source}: found a ViT of {len(values)} arrays, expected those of arcface_torch's {name}")
    return name, under_their_names(values, pairs(blocks))
