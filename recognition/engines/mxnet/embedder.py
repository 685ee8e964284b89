# SPDX-License-Identifier: Apache-2.0
"""A checkpoint's network, bound for embedding images and nothing else."""
from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from recognition.config.devices import Device
from recognition.engines.mxnet.bound import Bound, embed
from recognition.engines.mxnet.imports import mx
from recognition.engines.mxnet.passes.precision import low_precision
from recognition.engines.mxnet.passes.prelu import fast_prelu
from recognition.engines.mxnet.passes.winograd import winograd
from recognition.engines.mxnet.symbols import reason
from recognition.errors import UserError
from recognition.io.params import read_arrays
from recognition.io.stored_array import StoredArray
from recognition.networks.fold import Arrays, fold_batch_norms
from recognition.networks.graph import Graph
from recognition.networks.shapes import Shape, infer_shapes
from recognition.networks.symbol_file import OUTPUT, read_network


class Embedder:
    """Callable: uint8 ``(n, 3, H, W)`` RGB to float32 ``(n, dim)``, not normalised; any n."""

    def __init__(self, prefix: str, number: int, devices: Sequence[Device], batch_size: int,
                 image_shape: tuple[int, int, int], bfloat16: bool = False) -> None:
        """Bind ``<prefix>-symbol.json`` with the arrays of ``<prefix>-<number>.params`` on each device, batch norms
        folded.

        :param batch_size: images a device at a time; ``image_shape``: (3, H, W).
        :param bfloat16: compute in bfloat16, on CPUs that have it: about twice as fast, cosines change by up to 1e-3
        :raises UserError: if a file cannot be read, the network has no ``fc1_output`` of one row an image, arrays are
            missing or of other shapes.
        """
        graph = read_network(Path(f"{prefix}-symbol.json"))
        shapes = infer_shapes(graph, image_shape, batch_size)
        if len(shapes.output) != 2 or shapes.output[0] != batch_size:
            raise UserError(f"{prefix}-symbol.json: {OUTPUT} is of shape {shapes.output} for {batch_size} images, "
                            "expected one row an image")
        self.dim: int = shapes.output[1]
        path = Path(f"{prefix}-{number:04d}.params")
        file = read_arrays(path)
        have = dict(zip(file.names, file.arrays))
        arguments = _chosen(path, "arg", have, shapes.arguments)
        auxiliary = _chosen(path, "aux", have, shapes.auxiliary)
        self._path = f"{prefix}-symbol.json"
        with _naming(self._path):
            graph, arguments, auxiliary = inference_form(graph, arguments, auxiliary, image_shape,
                                                         on_cpu=devices[0][0] == "cpu", bfloat16=bfloat16)
            self._bound = [Bound(graph, arguments, auxiliary, mx.Context(*device), (batch_size, *image_shape))
                           for device in devices]
        self._batch_size = batch_size

    def __call__(self, images: np.ndarray) -> np.ndarray:
        with _naming(self._path):
            found = embed(self._bound, self._batch_size, images)
        return np.concatenate([np.empty((0, self.dim), np.float32), *found])[: len(images)]


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    """Context in which an error of MXNet becomes a UserError that names the file ``path``."""
    try:
        yield
    except mx.MXNetError as error:
        raise UserError(f"{path}: MXNet cannot run this network: {reason(error)}") from error


def inference_form(graph: Graph, arguments: Arrays, auxiliary: Arrays, image_shape: tuple[int, ...], *,
                   on_cpu: bool = True, bfloat16: bool = False) -> tuple[Graph, Arrays, Arrays]:
    """The form in which a network is bound to embed: graph, parameters, auxiliary states. Equal up to rounding."""
    if on_cpu and not bfloat16:
        graph = winograd(graph, image_shape)  # first: the batch norm behind it then stays
    graph, arguments, auxiliary = fold_batch_norms(graph, arguments, auxiliary)
    if on_cpu:
        graph = fast_prelu(graph, image_shape)
    if bfloat16:
        graph = low_precision(graph, "bfloat16", image_shape)
    return graph, arguments, auxiliary




def _chosen(path: Path, group: str, have: dict[str, StoredArray], wanted: dict[str, Shape]) -> dict[str, np.ndarray]:
    """Read the arrays ``<group>:<name>`` of ``wanted`` from those that the file has, as float32."""
    for name, shape in wanted.items():
        found = have.get(f"{group}:{name}")
        if found is None or found.shape != shape:
            what = "is missing" if found is None else f"is of shape {found.shape}"
            raise UserError(f"{path}: {name} {what}, expected {shape}: not a checkpoint of the network in "
                            f"{path.name.rsplit('-', 1)[0]}-symbol.json")
    return {name: np.asarray(have[f"{group}:{name}"], np.float32) for name in wanted}
