# SPDX-License-Identifier: Apache-2.0
"""Networks of arcface_torch, whichever they are: ``iresnet``, ``mbf`` or ``vit``, from and to tensors by PyTorch's
names."""
from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from recognition.errors import UserError
from recognition.io.params import Arrays
from recognition.networks.graph import Graph
from recognition.networks.torch_weights import iresnet, mbf_weights, vit_weights

# Arrays by which a network is found, under whatever prefix: iresnet, MobileFaceNet, ViT.
_MARKS = (("conv1.weight", "layer1.0.conv1.weight", "fc.weight"),
          (mbf_weights.MARK, "layers.0.layers.0.weight", "features.layers.2.weight"),
          (vit_weights.MARK, "patch_embed.proj.weight", "feature.0.weight", "feature.2.weight"))


def of_the_network(tensors: Mapping[str, np.ndarray], source: str) -> tuple[Arrays, list[str]]:
    """The tensors of such a network in a state dictionary under their own names, and the names of all others.

    Wrappers put prefixes before names (``module.``, ``model.``, ``backbone.``, ``_orig_mod.``), and a dictionary may
    hold a head, too.

    :raises UserError: if it holds several networks
    """
    prefixes = [name[: -len(marks[0])] for marks in _MARKS for name in tensors if name.endswith(marks[0])
                and all(name[: -len(marks[0])] + mark in tensors for mark in marks)]
    if len(prefixes) > 1:
        raise UserError(f"{source}: found {len(prefixes)} networks, under {', '.join(map(repr, prefixes[:3]))}, "
                        "expected one")
    if not prefixes or not prefixes[0]:
        return dict(tensors), []
    inside = {name[len(prefixes[0]) :]: value for name, value in tensors.items() if name.startswith(prefixes[0])}
    return inside, [name for name in tensors if not name.startswith(prefixes[0])]


def from_torch(tensors: Mapping[str, np.ndarray], source: str) -> tuple[str, Graph, Arrays, Arrays]:
    """The network's name, as of ``--network``, its graph, parameters and auxiliary states (float32).

    :raises UserError: if the tensors are of no network that is known; it names ``source``.
    """
    for kind in (mbf_weights, vit_weights):
        if kind.MARK in tensors:
            return kind.from_torch(tensors, source)
    return iresnet.from_torch(tensors, source)


def to_torch(graph: Graph, arguments: Mapping[str, np.ndarray], auxiliary: Mapping[str, np.ndarray],
             source: str) -> tuple[str, Arrays]:
    """Name, and tensors by PyTorch's names for ``load_state_dict``.

    :raises UserError: if it is another network; it names ``source``.
    """
    if _is_mbf(graph):
        return mbf_weights.to_torch({**arguments, **auxiliary}, source)
    if vit_weights.OUR_MARK in graph.list_arguments():
        return vit_weights.to_torch({**arguments, **auxiliary}, source)
    depth, tensors = iresnet.to_torch(graph, arguments, auxiliary, source)
    return f"iresnet{depth}", tensors


def moments_from_torch(moments: Mapping[str, np.ndarray], tensors: Mapping[str, np.ndarray], power: int) -> Arrays:
    """An optimiser's moments by our names, as :func:`recognition.networks.torch_weights.iresnet.moments_from_torch`."""
    names = _renamed(tensors)
    if not names:
        return iresnet.moments_from_torch(moments, tensors, power)
    return {names[name]: np.asarray(moments.get(name, np.zeros_like(tensors[name])), np.float32)
            for name in parameters_of(tensors)}


def moments_to_torch(moments: Mapping[str, np.ndarray], power: int) -> Arrays:
    """The reverse, as :func:`recognition.networks.torch_weights.iresnet.moments_to_torch`."""
    if mbf_weights.OUR_MARK in moments:
        names = mbf_weights.pairs(mbf_weights.blocks_of(moments))
    elif vit_weights.OUR_MARK in moments:
        names = vit_weights.pairs(vit_weights.blocks_of(moments))
    else:
        return iresnet.moments_to_torch(moments, power)
    return {theirs: np.asarray(moments[ours], np.float32) for theirs, ours in names if ours in moments}


def parameters_of(tensors: Mapping[str, np.ndarray]) -> list[str]:
    """The names of parameters in the order of ``parameters()``, by which optimisers number them."""
    return [name for name in _renamed(tensors) if "running" not in name] or iresnet.parameters_of(tensors)


def _renamed(tensors: Iterable[str]) -> dict[str, str]:
    """Our names by PyTorch's, in its order, of a network whose values are taken as they are; empty for an iresnet."""
    if mbf_weights.MARK in tensors:
        large = "layers.1.layers.0.layers.0.layers.0.weight" in tensors
        return dict(mbf_weights.pairs(mbf_weights.NETWORKS["mbf_large" if large else "mbf"][0]))
    return dict(vit_weights.pairs(vit_weights.blocks_of(tensors))) if vit_weights.MARK in tensors else {}


def _is_mbf(graph: Graph) -> bool:
    """True for the family mbf; fmobilefacenet has the names of its layers, but another end."""
    names = graph.list_arguments()
    return mbf_weights.OUR_MARK in names and "pre_fc1_weight" in names and "pre_fc1_bias" not in names
