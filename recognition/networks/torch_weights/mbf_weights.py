# SPDX-License-Identifier: Apache-2.0
"""The parameters of arcface_torch's ``mbf`` and ``mbf_large`` as those of the family ``mbf``, and back.

Both networks compute the same, so values are taken as they are: names alone differ.
"""
from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from recognition.errors import UserError
from recognition.io.params import Arrays
from recognition.networks.families import mbf
from recognition.networks.graph import Graph
from recognition.networks.shapes import infer_shapes
from recognition.networks.torch_weights.iresnet import BATCH_NORM, under_their_names

NETWORKS = {"mbf": ((1, 4, 6, 2), 2), "mbf_large": ((2, 8, 12, 4), 4)}  # blocks and multiplier
MARK, OUR_MARK = "conv_sep.layers.0.weight", "conv_6sep_conv2d_weight"  # names that no iresnet has
_BOTTLENECK = ("_conv_sep", "_conv_dw", "_conv_proj")


def pairs(blocks: Sequence[int]) -> Iterator[tuple[str, str]]:
    """PyTorch's and our name of each array, in PyTorch's order."""
    yield from _layer("layers.0", "conv_1", True)
    if blocks[0] == 1:
        yield from _layer("layers.1", "conv_2_dw", True)
    else:
        yield from _residuals("layers.1", "res_2", blocks[0])
    for stage, (down, name) in enumerate((("dconv_23", "res_3"), ("dconv_34", "res_4"), ("dconv_45", "res_5")), 1):
        yield from _bottleneck(f"layers.{2 * stage}", down)
        yield from _residuals(f"layers.{2 * stage + 1}", name, blocks[stage])
    yield from _layer("conv_sep", "conv_6sep", True)
    yield from _layer("features.layers.0", "conv_6dw7_7", False)
    yield "features.layers.2.weight", "pre_fc1_weight"
    yield from ((f"features.layers.3.{a}", f"fc1_{b}") for a, b in BATCH_NORM)


def _layer(theirs: str, ours: str, active: bool) -> Iterator[tuple[str, str]]:
    yield f"{theirs}.layers.0.weight", f"{ours}_conv2d_weight"
    yield from ((f"{theirs}.layers.1.{a}", f"{ours}_batchnorm_{b}") for a, b in BATCH_NORM)
    if active:
        yield f"{theirs}.layers.2.weight", f"{ours}_relu_gamma"


def _bottleneck(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    for number, ending in enumerate(_BOTTLENECK):
        yield from _layer(f"{theirs}.layers.{number}", ours + ending, ending != _BOTTLENECK[-1])


def _residuals(theirs: str, ours: str, count: int) -> Iterator[tuple[str, str]]:
    for index in range(count):
        yield from _bottleneck(f"{theirs}.layers.{index}", f"{ours}_block{index}")


def from_torch(tensors: Mapping[str, np.ndarray], source: str) -> tuple[str, Graph, Arrays, Arrays]:
    """Name, network, parameters and auxiliary states (float32) from the network's tensors by name.

    :raises UserError: if they are not those of mbf or mbf_large; it names ``source``.
    """
    found = {name: value for name, value in tensors.items() if not name.endswith("num_batches_tracked")}
    name = _name(found, source)
    blocks, multiplier = NETWORKS[name]
    graph = mbf.get_symbol(emb_size=len(found["features.layers.2.weight"]), net_blocks=blocks,
                           net_multiplier=multiplier)
    shapes, values = infer_shapes(graph, (3, 112, 112)), {ours: found[theirs] for theirs, ours in pairs(blocks)}
    for theirs, ours in pairs(blocks):
        if values[ours].shape != (wanted := {**shapes.arguments, **shapes.auxiliary}[ours]):
            raise UserError(f"{source}: {theirs} is of shape {values[ours].shape}, expected {wanted}")
    parameters, states = ({key: values[key].astype(np.float32) for key in group}
                          for group in (shapes.arguments, shapes.auxiliary))
    return name, graph, parameters, states


def _name(found: Mapping[str, np.ndarray], source: str) -> str:
    for name, (blocks, _) in NETWORKS.items():
        if found.keys() == (wanted := {theirs for theirs, _ in pairs(blocks)}):
            return name
    missing = sorted(wanted - found.keys())[:1] or sorted(found.keys() - wanted)[:1]
    raise UserError(f"{source}: found {len(found)} arrays, expected those of mbf or of mbf_large, which {missing[0]} "
                    "tells apart")


def blocks_of(names: Mapping[str, np.ndarray]) -> tuple[int, ...]:
    """The numbers of blocks by the names of our arrays."""
    counts = [len({match[1] for name in names if (match := re.match(rf"res_{stage}_block(\d+)_", name))})
              for stage in (2, 3, 4, 5)]
    return (counts[0] or 1, *counts[1:])


def to_torch(values: Mapping[str, np.ndarray], source: str) -> tuple[str, Arrays]:
    """Name, and tensors by name for ``load_state_dict``, from parameters and auxiliary states of the family.

    :raises UserError: if they are not those of mbf or mbf_large; it names ``source``.
    """
    blocks, channels = blocks_of(values), len(values.get("conv_1_conv2d_weight", ()))
    name = next((name for name, (known, multiplier) in NETWORKS.items()
                 if known == blocks and channels == 64 * multiplier), "")
    if not name or values.keys() != {ours for _, ours in pairs(blocks)}:
        raise UserError(f"{source}: found an mbf of {list(blocks)} blocks, {channels} channels and {len(values)} "
                        "arrays, expected mbf or mbf_large, with net_act prelu")
    return name, under_their_names(values, pairs(blocks))
