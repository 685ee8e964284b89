# SPDX-License-Identifier: Apache-2.0
"""A checkpoint's network, bound for embedding images and nothing else."""
from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recognition.config.devices import Device
from recognition.engines.mxnet.imports import check_gpu, mx
from recognition.engines.mxnet.passes.precision import low_precision
from recognition.engines.mxnet.passes.prelu import fast_prelu
from recognition.engines.mxnet.passes.winograd import winograd
from recognition.engines.mxnet.symbols import reason, to_symbol
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
            missing or of other shapes, or a GPU cannot be used.
        """
        for kind, index in devices:
            if kind == "gpu":
                check_gpu(index)
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
        size, queued, found = self._batch_size * len(self._bound), [], [np.empty((0, self.dim), np.float32)]
        with _naming(self._path):
            for low in range(0, len(images), size):
                queued.append(self._queue(images[low : low + size], size))
                if len(queued) > 1:  # the next batch is queued before this one is waited for
                    found += [array.asnumpy() for array in queued.pop(0)]
            found += [array.asnumpy() for arrays in queued for array in arrays]
        return np.concatenate(found)[: len(images)]

    def _queue(self, images: np.ndarray, size: int) -> list[mx.nd.NDArray]:
        padded = images if len(images) == size else np.resize(images, (size, *images.shape[1:]))
        return [bound.queue(padded[i * self._batch_size : (i + 1) * self._batch_size])
                for i, bound in enumerate(self._bound)]


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    """What MXNet cannot run is the file's fault: it is named."""
    try:
        yield
    except mx.MXNetError as error:
        raise UserError(f"{path}: MXNet cannot run this network: {reason(error)}") from error


def inference_form(graph: Graph, arguments: Arrays, auxiliary: Arrays, image_shape: tuple[int, ...], *,
                   on_cpu: bool = True, bfloat16: bool = False) -> tuple[Graph, Arrays, Arrays]:
    """The same function, up to rounding, as it is bound to embed: graph, parameters and auxiliary states."""
    if on_cpu and not bfloat16:
        graph = winograd(graph, image_shape)  # first: the batch norm behind it then stays
    graph, arguments, auxiliary = fold_batch_norms(graph, arguments, auxiliary)
    if on_cpu:
        graph = fast_prelu(graph, image_shape)
    if bfloat16:
        graph = low_precision(graph, "bfloat16", image_shape)
    return graph, arguments, auxiliary


class Bound:
    """The network on one device, for batches of one shape, without gradients."""

    def __init__(self, graph: Graph, arguments: dict[str, np.ndarray], auxiliary: dict[str, np.ndarray],
                 context: Any, data_shape: tuple[int, ...]) -> None:
        self._context = context
        self._data = mx.nd.zeros(data_shape, ctx=context)
        placed = {name: mx.nd.array(value, ctx=context) for name, value in arguments.items()}
        # Bound without any gradient, MXNet 1.9.1 fuses layers for oneDNN in ways that fail from the second batch on
        # (mobile networks), or that give wrong numbers. The gradient of one parameter of the last layer stops that.
        last = list(placed)[-1:]
        wanted = {name: "write" if name in last else "null" for name in (*placed, "data")}
        self._executor = to_symbol(graph).bind(
            context, {**placed, "data": self._data}, grad_req=wanted,
            args_grad={name: mx.nd.zeros_like(placed[name]) for name in last},
            aux_states={name: mx.nd.array(value, ctx=context) for name, value in auxiliary.items()})

    def queue(self, images: np.ndarray) -> mx.nd.NDArray:
        """The embeddings, once the engine is through with them, whatever is queued after it."""
        mx.nd.array(images, ctx=self._context, dtype=np.uint8).copyto(self._data)
        return self._executor.forward(is_train=False)[0].copy()


def _chosen(path: Path, group: str, have: dict[str, StoredArray], wanted: dict[str, Shape]) -> dict[str, np.ndarray]:
    """The arrays ``<group>:<name>`` of ``wanted``, which are read, of those that the file has."""
    for name, shape in wanted.items():
        found = have.get(f"{group}:{name}")
        if found is None or found.shape != shape:
            what = "is missing" if found is None else f"is of shape {found.shape}"
            raise UserError(f"{path}: {name} {what}, expected {shape}: not a checkpoint of the network in "
                            f"{path.name.rsplit('-', 1)[0]}-symbol.json")
    return {name: np.asarray(have[f"{group}:{name}"]) for name in wanted}
