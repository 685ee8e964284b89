# SPDX-License-Identifier: Apache-2.0
"""The networks, one family a module, with the names, shapes and graphs of the public MXNet recipes.

A family is a module with ``get_symbol(**options)``; the options are keys of the configuration by the same names.
"""
from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

from recognition import kinds
from recognition.errors import UserError
from recognition.mxnet_compat import mx
from recognition.symbol import fmobilefacenet, fresnet
from recognition.symbol.shapes import infer_shapes

FAMILIES: dict[str, ModuleType] = {"fresnet": fresnet, "fmobilefacenet": fmobilefacenet}


def build_symbol(config: Any) -> mx.sym.Symbol:
    """The network of a configuration: ``data``, pixels 0..255 (N, 3, H, W) RGB, to ``fc1_output`` (N, emb_size).

    Reads ``net_name``, ``image_shape`` (H, W, 3), and the options of that family. The same options give the same JSON.

    :raises UserError: on a value that the family does not know, and on images of a size that it cannot take.
    """
    kinds.choice(*FAMILIES).check(config.net_name, "net_name")
    get_symbol = FAMILIES[config.net_name].get_symbol
    options = {name: getattr(config, name) for name in inspect.signature(get_symbol).parameters}
    with mx.name.NameManager():  # its own count of nameless nodes
        symbol = get_symbol(**options)
    height, width, channels = config.image_shape
    features = infer_shapes(symbol, (channels, height, width)).output[1]
    if features != config.emb_size:
        raise UserError(f"emb_size: found {config.emb_size}, but net_output {config.net_output} gives {features} "
                        f"features for {height}x{width} images, expected {features}")
    return symbol
