# SPDX-License-Identifier: Apache-2.0
"""A graph pass that computes 3 x 3 convolutions with a quarter to a third of the products, for training on a CPU."""
from __future__ import annotations

import ast
import json
import math

from llvmlite import binding

from recognition.engines.mxnet.imports import mx
from recognition.engines.mxnet.passes.winograd_operator import OPERATOR
from recognition.engines.mxnet.passes.winograd_tiles import IN, OUT, PANEL
from recognition.networks.passes import Entry, Graph, Node, rewrite

MOST_PRODUCTS = 0.5  # of those of the plain sums, for the transforms to pay
PLAIN = {"kernel": (3, 3), "stride": (1, 1), "pad": (1, 1), "dilate": (1, 1), "num_group": 1, "no_bias": True}
UNSAID = {"stride": "()", "pad": "()", "dilate": "()", "num_group": "1", "no_bias": "False"}
EMPTY = {"stride": (1, 1), "pad": (0, 0), "dilate": (1, 1)}  # what MXNet takes an empty tuple for


def has_winograd() -> bool:
    """Whether this processor has the vectors and the registers that the kernels are written for."""
    return bool(binding.get_host_cpu_features().get("avx512f"))


def winograd(symbol: mx.sym.Symbol, image_shape: tuple[int, ...] = (3, 112, 112)) -> mx.sym.Symbol:
    """``symbol`` with Winograd's F(4 x 4, 3 x 3) for its 3 x 3 convolutions, where that is faster; float32 alone.

    These have stride 1, padding 1, no dilation, no groups and no bias, and channels in multiples of 64 on both sides.
    Outputs and gradients are equal up to rounding: an error of 1e-6 to 2e-6 of their root mean square, where plain sums
    in float32 have 2e-7; that of the gradient of the weights is at most twice theirs. Without AVX-512, or where the
    network has layers of 16 bits, nothing changes. ``image_shape`` (3, H, W) tells the sizes of the maps. Comes after
    passes that add layers.
    """
    if not has_winograd() or "amp_cast" in symbol.tojson(remove_amp_cast=False):
        return symbol
    internals = symbol.get_internals()
    shapes = dict(zip(internals.list_outputs(), internals.infer_shape_partial(data=(1, *image_shape))[1]))

    def rule(graph: Graph, node: Node, inputs: list[Entry]) -> Entry | None:
        out = shapes.get(node["name"] + "_output", ())
        weights = graph.nodes[inputs[1].node]
        weight = shapes.get(weights["name"] + ("" if weights["op"] == "null" else "_output"), ())
        if not _is_plain(node) or not _pays(out, weight):
            return None
        # Of each input in oneDNN's layout MXNet keeps a copy in NCHW until the operator's next step, forward and again
        # backward. A reshape to the same shape makes the copy in memory that MXNet plans, once.
        plain = graph.add("Reshape", node["name"] + "_nchw", inputs[0], shape=(0, 0, 0, 0))
        return graph.add("Custom", node["name"], plain, inputs[1], op_type=OPERATOR, num_filter=out[1])

    return rewrite(symbol, {"Convolution": rule})


def held_copies(symbol: mx.sym.Symbol, image_shape: tuple[int, ...], batch: int) -> int:
    """Bytes that MXNet holds beside its plan for the pass's operators: the gradients of their outputs in NCHW, each
    until the operator's next step. In r50 at 32 images that is 0.73 GB of 3.5 (``bench.memonger``)."""
    internals = symbol.get_internals()
    names = [node["name"] + "_output" for node in json.loads(symbol.tojson())["nodes"]
             if node.get("attrs", {}).get("op_type") == OPERATOR]
    shapes = dict(zip(internals.list_outputs(), internals.infer_shape_partial(data=(batch, *image_shape))[1]))
    return 4 * sum(math.prod(shapes[name]) for name in names)


def _is_plain(node: Node) -> bool:
    attrs = {**UNSAID, **node.get("attrs", {})}
    found = {key: ast.literal_eval(attrs[key]) or EMPTY.get(key, False) for key in PLAIN}
    return found == PLAIN and attrs.get("layout", "None") in ("None", "NCHW")


def _pays(out: tuple[int, ...], weight: tuple[int, ...]) -> bool:
    """For maps ``out`` (1, filters, H, W), by weights (filters, channels, 3, 3)."""
    if len(out) != 4 or len(weight) != 4 or any(size % PANEL or not size for size in weight[:2]):
        return False
    tiles = -(-out[2] // OUT) * -(-out[3] // OUT)
    return tiles * IN * IN <= MOST_PRODUCTS * 9 * out[2] * out[3]
