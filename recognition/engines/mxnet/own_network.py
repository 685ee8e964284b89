# SPDX-License-Identifier: Apache-2.0
"""A network of the user's own: a Python file with ``get_symbol``, which ``net_name`` names; it is code and is run.

``get_symbol`` returns a symbol or a Gluon ``HybridBlock``, which maps ``data``, pixels 0..255 (N, 3, H, W) RGB, to the
embedding (N, emb_size). ``recognition/networks/own_file.py`` says what its parameters may be.
"""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from recognition.engines.mxnet.imports import mx
from recognition.engines.mxnet.symbols import from_symbol
from recognition.errors import UserError, naming
from recognition.networks.graph import Graph
from recognition.networks.own_file import call_own_file, name_of


def own_symbol(config: Any, path: Path | None) -> Graph:
    """The network of the file ``path``: ``data`` to ``fc1_output``.

    :raises UserError: if there is no file, its code raises an exception, or does not return a network of one embedding.
    """
    if path is None:
        raise UserError(f"net_name: found {config.net_name}, a model of PyTorch's, expected --engine torch")
    name = name_of(config, path)
    with mx.name.NameManager():  # its own count of nameless nodes
        network = call_own_file(config, path, ("get_symbol",), _symbol_of)
    if not isinstance(network, mx.sym.Symbol):
        raise UserError(f"{name}: get_symbol gave {type(network).__name__}, expected a Symbol or a HybridBlock that "
                        "gives one output")
    with naming(name):
        return from_symbol(_named(network, name))


def _symbol_of(network: Any) -> Any:
    return network(mx.sym.Variable("data")) if isinstance(network, mx.gluon.HybridBlock) else network


def _named(symbol: mx.sym.Symbol, name: str) -> mx.sym.Symbol:
    """Give ``symbol`` the output ``fc1_output``, the name by which programs find the embedding in a checkpoint."""
    outputs = symbol.list_outputs()
    if "data" not in symbol.list_inputs():
        raise UserError(f"{name}: found no input named 'data', expected mx.sym.Variable('data') among "
                        f"{', '.join(symbol.list_inputs()[:3])}, ...")
    if outputs == ["fc1_output"]:
        return symbol
    if len(outputs) != 1 or any(node["name"] == "fc1" for node in json.loads(symbol.tojson())["nodes"]):
        raise UserError(f"{name}: found the outputs {', '.join(outputs)}, expected one, the embedding, and no other "
                        "layer named fc1")
    return mx.sym.identity(symbol, name="fc1")
