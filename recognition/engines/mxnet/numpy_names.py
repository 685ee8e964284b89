# SPDX-License-Identifier: Apache-2.0
"""Names that MXNet 1.9 takes from NumPy, when it is imported or when it is used, and that NumPy has dropped since.

Modules of MXNet alone get them: for everyone else NumPy stays as it is. This file imports nothing of the project, since
scripts/environment.py puts a copy of it into Horovod, which imports MXNet by itself.
"""
import sys
import types

import numpy

VALUES = {
    "bool": bool, "int": int, "compat": types.SimpleNamespace(basestring=str),
    "Inf": numpy.inf, "PINF": numpy.inf, "NINF": -numpy.inf, "NAN": numpy.nan, "NaN": numpy.nan,
    "PZERO": 0.0, "NZERO": -0.0,
}
# MXNet offers them as functions of its own, by these names, and calls none of them.
FUNCTIONS = ("alltrue", "in1d", "mirr", "msort", "npv", "pmt", "ppmt", "product", "pv", "rate", "round_", "sometrue",
             "trapz")


def answer_mxnet() -> None:
    """Let ``numpy.NAME`` give MXNet's modules what NumPy no longer has; a function raises when it is called."""
    of_numpy = vars(numpy)["__getattr__"]

    def __getattr__(name: str) -> object:
        asked_by = sys._getframe(1).f_globals.get("__name__") or ""
        if asked_by.partition(".")[0] == "mxnet":
            if name in VALUES:
                return VALUES[name]
            if name in FUNCTIONS:
                return dropped(name)
        return of_numpy(name)

    vars(numpy)["__getattr__"] = __getattr__


def dropped(name: str) -> object:
    """A function that stands for one which NumPy has no more."""

    def function(*_: object, **__: object) -> None:
        raise AttributeError(f"NumPy {numpy.__version__} has no function {name}")

    function.__name__ = name
    return function
