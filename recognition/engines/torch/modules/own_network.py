# SPDX-License-Identifier: Apache-2.0
"""A network of the user's own: a Python file with ``get_module`` or ``get_symbol``, which ``net_name`` names.

``get_module`` returns a ``torch.nn.Module``, which maps pixels 0..255 (N, 3, H, W) RGB to the embedding (N, emb_size);
``get_symbol`` a module, too, or a symbol: a file that is written with ``import mxnet as mx`` and plain ``mx.sym`` finds
a module of that name here (``mxnet_words.py``). ``recognition/networks/own_file.py`` says what their parameters may be.
"""
from __future__ import annotations

from pathlib import Path
from typing import Any

from recognition.engines.torch.imports import torch
from recognition.engines.torch.modules.graph import module_graph
from recognition.engines.torch.modules.mxnet_words import modules
from recognition.errors import UserError
from recognition.networks import sym
from recognition.networks.graph import Graph
from recognition.networks.own_file import call_own_file, name_of


def own_network(config: Any, path: Path) -> Graph:
    """The network of the file ``path``: ``data`` to ``fc1_output``.

    :raises UserError: if the file's code raises an exception, or does not return a network of one embedding.
    """
    name = name_of(config, path)
    height, width, channels = config.image_shape

    def graph_of(network: Any) -> Any:
        if isinstance(network, torch.nn.Module):
            return module_graph(network, (channels, height, width), name)
        return _named(network, name) if isinstance(network, sym.Symbol) else network

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # all processes, and a run that goes on, see the same spread of first values
        graph = call_own_file(config, path, ("get_module", "get_symbol"), graph_of,
                              modules(), {"memonger": False})  # the engine recomputes; public files search with MXNet
    if not isinstance(graph, Graph):
        raise UserError(f"{name}: found {type(graph).__name__}, expected a torch.nn.Module, or a Symbol")
    return graph


def _named(symbol: sym.Symbol, name: str) -> Graph:
    """The network with the output ``fc1_output``, by which programs find the embedding in a checkpoint.

    :raises UserError: if it has no input ``data``, or another layer of that name.
    """
    graph = symbol.graph()
    if "data" not in graph.list_inputs():
        raise UserError(f"{name}: found no input named 'data', expected mx.sym.Variable('data') among "
                        f"{', '.join(graph.list_inputs()[:3])}, ...")
    if graph.list_outputs() == ["fc1_output"]:
        return graph
    if any(node.name == "fc1" for node in graph.nodes):
        raise UserError(f"{name}: found the output {graph.list_outputs()[0]}, expected no other layer named fc1")
    return sym.identity(symbol, name="fc1").graph()
