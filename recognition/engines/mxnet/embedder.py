# SPDX-License-Identifier: Apache-2.0
"""A checkpoint's network, bound for embedding images and nothing else."""
from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np

from recognition.config.devices import Device
from recognition.engines.mxnet.bound import Bound, embed
from recognition.engines.mxnet.imports import mx
from recognition.engines.mxnet.passes.prelu import fast_prelu
from recognition.engines.mxnet.passes.winograd import winograd, winograd_pays
from recognition.engines.mxnet.symbols import reason
from recognition.errors import UserError
from recognition.io.params import Arrays
from recognition.networks.fold import fold_batch_norms
from recognition.networks.graph import Graph
from recognition.networks.low_precision import low_precision
from recognition.networks.saved import read_saved


class Embedder:
    """Implements :class:`recognition.engines.interface.Embedder`."""

    def __init__(self, prefix: str, number: int, devices: Sequence[Device], batch_size: int,
                 image_shape: tuple[int, int, int], bfloat16: bool = False) -> None:
        """Batch norms are folded; for the rest see :meth:`recognition.engines.interface.Engine.embedder`."""
        saved = read_saved(prefix, number, batch_size, image_shape)
        self._path, self.dim = saved.path, saved.dim
        with _naming(self._path):
            form = inference_form(saved.graph, saved.arguments, saved.auxiliary, image_shape,
                                  on_cpu=devices[0][0] == "cpu", bfloat16=bfloat16)
            self._bound = [Bound(*form, mx.Context(*device), (batch_size, *image_shape)) for device in devices]
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
    if on_cpu and not bfloat16 and winograd_pays():
        graph = winograd(graph, image_shape)  # first: the batch norm behind it then stays
    graph, arguments, auxiliary = fold_batch_norms(graph, arguments, auxiliary)
    if on_cpu:
        graph = fast_prelu(graph, image_shape)
    if bfloat16:
        graph = low_precision(graph, "bfloat16", image_shape)
    return graph, arguments, auxiliary
