# SPDX-License-Identifier: Apache-2.0
"""Parameters to start from: a function of the seed and each parameter's name, shape and written wish."""
from __future__ import annotations

import json
import zlib

import numpy as np

from recognition.errors import UserError
from recognition.mxnet_compat import mx
from recognition.symbol.shapes import Shape, infer_shapes

Arrays = dict[str, np.ndarray]

CONSTANTS = {"zero": 0.0, "zeros": 0.0, "one": 1.0, "ones": 1.0}
# What MXNet's initialisers give to a name that has no wish of its own.
BY_SUFFIX = {"_bias": 0.0, "_beta": 0.0, "_gamma": 1.0, "_moving_mean": 0.0, "_running_mean": 0.0,
             "_moving_var": 1.0, "_running_var": 1.0}


def initialise(symbol: mx.sym.Symbol, image_shape: tuple[int, int, int], seed: int) -> tuple[Arrays, Arrays]:
    """Arguments and auxiliary states by name, float32, for images (3, H, W); ``data`` is not among them.

    Weights are drawn by :func:`draw_weight`; an ``__init__`` written on a variable (PReLU's slope 0.25) is followed;
    the rest is 0 or 1 by its name. Neither MXNet's nor NumPy's global random state is used or changed.

    :raises UserError: if a variable asks for an initialiser that is not a constant, or its name tells nothing.
    """
    shapes = infer_shapes(symbol, image_shape)
    attributes = symbol.attr_dict()

    def fill(wanted: dict[str, Shape]) -> Arrays:
        return {name: _initial_value(name, shape, attributes.get(name, {}).get("__init__"), seed)
                for name, shape in wanted.items()}

    return fill(shapes.arguments), fill(shapes.auxiliary)


def draw_weight(name: str, shape: Shape, seed: int) -> np.ndarray:
    """Normal, mean 0, variance 2 / fan_out (He et al., arXiv 1502.01852); fan_out is outputs times the kernel's area.

    ``mx.init.Xavier(rnd_type="gaussian", factor_type="out", magnitude=2)`` of the recipes; a convolution's weight is
    (outputs, inputs / groups, kernel height, kernel width), a fully connected layer's (outputs, inputs).
    """
    fan_out = shape[0] * int(np.prod(shape[2:]))
    random = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return random.standard_normal(shape, dtype=np.float32) * np.float32(np.sqrt(2 / fan_out))


def _initial_value(name: str, shape: Shape, wish: str | None, seed: int) -> np.ndarray:
    if wish is not None:
        return np.full(shape, _constant(name, wish), np.float32)
    if name.endswith("_weight"):
        return draw_weight(name, shape, seed)
    for suffix, value in BY_SUFFIX.items():
        if name.endswith(suffix):
            return np.full(shape, value, np.float32)
    raise UserError(f"parameter {name}: expected an initialiser, or a name that ends in _weight or "
                    f"{', '.join(BY_SUFFIX)}")


def _constant(name: str, wish: str) -> float:
    """The value of ``'["Constant", {"value": 0.25}]'``, ``'["zero", {}]'`` or, as Gluon writes it, ``'ones'``."""
    kind, options = json.loads(wish) if wish.startswith("[") else (wish, {})
    if kind.lower() == "constant":
        return options["value"]
    if kind.lower() not in CONSTANTS:
        raise UserError(f"parameter {name}: found the initialiser {wish}, expected constant, {', '.join(CONSTANTS)}")
    return CONSTANTS[kind.lower()]
