# SPDX-License-Identifier: Apache-2.0
"""The shapes of a network's parameters for images of a given size."""
from __future__ import annotations

import re
from typing import NamedTuple

from recognition.errors import UserError
from recognition.mxnet_compat import mx

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
        # The partial form says the same as infer_shape of a complete input, without printing when it fails.
        arguments, outputs, auxiliary = symbol.infer_shape_partial(data=(batch, *image_shape))
    except mx.MXNetError as error:
        channels, height, width = image_shape
        raise UserError(f"image_shape: found {height}x{width}x{channels}, expected images that all layers can take; "
                        f"{_reason(str(error))}") from error
    by_name = dict(zip(symbol.list_arguments(), arguments))
    del by_name["data"]
    return Shapes(by_name, dict(zip(symbol.list_auxiliary_states(), auxiliary)), outputs[0])


def _reason(error: str) -> str:
    """``LAYER says: kernel size exceed input`` from MXNet's message with its file names and checks."""
    layer = re.search(r"Error in operator ([^:\s]+)", error)
    detail = error.strip().splitlines()[0].rsplit(": ", 1)[-1].strip()
    return f"{layer[1] if layer else 'MXNet'} says: {detail}"
