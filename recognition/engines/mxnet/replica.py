# SPDX-License-Identifier: Apache-2.0
"""A backbone on one device."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from recognition.engines.mxnet.imports import mx
from recognition.engines.mxnet.symbols import to_symbol
from recognition.networks.graph import Graph

Arrays = dict[str, np.ndarray]


class Replica:
    """The backbone bound to one device for batches of one shape."""

    def __init__(self, graph: Graph, parameters: Arrays, auxiliary: Arrays, device: mx.Context,
                 data_shape: tuple[int, int, int, int]) -> None:
        self.device = device
        self.arguments = {name: mx.nd.array(value, ctx=device) for name, value in parameters.items()}
        self.auxiliary = {name: mx.nd.array(value, ctx=device) for name, value in auxiliary.items()}
        self.gradients = {name: mx.nd.zeros_like(value) for name, value in self.arguments.items()}
        self._kept: Mapping[str, mx.nd.NDArray] = {}
        self._data = mx.nd.zeros(data_shape, ctx=device)
        self._executor = to_symbol(graph).bind(device, {**self.arguments, "data": self._data}, args_grad=self.gradients,
                                     grad_req={"data": "null", **dict.fromkeys(parameters, "write")},
                                     aux_states=self.auxiliary)

    def forward(self, images: np.ndarray, is_train: bool) -> None:
        mx.nd.array(images, ctx=self.device, dtype=np.uint8).copyto(self._data)
        self._executor.forward(is_train=is_train)

    def keep_statistics(self) -> None:
        """Copy the moving statistics. The backward pass before must be over: a copy does not wait for it by itself."""
        if not self._kept:
            self._kept = {name: mx.nd.empty(array.shape, ctx=self.device) for name, array in self.auxiliary.items()}
        for name, array in self.auxiliary.items():
            array.copyto(self._kept[name])

    def restore_statistics(self) -> None:
        """Take back what :meth:`keep_statistics` copied."""
        mx.nd.waitall()
        for name, array in self._kept.items():
            array.copyto(self.auxiliary[name])

    def features(self) -> np.ndarray:
        return self._executor.outputs[0].asnumpy()

    def queued_features(self) -> mx.nd.NDArray:
        """Those of the last forward pass, once it is through, whatever is queued after it."""
        return self._executor.outputs[0].copy()

    def backward(self, d_features: np.ndarray) -> None:
        self._executor.backward([mx.nd.array(d_features, ctx=self.device)])


def to_host(arrays: Mapping[str, mx.nd.NDArray], names: Sequence[str] = ()) -> Arrays:
    return {name: arrays[name].asnumpy() for name in names or arrays}


def fill(arrays: Mapping[str, mx.nd.NDArray], values: Mapping[str, np.ndarray]) -> None:
    for name, value in values.items():
        arrays[name][:] = value
