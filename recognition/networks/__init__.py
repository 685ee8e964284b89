# SPDX-License-Identifier: Apache-2.0
"""The networks, one family a module of ``families``, with the names, shapes and graphs of the public MXNet recipes.

A family is a module with ``get_symbol(**options)``; the options are keys of the configuration by the same names.
A network of the user's own is a file of that form: see ``own_network`` of an engine. The graph of a checkpoint is one
without code: a ``-symbol.json``, which is judged as those of strangers are.
"""
from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path
from typing import Any, Callable, Optional

from recognition.config import types
from recognition.config.groups.network import FAMILIES as names_of_families
from recognition.config.user_code import find_network, is_symbol_file, is_timm
from recognition.errors import UserError
from recognition.networks.graph import Graph, with_starts
from recognition.networks.initialise import GAUSSIAN_OUT, NARROW, UNIFORM_IN, Initialiser
from recognition.networks.shapes import infer_shapes
from recognition.networks.symbol_file import read_network

OwnNetwork = Callable[[Any, Optional[Path]], Graph]  # from a configuration and a file of the user's own; None: of timm
FAMILIES = {name: import_module(f"{__name__}.families.{name}") for name in names_of_families}


def build_symbol(config: Any, own_network: OwnNetwork | None = None) -> Graph:
    """The network of a configuration: ``data``, pixels 0..255 (N, 3, H, W) RGB, to ``fc1_output`` (N, emb_size).

    Reads ``net_name``, ``config_file``, ``image_shape`` (H, W, 3), and the options of that network. The same options
    give the same JSON.

    :param own_network: makes the graph of a file that ``net_name`` names; None: there are no networks but ours.
    :raises UserError: on a value that the family does not know, on images of a size that it cannot take, and if the
        features are not ``emb_size`` many.
    """
    symbol = _family_symbol(config) if config.net_name in FAMILIES else _own_symbol(config, own_network)
    height, width, _ = config.image_shape
    features = _features(config, symbol)
    if features != config.emb_size:
        raise UserError(f"emb_size: found {config.emb_size}, but net_name {config.net_name} with net_output "
                        f"{config.net_output} gives {features} features for {height}x{width} images, expected "
                        f"{features}")
    return symbol


def own_size(config: Any) -> int:
    """The length of an embedding: that of a ``-symbol.json``, which has its own, else the ``emb_size`` asked for.

    :raises UserError: as :func:`build_symbol`.
    """
    if not is_symbol_file(config.net_name):
        return int(config.emb_size)
    return _features(config, _own_symbol(config, None))


def _features(config: Any, symbol: Graph) -> int:
    """The length of the embedding that a network makes of the configuration's images."""
    height, width, channels = config.image_shape
    first, *features = infer_shapes(symbol, (channels, height, width)).output
    if len(features) != 1 or first != 1:
        raise UserError(f"net_name {config.net_name}: found an output of shape (N, {', '.join(map(str, features))}), "
                        "expected (N, emb_size)")
    return features[0]


def first_weights(net_name: str) -> Initialiser:
    """The initialiser of a network's weights, as in the public recipes; own networks have that of most families."""
    if net_name == "vit":
        return NARROW
    return GAUSSIAN_OUT if net_name in ("fresnet", "fresnext", "fmobilefacenet", "mbf") else UNIFORM_IN


def _family_symbol(config: Any) -> Graph:
    get_symbol = FAMILIES[config.net_name].get_symbol
    return get_symbol(**{name: getattr(config, name) for name in inspect.signature(get_symbol).parameters})


def _own_symbol(config: Any, own_network: OwnNetwork | None) -> Graph:
    path = find_network(config.net_name, config.config_file)
    if is_symbol_file(config.net_name):
        return with_starts(read_network(path or Path(config.net_name)))
    if own_network and is_timm(config.net_name):
        return own_network(config, None)
    if path is None or own_network is None:
        kind = types.choice(*FAMILIES)
        raise UserError(f"net_name: found {config.net_name!r}, expected {kind.expected}, or a Python file beside "
                        f"config.py or in symbol there{types.nearest(config.net_name, kind.choices)}")
    return own_network(config, path)
