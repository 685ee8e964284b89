# SPDX-License-Identifier: Apache-2.0
"""A backbone on one device, in training."""
from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from recognition.engines.interface import Arrays
from recognition.engines.mxnet.bound import Bound
from recognition.engines.mxnet.imports import mx
from recognition.networks.graph import Graph


class Replica(Bound):
    """A bound network whose parameters all get gradients, and whose moving statistics can be put back."""

    def __init__(self, graph: Graph, parameters: Arrays, auxiliary: Arrays, device: mx.Context,
                 data_shape: tuple[int, int, int, int]) -> None:
        super().__init__(graph, parameters, auxiliary, device, data_shape, learns=parameters)
        self._kept: Mapping[str, mx.nd.NDArray] = {}

    def keep_statistics(self) -> None:
        """Copy the moving statistics. The last backward pass must be over: a copy does not wait for it by itself."""
        if not self._kept:
            self._kept = {name: mx.nd.empty(array.shape, ctx=self.device) for name, array in self.auxiliary.items()}
        for name, array in self.auxiliary.items():
            array.copyto(self._kept[name])

    def restore_statistics(self) -> None:
        """Restore the statistics that :meth:`keep_statistics` copied."""
        mx.nd.waitall()
        for name, array in self._kept.items():
            array.copyto(self.auxiliary[name])

    def features(self) -> np.ndarray:
        """The output of the last forward pass, float32 (n, D)."""
        return self._executor.outputs[0].asnumpy()

    def backward(self, d_features: np.ndarray) -> None:
        """Queue the backward pass from the gradient by the last output, float32 (n, D)."""
        self._executor.backward([mx.nd.array(d_features, ctx=self.device)])
