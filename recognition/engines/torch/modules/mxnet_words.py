# SPDX-License-Identifier: Apache-2.0
"""A stand-in for the module ``mxnet``: what files of users' networks import, if they are written in ``mx.sym``.

It has ``sym`` and ``symbol``, whose operators are those of our table, ``contrib`` of each, and ``init`` for variables.
Other parts can be imported, as public files do, but not used.
"""
from __future__ import annotations

import inspect
import json
from types import ModuleType
from typing import Any

from recognition.networks import sym
from recognition.networks.initialise import INITIALISERS
from recognition.networks.operators import OPERATORS

MISSING = ("autograd", "base", "gluon", "gluon.block", "gluon.nn", "ndarray", "nd")
DTYPES = ("float32", "float64", "float16", "uint8", "int32", "int8", "int64")  # by MXNet's numbers


def modules() -> dict[str, ModuleType]:
    """The modules by the names by which they are imported."""
    symbols, contrib, init, mxnet = _Symbols("mxnet.symbol"), ModuleType("mxnet.contrib"), _Init("mxnet.init"), _Mxnet(
        "mxnet")
    more = _Contrib("mxnet.symbol.contrib")
    symbols.contrib = more  # type: ignore[attr-defined]
    contrib.sym = contrib.symbol = more  # type: ignore[attr-defined]
    parts = {"sym": symbols, "symbol": symbols, "contrib": contrib, "init": init, "initializer": init}
    for name, module in parts.items():
        setattr(mxnet, name, module)
    return {"mxnet": mxnet, **{f"mxnet.{name}": module for name, module in parts.items()},
            **{f"mxnet.{name}": _Missing(f"mxnet.{name}") for name in MISSING}}


def variable(name: str, attr: dict[str, Any] | None = None, shape: Any = None, lr_mult: Any = None,
             wd_mult: Any = None, dtype: Any = None, init: str | None = None, **hints: Any) -> sym.Symbol:
    """``mx.sym.Variable``."""
    if odd := [key for key in hints if not (key.startswith("__") and key.endswith("__"))]:
        raise ValueError(f"Variable has the attribute {odd[0]!r}, expected attr, shape, lr_mult, wd_mult, dtype, init "
                         "or names with double underscores")
    given = {"shape": shape, "lr_mult": lr_mult, "wd_mult": wd_mult, "init": init,
             "dtype": None if dtype is None else DTYPES.index(getattr(dtype, "__name__", str(dtype)))}
    made = sym.Variable(name, **{key: value for key, value in given.items() if value is not None})
    made._set_attr(**(attr or {}), **hints)
    return made


class _Symbols(ModuleType):
    """The place of ``mx.sym``: every operator of the table."""

    Symbol = sym.Symbol
    Variable = var = staticmethod(variable)

    def __getattr__(self, name: str) -> Any:
        if name not in OPERATORS:
            raise AttributeError(f"with the PyTorch engine mx.sym has no {name}, as networks of ours have none "
                                 "(--engine mxnet has all of it)")
        return getattr(sym, name)


class _Contrib(ModuleType):
    """The place of ``mx.sym.contrib``."""

    def __getattr__(self, name: str) -> Any:
        if f"_contrib_{name}" not in OPERATORS:
            raise AttributeError(f"with the PyTorch engine mx.sym.contrib has no {name} (--engine mxnet has it)")
        return getattr(sym, f"_contrib_{name}")


class _Init(ModuleType):
    """The place of ``mx.init``: functions that give the text which a variable's ``__init__`` holds."""

    def __getattr__(self, name: str) -> Any:
        kind = name.lower()
        if kind not in INITIALISERS:
            raise AttributeError(f"with the PyTorch engine mx.init has no {name}, but {', '.join(INITIALISERS)}")
        parameters = list(inspect.signature(INITIALISERS[kind]).parameters.values())[2:]  # behind random and shape
        signature = inspect.Signature(parameters)

        def written(*values: Any, **named: Any) -> str:
            bound = signature.bind(*values, **named)
            bound.apply_defaults()
            return json.dumps([kind, bound.arguments])

        return written


class _Missing(ModuleType):
    """The place of a part of MXNet that is not there."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"with the PyTorch engine {self.__name__} has no {name} (--engine mxnet has it)")


class _Mxnet(ModuleType):
    """The place of ``mxnet``, of which networks need a few words alone."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"with the PyTorch engine mxnet has sym and init alone, no {name} (--engine mxnet has "
                             "all of it)")
