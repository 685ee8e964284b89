# SPDX-License-Identifier: Apache-2.0
"""A network bound to one device, and inference by the networks of several devices."""
from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from recognition.engines.interface import Arrays
from recognition.engines.mxnet.imports import mx
from recognition.engines.mxnet.symbols import to_symbol
from recognition.networks.graph import Graph


class Bound:
    """A network on one device, for batches of one shape."""

    def __init__(self, graph: Graph, arguments: Arrays, auxiliary: Arrays, device: mx.Context,
                 data_shape: tuple[int, ...], learns: Collection[str] | None = None) -> None:
        """:param data_shape: (images, 3, H, W).
        :param learns: the parameters that get gradients. None: the last one, for inference alone: bound without any
            gradient, MXNet 1.9.1 fuses layers for oneDNN in ways that fail from the second batch on (mobile networks),
            or that give wrong numbers. The gradient of one parameter of the last layer stops that.
        """
        self.device = device
        self._data = mx.nd.zeros(data_shape, ctx=device)
        self.arguments = {name: mx.nd.array(value, ctx=device) for name, value in arguments.items()}
        self.auxiliary = {name: mx.nd.array(value, ctx=device) for name, value in auxiliary.items()}
        learns = list(arguments)[-1:] if learns is None else learns
        self.gradients = {name: mx.nd.zeros_like(self.arguments[name]) for name in learns}
        wanted = {name: "write" if name in self.gradients else "null" for name in (*arguments, "data")}
        self._executor = to_symbol(graph).bind(device, {**self.arguments, "data": self._data},
                                               args_grad=self.gradients, grad_req=wanted, aux_states=self.auxiliary)

    def forward(self, images: np.ndarray, is_train: bool) -> mx.nd.NDArray:
        """Queue a forward pass of images, uint8 (n, 3, H, W); returns the executor's own array of its output."""
        mx.nd.array(images, ctx=self.device, dtype=np.uint8).copyto(self._data)
        return self._executor.forward(is_train=is_train)[0]

    def queue(self, images: np.ndarray) -> mx.nd.NDArray:
        """Queue inference; returns the output once the engine is through with it, whatever is queued after it."""
        return self.forward(images, is_train=False).copy()


def embed(networks: Sequence[Bound], batch_size: int, images: np.ndarray) -> list[np.ndarray]:
    """Outputs of the networks, ``batch_size`` images each at a time, in the order of the images.

    The last batch is filled up, so there may be more rows than images. Each batch is queued before the results of the
    one ahead of it are read.
    """
    size, queued, found = batch_size * len(networks), [], []
    for low in range(0, len(images), size):
        part = images[low : low + size]
        padded = part if len(part) == size else np.resize(part, (size, *part.shape[1:]))
        queued.append([network.queue(padded[i * batch_size : (i + 1) * batch_size])
                       for i, network in enumerate(networks)])
        if len(queued) > 1:
            found += [array.asnumpy() for array in queued.pop(0)]
    return found + [array.asnumpy() for arrays in queued for array in arrays]


def to_host(arrays: Mapping[str, mx.nd.NDArray], names: Sequence[str] = ()) -> Arrays:
    """Copies of all arrays, or of those named, as NumPy arrays."""
    return {name: arrays[name].asnumpy() for name in names or arrays}


def copied(arrays: Mapping[str, mx.nd.NDArray]) -> dict[str, mx.nd.NDArray]:
    """Copies of all arrays, on their devices."""
    return {name: array.copy() for name, array in arrays.items()}


def add(arrays: Mapping[str, mx.nd.NDArray], others: Mapping[str, mx.nd.NDArray]) -> None:
    """Queue ``a += b`` for all arrays."""
    for name, array in arrays.items():
        array += others[name]


def blend(averages: Mapping[str, mx.nd.NDArray], arrays: Mapping[str, mx.nd.NDArray], share: float) -> None:
    """Queue ``a += share (w - a)`` for all arrays. What wrote the arrays must be over, as for a copy."""
    for name, average in averages.items():
        average += share * (arrays[name] - average)


def fill(arrays: Mapping[str, mx.nd.NDArray], values: Mapping[str, np.ndarray]) -> None:
    """Copy values over the arrays of their names."""
    for name, value in values.items():
        # Not arrays[name][:] = value: MXNet refuses it for an array that a pass has left in oneDNN's layout.
        mx.nd.array(value, ctx=arrays[name].context).copyto(arrays[name])
