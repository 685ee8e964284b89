# SPDX-License-Identifier: Apache-2.0
"""The backbone on every device of this process. The replicas of all processes see different images and take the same
step."""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Callable

import numpy as np

from recognition.engines.interface import Arrays, BackboneState
from recognition.engines.mxnet.bound import embed, fill, to_host
from recognition.engines.mxnet.finite import all_finite, all_usable
from recognition.engines.mxnet.imports import mx
from recognition.engines.mxnet.optimisers import AdamWOptimiser, Optimiser, SgdOptimiser
from recognition.engines.mxnet.replica import Replica
from recognition.engines.replicas import Replicas, difference
from recognition.networks.graph import Graph
from recognition.optim.adamw import AdamW
from recognition.optim.factors import LearningRateFactors
from recognition.optim.loss_scale import LossScale
from recognition.processes.communicator import Communicator


class ReplicatedBackbone(Replicas):
    """Implements :class:`recognition.engines.interface.Backbone` with one bound network a device and one optimiser
    state for all of them.

    Batch statistics are those of a replica's own images, as in the legacy code; a checkpoint gets the mean of the
    moving statistics of all replicas of all processes, as ``Module.get_params`` always gave it. So ``embed``,
    ``parameters`` and ``state`` are collective: all processes call them together.
    """

    to_host, fill = staticmethod(to_host), staticmethod(fill)

    def __init__(self, graph: Graph, parameters: Arrays, auxiliary: Arrays, devices: Sequence[mx.Context],
                 batch_size: int, image_shape: tuple[int, int, int], communicator: Communicator, *, mu: float,
                 wd: float, seed: int = 0, rates: Callable[[Sequence[str]], LearningRateFactors] = LearningRateFactors,
                 loss_scale: LossScale | None = None, adamw: AdamW | None = None, leaves_out: bool = False) -> None:
        """:param batch_size: images a device; ``image_shape``: (3, H, W).
        :param rates: the factors of the learning rate, made for the names of the parameters.
        :param loss_scale: for float16; steps whose gradients overflow must then be left out.
        :param adamw: AdamW in place of SGD; ``mu`` is for SGD alone.
        :param leaves_out: whether :meth:`leave_out` may be called, for which moving statistics are copied each step.
        """
        self.batch_size, self.communicator = batch_size, communicator
        self.seed = seed
        self.names = sorted(parameters)
        self._rates, self.loss_scale = rates(self.names), loss_scale
        self._keeps_statistics = leaves_out or loss_scale is not None
        self._backward_order = [name for name in reversed(graph.list_arguments()) if name in parameters]
        self._has_dropout = any(node.op == "Dropout" for node in graph.nodes)
        self.replicas = [Replica(graph, parameters, auxiliary, device, (batch_size, *image_shape))
                         for device in devices]
        arguments = self.replicas[0].arguments
        self._optimiser: Optimiser = (AdamWOptimiser(arguments, self.names, adamw, wd) if adamw else
                                      SgdOptimiser(arguments, self.names, mu, wd))
        self._steps = 0

    def forward(self, images: np.ndarray) -> np.ndarray:
        if self._has_dropout:  # a mask is a function of the seed and the step, so that a resumed run draws the same
            stream = np.random.SeedSequence([self.seed, self._steps, self.communicator.rank])
            mx.random.seed(int(stream.generate_state(1)[0] >> 1))
        for replica, part in zip(self.replicas, self._parts(images)):
            if self._keeps_statistics:
                replica.keep_statistics()
            replica.forward(part, is_train=True)
        return np.concatenate([replica.features() for replica in self.replicas])

    def finite(self) -> bool:
        return all_finite(self.replicas[0].gradients, *(replica.auxiliary for replica in self.replicas))

    def sound(self) -> bool:
        return all_usable(self._parameters()) and all_finite(*self._optimiser.moments.values(), *(
            replica.auxiliary for replica in self.replicas))

    def _parameters(self) -> dict[str, mx.nd.NDArray]:
        return {name: self.replicas[0].arguments[name] for name in self.names}

    def gradient_norm(self) -> float:
        return _norm({name: self.replicas[0].gradients[name] for name in self._rates(self._steps)}) / self._scale

    def step(self, lr: float) -> None:
        first_replica, rates = self.replicas[0], self._rates(self._steps)
        self._steps += 1
        self._optimiser(first_replica.arguments, first_replica.gradients,
                        {name: lr * rate for name, rate in rates.items()}, 1 / self._scale)
        for replica in self.replicas[1:]:
            for name in rates:
                first_replica.arguments[name].copyto(replica.arguments[name])
        if self.loss_scale:
            self.loss_scale.count(finite=True)

    def norms(self) -> tuple[dict[str, float], dict[str, float]]:
        first_replica = self.replicas[0]
        parameters, gradients = ({name: float(np.sqrt(np.square(arrays[name].asnumpy(), dtype=np.float64).sum()))
                                  for name in self.names}
                                 for arrays in (first_replica.arguments, first_replica.gradients))
        return parameters, gradients

    def _reduce_gradients(self) -> None:
        """Queue the sums over replicas and processes; each runs while the rest of the backward pass goes on."""
        first_replica = self.replicas[0]
        for replica in self.replicas[1:]:
            for name in self._backward_order:
                first_replica.gradients[name] += replica.gradients[name].as_in_context(first_replica.device)
        self.communicator.sum_in_place("gradient", [first_replica.gradients[name] for name in self._backward_order])

    def _inferred(self, images: np.ndarray) -> np.ndarray:
        mx.nd.waitall()  # batch norm moves its statistics in the backward pass, for which a read does not wait
        return np.concatenate(embed(self.replicas, self.batch_size, images))[: len(images)]

    def _own_statistics(self) -> list[Arrays]:
        # Batch norm moves its statistics in the backward pass, and a read of them does not wait for it by itself.
        mx.nd.waitall()
        return [to_host(replica.auxiliary) for replica in self.replicas]

    def difference(self, state: BackboneState) -> str:
        """The first name or shape by which a state differs from this network; '' if none does."""
        first_replica = self.replicas[0]
        return difference(state, {name: first_replica.arguments[name].shape for name in self.names},
                          list(self._optimiser.moments),
                          {name: array.shape for name, array in first_replica.auxiliary.items()})


def _norm(arrays: Mapping[str, mx.nd.NDArray]) -> float:
    """The Euclidean norm of all arrays together."""
    return math.sqrt(math.fsum(float(np.square(array.asnumpy(), dtype=np.float64).sum()) for array in arrays.values()))
