# SPDX-License-Identifier: Apache-2.0
"""The backbone on every device of this process. The replicas of all processes see different images and take the same
step."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from recognition.engines.interface import Arrays, Updating
from recognition.engines.numbers import raised_to_travel
from recognition.engines.replicas import Replicas
from recognition.engines.torch.finite import all_finite, all_usable, finite_norms, norms
from recognition.engines.torch.graphs.uploads import pinned
from recognition.engines.torch.imports import torch
from recognition.engines.torch.optimisers import AdamWOptimiser, SgdOptimiser
from recognition.engines.torch.placed import add, blend, copied, embed, fill, to_host
from recognition.engines.torch.processes.communicator import DistributedCommunicator
from recognition.engines.torch.processes.summing import Summing
from recognition.engines.torch.replica import Replica
from recognition.networks.graph import Graph
from recognition.optim.loss_scale import LossScale
from recognition.processes.communicator import Communicator


class ReplicatedBackbone(Replicas):
    """Implements :class:`recognition.engines.interface.Backbone` with a network a device."""

    sgd, adamw = SgdOptimiser, AdamWOptimiser
    inferred, to_host, fill = staticmethod(embed), staticmethod(to_host), staticmethod(fill)
    copied, add, blend = staticmethod(copied), staticmethod(add), staticmethod(blend)
    all_finite, all_usable, norms_of = staticmethod(all_finite), staticmethod(all_usable), staticmethod(norms)

    def __init__(self, graph: Graph, parameters: Arrays, auxiliary: Arrays, devices: Sequence[torch.device],
                 batch_size: int, image_shape: tuple[int, int, int], communicator: Communicator, *,
                 updating: Updating, loss_scale: LossScale | None = None, low: torch.dtype | None = None,
                 recompute: bool = False, keep_features: bool = False, fused: bool = False) -> None:
        """:param batch_size: images a device; ``image_shape``: (3, H, W).
        :param loss_scale: for float16; steps whose gradients overflow must then be left out.
        :param low: the numbers of 16 bits of heavy layers; None for float32.
        :param recompute: activations are computed again to save memory.
        :param keep_features: features stay on the only device.
        :param fused: batch norms are Triton's kernels in training and 16 bits, and so is SGD.
        """
        if fused:
            from recognition.engines.torch.triton.sgd import FusedSgd, works

            self.sgd = FusedSgd if works(devices[0]) else SgdOptimiser
        replicas = [Replica(graph, parameters, auxiliary, device, low, image_shape, recompute, fused)
                    for device in devices]
        super().__init__(graph, replicas, batch_size, communicator, loss_scale, updating)
        self._keep_features = keep_features
        self._known: dict[str, float] = {}  # the norms of gradients that the check of the step has fetched
        # With one device a process, gradients are summed over the processes while the backward pass goes on, but not
        # those of several micro-batches, which are whole only after the last one.
        alone = len(devices) * self._micro_batches == 1 and isinstance(communicator, DistributedCommunicator)
        sent = updating.gradient_numbers
        self._summing = Summing(communicator, low=None if sent == "float32" else getattr(torch, sent),
                                raised=raised_to_travel(sent, loss_scale))
        self._early = self._summing if alone else None
        replicas[0].ready = self._early.add if self._early else None

    def buffer(self, shape: tuple[int, ...]) -> np.ndarray:
        return pinned(shape) if self.replicas[0].device.type == "cuda" else super().buffer(shape)

    def coming(self, images: np.ndarray) -> None:
        """Queue the copies to the GPUs; not those of a step of several micro-batches, which travel one by one."""
        for replica, part in zip(self.replicas, self._parts(images) if self._micro_batches == 1 else ()):
            if replica.uploads:
                replica.uploads.begin(part)

    def _features(self, images: np.ndarray, place: int) -> Any:
        seeds = self._dropout_stream(place).generate_state(len(self.replicas), np.uint64)
        queued = [replica.forward(part, int(seed))
                  for replica, part, seed in zip(self.replicas, self._parts(images), seeds)]
        return queued[0] if self._keep_features else np.concatenate([features.cpu().numpy() for features in queued])

    def finite(self) -> bool:
        gradients = self.replicas[0].gradients
        found = finite_norms([*gradients.values(), *(tensor for part in self._statistics for tensor in part.values())])
        self._known = {} if found is None else dict(zip(gradients, found.tolist()))
        return found is not None

    def _norms_of_gradients(self, names: Sequence[str]) -> np.ndarray:
        return np.array([self._known[name] for name in names]) if self._known else super()._norms_of_gradients(names)

    def _reduce_gradients(self) -> None:
        self._known = {}
        if self._early:
            return self._early.finish()
        sums = self._ordered(self.replicas[0].gradients)
        for replica in self.replicas[1:]:
            torch._foreach_add_(sums, [gradient.to(self.replicas[0].device)
                                       for gradient in self._ordered(replica.gradients)])
        if self.communicator.size > 1:
            for tensor in sums:
                self._summing.add(tensor)
            self._summing.finish()

    def _ordered(self, tensors: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        return [tensors[name] for name in self._backward_order]

    @torch.no_grad()
    def _copy_parameters(self, names: Iterable[str]) -> None:
        for replica in self.replicas[1:]:
            for name in names:
                replica.arguments[name].copy_(self.replicas[0].arguments[name])
