# SPDX-License-Identifier: Apache-2.0
"""The backbone on every device of this process. The replicas of all processes see different images and take the same
step."""
from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from recognition.engines.interface import Arrays, Updating
from recognition.engines.mxnet.bound import add, blend, copied, embed, fill, to_host
from recognition.engines.mxnet.finite import all_finite, all_usable, norms
from recognition.engines.mxnet.imports import mx
from recognition.engines.mxnet.optimisers import AdamWOptimiser, SgdOptimiser
from recognition.engines.mxnet.processes.kvstore_communicator import KVStoreCommunicator
from recognition.engines.mxnet.replica import Replica
from recognition.engines.numbers import raised_to_travel
from recognition.engines.replicas import Replicas
from recognition.errors import UserError
from recognition.networks.graph import Graph
from recognition.optim.loss_scale import LossScale
from recognition.processes.communicator import Communicator


class ReplicatedBackbone(Replicas):
    """Implements :class:`recognition.engines.interface.Backbone` with one bound network a device."""

    sgd, adamw = SgdOptimiser, AdamWOptimiser
    inferred, to_host, fill = staticmethod(embed), staticmethod(to_host), staticmethod(fill)
    copied, add, blend = staticmethod(copied), staticmethod(add), staticmethod(blend)
    all_finite, all_usable, norms_of = staticmethod(all_finite), staticmethod(all_usable), staticmethod(norms)

    def __init__(self, graph: Graph, parameters: Arrays, auxiliary: Arrays, devices: Sequence[mx.Context],
                 batch_size: int, image_shape: tuple[int, int, int], communicator: Communicator, *,
                 updating: Updating, loss_scale: LossScale | None = None) -> None:
        """:param batch_size: images a device; ``image_shape``: (3, H, W).
        :param loss_scale: for float16; steps whose gradients overflow must then be left out.
        """
        replicas = [Replica(graph, parameters, auxiliary, device, (batch_size, *image_shape)) for device in devices]
        super().__init__(graph, replicas, batch_size, communicator, loss_scale, updating)
        self._sent = updating.gradient_numbers
        self._raised = raised_to_travel(self._sent, loss_scale)
        if self._sent == "bfloat16":
            raise UserError("gradient_numbers: found bfloat16, which Horovod with MXNet cannot add; expected float16, "
                            "or --engine torch")
        if self._sent != "float32" and isinstance(communicator, KVStoreCommunicator):
            raise UserError(f"gradient_numbers: found {self._sent}, but parameter servers add float32 alone; expected "
                            "Horovod, or --engine torch")
        self._has_dropout = any(node.op == "Dropout" for node in graph.nodes)

    def _features(self, images: np.ndarray, place: int) -> np.ndarray:
        if self._has_dropout:
            mx.random.seed(int(self._dropout_stream(place).generate_state(1)[0] >> 1))
        for replica, part in zip(self.replicas, self._parts(images)):
            replica.forward(part, is_train=True)
        return np.concatenate([replica.features() for replica in self.replicas])

    def _reduce_gradients(self) -> None:
        """Queue the sums over replicas and processes; each runs while the rest of the backward pass goes on."""
        first_replica = self.replicas[0]
        for replica in self.replicas[1:]:
            for name in self._backward_order:
                first_replica.gradients[name] += replica.gradients[name].as_in_context(first_replica.device)
        gradients = [first_replica.gradients[name] for name in self._backward_order]
        if self._sent == "float32" or self.communicator.size == 1:
            return self.communicator.sum_in_place("gradient", gradients)
        low = [(gradient * self._raised).astype(self._sent) for gradient in gradients]
        self.communicator.sum_in_place("low gradient", low)
        for gradient, total in zip(gradients, low):
            (total.astype("float32") / self._raised).copyto(gradient)

    def _copy_parameters(self, names: Iterable[str]) -> None:
        for replica in self.replicas[1:]:
            for name in names:
                self.replicas[0].arguments[name].copyto(replica.arguments[name])

    def _wait(self) -> None:
        # Batch norm moves its statistics in the backward pass, and a read of them does not wait for it by itself.
        mx.nd.waitall()
