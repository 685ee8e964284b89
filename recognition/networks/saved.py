# SPDX-License-Identifier: Apache-2.0
"""The network of a checkpoint with its arrays, each compared with the shape that the network needs."""
from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from recognition.errors import UserError
from recognition.io.names import params_file
from recognition.io.params import read_arrays
from recognition.io.stored_array import StoredArray
from recognition.networks.graph import Graph
from recognition.networks.operators.operator import Shape
from recognition.networks.shapes import infer_shapes
from recognition.networks.symbol_file import OUTPUT, read_network


class SavedNetwork(NamedTuple):
    """A graph ``data`` to ``fc1_output``, and its parameters and auxiliary states by name."""

    path: str  # of its symbol, for errors
    graph: Graph
    arguments: dict[str, np.ndarray]
    auxiliary: dict[str, np.ndarray]
    dim: int  # of an embedding


def read_saved(prefix: str, number: int, batch_size: int, image_shape: tuple[int, int, int]) -> SavedNetwork:
    """The network of ``<prefix>-symbol.json`` with the arrays of ``<prefix>-<number>.params``.

    :param image_shape: (3, H, W).
    :raises UserError: if a file cannot be read, the network has no ``fc1_output`` of one row an image, arrays are
        missing or of other shapes.
    """
    symbol = f"{prefix}-symbol.json"
    graph = read_network(Path(symbol))
    shapes = infer_shapes(graph, image_shape, batch_size)
    if len(shapes.output) != 2 or shapes.output[0] != batch_size:
        raise UserError(f"{symbol}: {OUTPUT} is of shape {shapes.output} for {batch_size} images, expected one row an "
                        "image")
    path = Path(params_file(prefix, number))
    file = read_arrays(path)
    have = dict(zip(file.names, file.arrays))
    return SavedNetwork(symbol, graph, _chosen(path, "arg", have, shapes.arguments),
                        _chosen(path, "aux", have, shapes.auxiliary), shapes.output[1])


def _chosen(path: Path, group: str, have: dict[str, StoredArray], wanted: dict[str, Shape]) -> dict[str, np.ndarray]:
    """Read the arrays ``<group>:<name>`` of ``wanted`` from those that the file has, as float32."""
    for name, shape in wanted.items():
        found = have.get(f"{group}:{name}")
        if found is None or found.shape != shape:
            what = "is missing" if found is None else f"is of shape {found.shape}"
            raise UserError(f"{path}: {name} {what}, expected {shape}: not a checkpoint of the network in "
                            f"{path.name.rsplit('-', 1)[0]}-symbol.json")
    return {name: np.asarray(have[f"{group}:{name}"], np.float32) for name in wanted}
