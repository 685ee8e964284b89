# SPDX-License-Identifier: Apache-2.0
"""The backbone on every device of this process. The replicas of all processes see different images and take the same
step."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Callable

import numpy as np

from recognition.engines.interface import Arrays, BackboneState
from recognition.engines.replicas import Replicas, difference
from recognition.engines.torch.finite import all_finite, all_usable, norms
from recognition.engines.torch.imports import torch
from recognition.engines.torch.optimisers import AdamWOptimiser, Optimiser, SgdOptimiser
from recognition.engines.torch.placed import embed, fill, to_host
from recognition.engines.torch.processes.communicator import DistributedCommunicator
from recognition.engines.torch.processes.summing import Summing
from recognition.engines.torch.replica import Replica
from recognition.networks.graph import Graph
from recognition.optim.adamw import AdamW
from recognition.optim.factors import LearningRateFactors
from recognition.optim.loss_scale import LossScale
from recognition.processes.communicator import Communicator


class ReplicatedBackbone(Replicas):
    """Implements :class:`recognition.engines.interface.Backbone` with a network a device and one optimiser state for
    all of them.

    Batch statistics are those of a replica's own images, as in the legacy code; a checkpoint gets the mean of the
    moving statistics of all replicas of all processes. So ``embed``, ``parameters`` and ``state`` are collective: all
    processes call them together.
    """

    to_host, fill = staticmethod(to_host), staticmethod(fill)

    def __init__(self, graph: Graph, parameters: Arrays, auxiliary: Arrays, devices: Sequence[torch.device],
                 batch_size: int, image_shape: tuple[int, int, int], communicator: Communicator, *, mu: float,
                 wd: float, seed: int = 0, rates: Callable[[Sequence[str]], LearningRateFactors] = LearningRateFactors,
                 loss_scale: LossScale | None = None, adamw: AdamW | None = None, leaves_out: bool = False,
                 low: torch.dtype | None = None, recompute: bool = False) -> None:
        """:param batch_size: images a device; ``image_shape``: (3, H, W).
        :param rates: the factors of the learning rate, made for the names of the parameters.
        :param loss_scale: for float16; steps whose gradients overflow must then be left out.
        :param adamw: AdamW in place of SGD; ``mu`` is for SGD alone.
        :param leaves_out: whether :meth:`leave_out` may be called, for which moving statistics are copied each step.
        :param low: the numbers of 16 bits of heavy layers; None for float32.
        :param recompute: activations are computed again to save memory.
        """
        self.batch_size, self.communicator = batch_size, communicator
        self.seed = seed
        self.names = sorted(parameters)
        self._rates, self.loss_scale = rates(self.names), loss_scale
        self._keeps_statistics = leaves_out or loss_scale is not None
        self._backward_order = [name for name in reversed(graph.list_arguments()) if name in parameters]
        self.replicas = [Replica(graph, parameters, auxiliary, device, low, image_shape, recompute)
                         for device in devices]
        # With one device a process, gradients are summed over the processes while the backward pass goes on.
        alone = len(devices) == 1 and isinstance(communicator, DistributedCommunicator)
        self._early = Summing(communicator) if alone else None
        self.replicas[0].ready = self._early.add if self._early else None
        arguments = self.replicas[0].arguments
        self._optimiser: Optimiser = (AdamWOptimiser(arguments, self.names, adamw, wd) if adamw else
                                      SgdOptimiser(arguments, self.names, mu, wd))
        self._steps = 0

    def forward(self, images: np.ndarray) -> np.ndarray:
        # Dropout's masks are a function of the seed and the step, so that a resumed run draws the same.
        stream = np.random.SeedSequence([self.seed, self._steps, self.communicator.rank])
        seeds = stream.generate_state(len(self.replicas), np.uint64)
        queued = []
        for replica, part, seed in zip(self.replicas, self._parts(images), seeds):
            if self._keeps_statistics:
                replica.keep_statistics()
            queued.append(replica.forward(part, int(seed)))
        return np.concatenate([features.cpu().numpy() for features in queued])

    def _reduce_gradients(self) -> None:
        """Sum the gradients over replicas and processes."""
        if self._early:
            return self._early.finish()
        sums = self._ordered(self.replicas[0].gradients)
        for replica in self.replicas[1:]:
            torch._foreach_add_(sums, [gradient.to(self.replicas[0].device)
                                       for gradient in self._ordered(replica.gradients)])
        self.communicator.sum_in_place("gradient", sums)

    def _ordered(self, tensors: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        return [tensors[name] for name in self._backward_order]

    def finite(self) -> bool:
        return all_finite(list(self.replicas[0].gradients.values())) and all(
            all_finite(list(replica.auxiliary.values())) for replica in self.replicas)

    def sound(self) -> bool:
        return all_usable(list(self._parameters().values())) and all(
            all_finite(list(tensors.values()))
            for tensors in (*self._optimiser.moments.values(), *(replica.auxiliary for replica in self.replicas)))

    def _parameters(self) -> dict[str, torch.Tensor]:
        return {name: self.replicas[0].arguments[name] for name in self.names}

    def gradient_norm(self) -> float:
        moving = norms([self.replicas[0].gradients[name] for name in self._rates(self._steps)])
        return float(np.sqrt(np.square(moving).sum())) / self._scale

    def step(self, lr: float) -> None:
        first_replica, rates = self.replicas[0], self._rates(self._steps)
        self._steps += 1
        self._optimiser(first_replica.arguments, first_replica.gradients,
                        {name: lr * rate for name, rate in rates.items()}, 1 / self._scale)
        with torch.no_grad():
            for replica in self.replicas[1:]:
                for name in rates:
                    replica.arguments[name].copy_(first_replica.arguments[name])
        if self.loss_scale:
            self.loss_scale.count(finite=True)

    def norms(self) -> tuple[dict[str, float], dict[str, float]]:
        first_replica = self.replicas[0]
        of_parameters, of_gradients = (
            dict(zip(self.names, norms([tensors[name] for name in self.names]).tolist())) if tensors else {}
            for tensors in (first_replica.arguments, first_replica.gradients))
        return of_parameters, of_gradients

    def _inferred(self, images: np.ndarray) -> np.ndarray:
        return np.concatenate(embed(self.replicas, self.batch_size, images))

    def _own_statistics(self) -> list[Arrays]:
        return [to_host(replica.auxiliary) for replica in self.replicas]

    def difference(self, state: BackboneState) -> str:
        """The first name or shape by which a state differs from this network; '' if none does."""
        parameters, auxiliary = ({name: tuple(tensor.shape) for name, tensor in tensors.items()}
                                 for tensors in (self._parameters(), self.replicas[0].auxiliary))
        return difference(state, parameters, list(self._optimiser.moments), auxiliary)

