# SPDX-License-Identifier: Apache-2.0
"""A graph pass that runs a network's heavy layers in 16 bits: bfloat16 on a CPU, float16 on a GPU.

Parameters, their gradients and the output stay float32: each parameter is cast where it is used. Its gradient comes
back through the cast, and the optimiser works on float32 weights, called master weights.
"""
from __future__ import annotations

from recognition.networks.graph import Entry, Graph, GraphMaker, Node
from recognition.networks.shapes import all_shapes

LEAST_CHANNELS = 8  # input channels below which oneDNN has no fast convolution of bfloat16, and leaves its layout


def low_precision(graph: Graph, dtype: str, image_shape: tuple[int, ...] = (3, 112, 112)) -> Graph:
    """Put the heavy layers of ``graph`` into ``dtype``, "bfloat16" or "float16".

    The table of operators says which operators always run in 16 bits, and which do if an input is in 16 bits already.
    All others run in float32: for bfloat16 MXNet has no dropout, no LeakyReLU, and no gradients of reshapes and scales;
    and on a CPU a fully connected layer gains less by bfloat16 than casting its weight costs.

    Arguments, auxiliary states and outputs keep their names and are float32. So are the layer that gives an output and,
    in bfloat16, convolutions of maps of few channels such as the images. The pass comes after those that add layers.
    ``image_shape`` (3, H, W) only tells the channels of maps.
    """
    caster, wide = _Caster(dtype), {head.node for head in graph.heads}
    if dtype == "bfloat16":
        wide.update(_narrow_convolutions(graph, image_shape))
    for number, node in enumerate(graph.nodes):
        caster.add(node, allowed=number not in wide)
    return caster.maker.graph(caster.moved(head) for head in graph.heads)


def _narrow_convolutions(graph: Graph, image_shape: tuple[int, ...]) -> list[int]:
    """The convolutions, not depthwise ones, that read a map of few channels."""
    shapes = all_shapes(graph, (1, *image_shape))
    found = []
    for number, node in enumerate(graph.nodes):
        if node.op == "Convolution" and node.values.num_group == 1:
            data = shapes[node.inputs[0].node][node.inputs[0].output]
            if len(data) > 1 and data[1] < LEAST_CHANNELS:
                found.append(number)
    return found


class _Caster:
    """The graph in the making, with a note for each node whether it is low, that is of 16 bits."""

    def __init__(self, dtype: str) -> None:
        self.maker, self._dtype = GraphMaker(), dtype
        self._places: list[int] = []  # of each old node
        self._low: list[bool] = []  # of each new node
        self._casts: dict[tuple[Entry, bool], Entry] = {}

    def moved(self, entry: Entry) -> Entry:
        return entry._replace(node=self._places[entry.node])

    def _cast(self, entry: Entry, low: bool) -> Entry:
        """The entry in 16 bits or in float32; one cast serves all who use it."""
        if self._low[entry.node] == low:
            return entry
        if (entry, low) not in self._casts:
            name = f"{self.maker.nodes[entry.node].name}_{entry.output}_{'low' if low else 'float32'}"
            self._casts[entry, low] = self.maker.add("amp_cast", name, entry,
                                                     dtype=self._dtype if low else "float32")
            self._low.append(low)
        return self._casts[entry, low]

    def add(self, node: Node, allowed: bool) -> None:
        """Append a node of the old graph; in 16 bits only if ``allowed``."""
        inputs = [self.moved(entry) for entry in node.inputs]
        follows = self._dtype in node.operator.follows and any(self._low[entry.node] for entry in inputs)
        low = allowed and (self._dtype in node.operator.heavy or follows)
        # Batch norm takes its parameters and statistics in float32 whatever the map.
        mapped = 1 if node.op == "BatchNorm" else len(inputs)
        inputs = [self._cast(entry, low and place < mapped) for place, entry in enumerate(inputs)]
        self._places.append(self.maker.append(node, inputs).node)
        self._low.append(low)
