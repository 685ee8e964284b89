# SPDX-License-Identifier: Apache-2.0
"""A network of the user's own: a Python file with ``get_symbol``, which ``net_name`` names; it is code and is run.

``get_symbol`` returns a symbol or a Gluon ``HybridBlock``, which maps ``data``, pixels 0..255 (N, 3, H, W) RGB, to the
embedding (N, emb_size). Its parameters are options of the configuration, and keys of the user's own in config.py, by
their names; a function without parameters reads ``from config import config``, as networks of the public recipes do,
and finds all of them there. The options of networks may have values that ours do not know.
"""
from __future__ import annotations

import contextlib
import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Callable

from easydict import EasyDict

from recognition.config.user_code import errors_in_one_line, run_file
from recognition.engines.mxnet.imports import mx
from recognition.engines.mxnet.symbols import from_symbol
from recognition.errors import UserError
from recognition.networks.graph import Graph


def own_symbol(config: Any, path: Path) -> Graph:
    """The network of the file ``path``: ``data`` to ``fc1_output``.

    :raises UserError: on what the file's code raises, and if what it returns is no network of one embedding.
    """
    name = f"net_name {config.net_name}: {path}"
    values = {**vars(config), **dict(config.own_keys)}
    with _beside(path.parent, values), mx.name.NameManager():  # its own count of nameless nodes
        get_symbol = getattr(run_file(path, name), "get_symbol", None)
        if not callable(get_symbol):
            raise UserError(f"{name}: found no function get_symbol")
        options = _options_of(get_symbol, values, name)
        with errors_in_one_line(path, name):
            network = get_symbol(**options)
            if isinstance(network, mx.gluon.HybridBlock):
                network = network(mx.sym.Variable("data"))
    if not isinstance(network, mx.sym.Symbol):
        raise UserError(f"{name}: get_symbol gave {type(network).__name__}, expected a Symbol or a HybridBlock that "
                        "gives one output")
    try:
        return from_symbol(_named(network, name))
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error


@contextlib.contextmanager
def _beside(folder: Path, options: dict[str, Any]) -> Iterator[None]:
    """Within, modules of ``folder`` can be imported, and ``config`` is a module whose ``config`` and ``default`` hold
    ``options``. Behind it, no trace of this is left: another run of this process has other options."""
    folder = folder.resolve()
    shared = ModuleType("config")
    shared.config = shared.default = EasyDict(options)  # type: ignore[attr-defined]
    modules, path = dict(sys.modules), list(sys.path)
    sys.modules["config"] = shared
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = path
        new = [name for name, module in sys.modules.items()
               if name not in modules and Path(getattr(module, "__file__", None) or "").parent == folder]
        for name in ("config", *new):
            sys.modules.pop(name, None)
        if "config" in modules:
            sys.modules["config"] = modules["config"]


def _options_of(get_symbol: Callable[..., Any], values: dict[str, Any], name: str) -> dict[str, Any]:
    options = {}
    for parameter in inspect.signature(get_symbol).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.name in values:
            options[parameter.name] = values[parameter.name]
        elif parameter.default is parameter.empty:
            raise UserError(f"{name}: get_symbol takes {parameter.name!r}, expected the name of an option, such as "
                            "emb_size, a key of your own in config.py, or a parameter with a default")
    return options


def _named(symbol: mx.sym.Symbol, name: str) -> mx.sym.Symbol:
    """``symbol`` with the output ``fc1_output``, the name by which programs find the embedding in a checkpoint."""
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
