# SPDX-License-Identifier: Apache-2.0
"""A graph pass that computes 3 x 3 convolutions with a quarter to a third of the products, for training on a CPU."""
from __future__ import annotations

import math

from recognition.config.devices import processor_flags, processor_of_amd
from recognition.networks.graph import Entry, Graph, GraphMaker, Node, rewrite
from recognition.networks.operators.operator import Shape
from recognition.networks.shapes import all_shapes

OPERATOR = "recognition_winograd"  # its name in MXNet's registry
OUT, IN = 4, 6  # the sides of a tile, of outputs and of inputs
PANEL = 64  # columns of a tile of a matrix product: 4 vectors, beside 6 rows 24 of AVX-512's 32 registers
MOST_PRODUCTS = 0.5  # of those of the plain sums, for the transforms to pay


def winograd_pays() -> bool:
    """True if the pass makes a step faster on this processor: AMD's with AVX-512, for whose registers the kernels are
    written (Zen 4: r18 1.33 to 1.38 times, r50 1.50), but not Intel's (one with AMX: r18 0.97 times)."""
    return "avx512f" in processor_flags() and processor_of_amd()


def winograd(graph: Graph, image_shape: tuple[int, ...] = (3, 112, 112)) -> Graph:
    """Use Winograd's F(4 x 4, 3 x 3) for the 3 x 3 convolutions of ``graph``; for processors where that pays.

    Such convolutions have stride 1, padding 1, no dilation, groups or bias, and multiples of 64 channels on both sides.
    Outputs and gradients are equal up to rounding: an error of 1e-6 to 2e-6 of their root mean square, where plain sums
    in float32 have 2e-7; that of the gradient of the weights is at most twice theirs. Where the network has layers of
    16 bits, nothing changes. ``image_shape`` (3, H, W) tells the sizes of the maps. The pass comes after those that add
    layers.
    """
    if any(node.op == "amp_cast" for node in graph.nodes):
        return graph
    found = all_shapes(graph, (1, *image_shape))
    outputs = {node.output_name(0): shapes[0] for node, shapes in zip(graph.nodes, found)}

    def rule(maker: GraphMaker, node: Node, inputs: list[Entry]) -> Entry | None:
        out, weight = outputs[node.output_name(0)], found[node.inputs[1].node][node.inputs[1].output]
        if not _is_plain(node) or not _pays(out, weight):
            return None
        # Of each input in oneDNN's layout MXNet keeps a copy in NCHW until the operator's next step, forward and again
        # backward. A reshape to the same shape makes the copy in memory that MXNet plans, once.
        plain = maker.add("Reshape", node.name + "_nchw", inputs[0], shape=(0, 0, 0, 0))
        return maker.add("Custom", node.name, plain, inputs[1], op_type=OPERATOR, num_filter=out[1])

    return rewrite(graph, {"Convolution": rule})


def held_copies(graph: Graph, image_shape: tuple[int, ...], batch: int) -> int:
    """Bytes that MXNet holds beside its plan for the pass's operators: the gradients of their outputs in NCHW, each
    until the operator's next step. In r50 at 32 images that is 0.73 GB of 3.5 (``bench.networks.memonger``)."""
    found = all_shapes(graph, (batch, *image_shape))
    return 4 * sum(math.prod(shapes[0]) for node, shapes in zip(graph.nodes, found) if node.op == "Custom")


def _is_plain(node: Node) -> bool:
    values = node.values
    window = values.kernel, values.stride or (1, 1), values.pad or (0, 0), values.dilate or (1, 1)
    return (window == ((3, 3), (1, 1), (1, 1), (1, 1)) and values.num_group == 1 and values.no_bias
            and values.layout in ("None", "NCHW"))


def _pays(out: Shape, weight: Shape) -> bool:
    """True if the pass pays for maps ``out`` (1, filters, H, W), by weights (filters, channels, 3, 3)."""
    if len(out) != 4 or len(weight) != 4 or any(size % PANEL or not size for size in weight[:2]):
        return False
    tiles = -(-out[2] // OUT) * -(-out[3] // OUT)
    return tiles * IN * IN <= MOST_PRODUCTS * 9 * out[2] * out[3]
