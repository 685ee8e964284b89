# SPDX-License-Identifier: Apache-2.0
"""First values of parameters: a function of the seed and each parameter's name, shape and initialiser."""
from __future__ import annotations

import json
import zlib
from typing import Any, Callable, NamedTuple

import numpy as np

from recognition.errors import UserError
from recognition.io.params import Arrays
from recognition.networks.graph import Graph
from recognition.networks.shapes import Shape, infer_shapes


class Initialiser(NamedTuple):
    """One of MXNet's initialisers by its name, in small letters, and its arguments."""

    kind: str
    options: dict[str, Any]


# He et al., arXiv 1502.01852, equation 14: normal, mean 0, variance 2 / fan_out.
GAUSSIAN_OUT = Initialiser("xavier", {"rnd_type": "gaussian", "factor_type": "out", "magnitude": 2})
# Uniform, mean 0, variance 2 / (3 fan_in).
UNIFORM_IN = Initialiser("xavier", {"rnd_type": "uniform", "factor_type": "in", "magnitude": 2})
# Of transformers, as arcface_torch has it.
NARROW = Initialiser("normal", {"sigma": 0.02})
# What MXNet's initialisers give to a name that has no initialiser of its own.
BY_SUFFIX = {"_bias": 0.0, "_beta": 0.0, "_gamma": 1.0, "_moving_mean": 0.0, "_running_mean": 0.0,
             "_moving_var": 1.0, "_running_var": 1.0}


def initialise(graph: Graph, image_shape: tuple[int, int, int], seed: int,
               weights: Initialiser = GAUSSIAN_OUT) -> tuple[Arrays, Arrays]:
    """Arguments and auxiliary states by name, float32, for images (3, H, W); ``data`` is not among them.

    An ``__init__`` written on a variable (PReLU's slope 0.25) is followed; other weights follow ``weights``; the
    rest is 0 or 1 by its name. Neither MXNet's nor NumPy's global random state is used or changed.

    :raises UserError: if a variable asks for an initialiser that is not in INITIALISERS, or its name tells nothing.
    """
    shapes = infer_shapes(graph, image_shape)
    attributes = graph.attributes()

    def fill(wanted: dict[str, Shape]) -> Arrays:
        return {name: draw(name, shape, seed, _initialiser_of(name, attributes.get(name, {}).get("__init__"), weights))
                for name, shape in wanted.items()}

    return fill(shapes.arguments), fill(shapes.auxiliary)


def draw(name: str, shape: Shape, seed: int, initialiser: Initialiser = GAUSSIAN_OUT) -> np.ndarray:
    """First values of the parameter ``name``, float32, by ``initialiser``; the same for ever for the same seed.

    :raises UserError: if INITIALISERS has no such kind, or it can't be had with these options or for this shape.
    """
    random = np.random.default_rng([seed, zlib.crc32(name.encode())])
    try:
        return INITIALISERS[initialiser.kind](random, shape, **initialiser.options)
    except (KeyError, TypeError, IndexError):
        raise UserError(f"parameter {name} {shape}: found the initialiser {json.dumps(initialiser)}, expected "
                        f"{', '.join(INITIALISERS)}, with MXNet's arguments and a shape that it can fill") from None


def _initialiser_of(name: str, written: str | None, weights: Initialiser) -> Initialiser:
    """The initialiser ``written`` on the variable: ``'["Constant", {"value": 0.25}]'``, ``'["zero", {}]'`` or, by
    Gluon, ``'ones'``; else ``weights`` or a constant by the end of its name."""
    if written is not None:
        kind, options = json.loads(written) if written.startswith("[") else (written, {})
        return Initialiser(kind.lower(), options)
    if name.endswith("_weight"):
        return weights
    for suffix, value in BY_SUFFIX.items():
        if name.endswith(suffix):
            return Initialiser("constant", {"value": value})
    raise UserError(f"parameter {name}: expected an initialiser, or a name that ends in _weight or "
                    f"{', '.join(BY_SUFFIX)}")


def _constant(random: np.random.Generator, shape: Shape, value: Any) -> np.ndarray:
    """A number in every place, or a table of the shape as nested lists (``mx.init.Constant``)."""
    return np.full(shape, value, np.float32)


def _uniform(random: np.random.Generator, shape: Shape, scale: float = 0.07) -> np.ndarray:
    return (2 * random.random(shape, dtype=np.float32) - 1) * np.float32(scale)


def _normal(random: np.random.Generator, shape: Shape, sigma: float = 0.01) -> np.ndarray:
    return random.standard_normal(shape, dtype=np.float32) * np.float32(sigma)


def _xavier(random: np.random.Generator, shape: Shape, rnd_type: str = "uniform", factor_type: str = "avg",
            magnitude: float = 3) -> np.ndarray:
    """Uniform in ``+-sqrt(magnitude / fan)``, or normal of that deviation (``mx.init.Xavier``).

    A convolution's weight is (outputs, inputs / groups, kernel height, kernel width), a fully connected layer's
    (outputs, inputs); fan_out is outputs, and fan_in inputs / groups, times the kernel's area.
    """
    area = int(np.prod(shape[2:]))
    fan_out, fan_in = shape[0] * area, shape[1] * area
    fan = {"in": fan_in, "out": fan_out, "avg": (fan_in + fan_out) / 2}[factor_type]
    return {"uniform": _uniform, "gaussian": _normal}[rnd_type](random, shape, np.sqrt(magnitude / fan))


def _msra_prelu(random: np.random.Generator, shape: Shape, factor_type: str = "avg", slope: float = 0.25) -> np.ndarray:
    return _xavier(random, shape, "gaussian", factor_type, 2 / (1 + slope**2))


INITIALISERS: dict[str, Callable[..., np.ndarray]] = {
    "constant": _constant,
    **dict.fromkeys(("zero", "zeros"), lambda random, shape: _constant(random, shape, 0)),
    **dict.fromkeys(("one", "ones"), lambda random, shape: _constant(random, shape, 1)),
    "uniform": _uniform,
    "normal": _normal,
    "xavier": _xavier,
    "msraprelu": _msra_prelu,
}
