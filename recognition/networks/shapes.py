# SPDX-License-Identifier: Apache-2.0
"""The shapes of a network's parameters for images of a given size."""
from __future__ import annotations

import json
import math
import re
from typing import NamedTuple

from recognition.engines.mxnet.imports import mx
from recognition.errors import UserError

MOST_NUMBERS = 2 ** 31 - 1  # of an array: MXNet 1.9.1 counts them in 32 bits, and does not notice when it cannot
MOST_AN_IMAGE = 1 << 30  # of all layers and parameters: r200 at 224 x 224 has a quarter
_SAME_SIZE = frozenset(("Reshape", "reshape"))
_MAY_BE_EMPTY = frozenset(("slice", "slice_like"))
Shape = tuple[int, ...]


class Shapes(NamedTuple):
    """Shapes by name, in the order in which the symbol lists them; ``data`` is not among the arguments."""

    arguments: dict[str, Shape]
    auxiliary: dict[str, Shape]
    output: Shape


def infer_shapes(symbol: mx.sym.Symbol, image_shape: tuple[int, int, int], batch: int = 1) -> Shapes:
    """Shapes for ``data`` of ``batch`` images (3, H, W); ``output`` is that of the first output, (batch, emb_size).

    :raises UserError: if the network cannot take images of this size; it names the layer.
    """
    try:
        _check_slices(symbol, (batch, *image_shape))
        # The partial form says the same as infer_shape of a complete input, without printing when it fails.
        arguments, outputs, auxiliary = symbol.infer_shape_partial(data=(batch, *image_shape))
    except mx.MXNetError as error:
        channels, height, width = image_shape
        raise UserError(f"image_shape: found {height}x{width}x{channels}, expected images that all layers can take; "
                        f"{reason(error)}") from error
    _check_sizes(symbol, (batch, *image_shape))
    by_name = dict(zip(symbol.list_arguments(), arguments))
    del by_name["data"]
    return Shapes(by_name, dict(zip(symbol.list_auxiliary_states(), auxiliary)), outputs[0])


def _check_slices(symbol: mx.sym.Symbol, data: Shape) -> None:
    """A slice of nothing, the one layer without an output, makes MXNet divide by zero in a layer that comes after it,
    which ends the process. So slices are looked at one after the other, each before anything that follows it.

    :raises UserError: which names the layer.
    """
    names = [node["name"] for node in json.loads(symbol.tojson())["nodes"] if node["op"] in _MAY_BE_EMPTY]
    for name in names:
        (shape,) = symbol.get_internals()[f"{name}_output"].infer_shape_partial(data=data)[1]
        if shape and 0 in shape:
            raise UserError(f"{name} has an output of {shape} for images {data}, expected some numbers in it")


def _check_sizes(symbol: mx.sym.Symbol, data: Shape) -> None:
    """Look at what MXNet does not: it writes over other memory where an array has too many numbers, or where a reshaped
    one has another number of them.

    :raises UserError: which names the layer.
    """
    internals = symbol.get_internals()
    sizes = {name: math.prod(shape) for name, shape in zip(internals.list_outputs(),
                                                          internals.infer_shape_partial(data=data)[1])}
    for name, size in sizes.items():
        if size > MOST_NUMBERS:
            raise UserError(f"{name} would have {size} numbers for images {data}, expected at most {MOST_NUMBERS}")
    if sum(sizes.values()) > MOST_AN_IMAGE * data[0]:
        raise UserError(f"all layers together have {sum(sizes.values()):,} numbers for images {data}, expected at most "
                        f"{MOST_AN_IMAGE:,} an image")
    nodes = json.loads(symbol.tojson())["nodes"]
    for node in nodes:
        if node["op"] in _SAME_SIZE:
            before, output = nodes[node["inputs"][0][0]], node["inputs"][0][1]
            found = sizes[f"{node['name']}_output"]
            given = [sizes[name] for name in (before["name"], f"{before['name']}_output",
                                              f"{before['name']}_output{output}") if name in sizes]
            if given and found and found != given[-1]:
                raise UserError(f"{node['name']} makes {found} numbers of {given[-1]}, expected the same number for "
                                f"images {data}")


def reason(error: mx.MXNetError) -> str:
    """``LAYER says: kernel size exceed input`` from MXNet's message with its file names and checks."""
    text = str(error).strip()
    layer = re.search(r"Error in operator ([^:\s]+)", text)
    detail = text.splitlines()[0].rsplit(": ", 1)[-1].strip()
    return f"{layer[1] if layer else 'MXNet'} says: {detail}"
