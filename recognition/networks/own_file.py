# SPDX-License-Identifier: Apache-2.0
"""Caller of the function in a user's own network file, a Python file that ``net_name`` names; it is code.

Parameters of the function are options of the configuration, and keys of the user's own in config.py, by their names; a
function without parameters reads ``from config import config``, as networks of the public recipes do, and finds all of
them there. The options of networks may have values that ours do not know.
"""
from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, Callable

from easydict import EasyDict

from recognition.config.user_code import errors_in_one_line, run_file
from recognition.errors import UserError

NO_MODULES: Mapping[str, ModuleType] = MappingProxyType({})
NOTHING: Mapping[str, Any] = MappingProxyType({})


def name_of(config: Any, path: Path) -> str:
    """The words before messages about the file."""
    return f"net_name {config.net_name}: {path}"


def call_own_file(config: Any, path: Path, functions: Sequence[str], finish: Callable[[Any], Any] = lambda made: made,
                  modules: Mapping[str, ModuleType] = NO_MODULES, told: Mapping[str, Any] = NOTHING) -> Any:
    """Call the first of ``functions`` that the file has; returns its result, passed through ``finish``.

    :param modules: what the file imports by these names, whatever is installed.
    :param told: what the file sees in place of options.
    :raises UserError: if there is no such function, if it takes what is no option, or if the file's code raises.
    """
    name = name_of(config, path)
    values = {**vars(config), **dict(config.own_keys), **told}
    with _beside(path.parent, values, modules):
        module = run_file(path, name)
        function = next((key for key in functions if callable(getattr(module, key, None))), "")
        if not function:
            other = "; get_module, which it has, is for --engine torch" if hasattr(module, "get_module") else ""
            raise UserError(f"{name}: found no function {' or '.join(functions)}{other}")
        call = getattr(module, function)
        options = _options_of(call, values, f"{name}: {function}")
        with errors_in_one_line(path, name):
            return finish(call(**options))


@contextlib.contextmanager
def _beside(folder: Path, options: dict[str, Any], theirs: Mapping[str, ModuleType]) -> Iterator[None]:
    """Context in which modules of ``folder`` can be imported, and ``theirs``, and ``config`` is a module whose
    ``config`` and ``default`` hold ``options``. It leaves no trace: another run of this process has other options."""
    folder = folder.resolve()
    shared = ModuleType("config")
    shared.config = shared.default = EasyDict(options)  # type: ignore[attr-defined]
    modules, path = dict(sys.modules), list(sys.path)
    placed = {**theirs, "config": shared}
    sys.modules.update(placed)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = path
        new = [name for name, module in sys.modules.items()
               if name not in modules and Path(getattr(module, "__file__", None) or "").parent == folder]
        for name in (*placed, *new):
            sys.modules.pop(name, None)
        sys.modules.update({name: modules[name] for name in placed if name in modules})


def _options_of(function: Callable[..., Any], values: dict[str, Any], name: str) -> dict[str, Any]:
    options = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.name in values:
            options[parameter.name] = values[parameter.name]
        elif parameter.default is parameter.empty:
            raise UserError(f"{name} takes {parameter.name!r}, expected the name of an option, such as "
                            "emb_size, a key of your own in config.py, or a parameter with a default")
    return options
