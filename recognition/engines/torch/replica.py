# SPDX-License-Identifier: Apache-2.0
"""A backbone on one device, in training."""
from __future__ import annotations

from typing import Callable

import numpy as np

from recognition.engines.interface import Arrays
from recognition.engines.torch.imports import torch
from recognition.engines.torch.placed import Placed
from recognition.networks.graph import Graph


class Replica(Placed):
    """A network whose parameters all get gradients, and whose moving statistics can be put back."""

    def __init__(self, graph: Graph, parameters: Arrays, auxiliary: Arrays, device: torch.device,
                 low: torch.dtype | None, image_shape: tuple[int, int, int], recompute: bool) -> None:
        """:param recompute: layers between a few kept maps are computed again in the backward pass."""
        super().__init__(graph, parameters, auxiliary, device, low, recompute=recompute, image_shape=image_shape)
        self.arguments, self.auxiliary = self.network.arguments, self.network.auxiliary
        self.gradients: dict[str, torch.Tensor] = {}  # of the last backward pass
        self.ready: Callable[[torch.Tensor], None] | None = None  # called with each gradient as soon as it is there
        for tensor in self.arguments.values():
            tensor.register_post_accumulate_grad_hook(self._announce)
        self._kept: list[torch.Tensor] = []
        self._output: torch.Tensor | None = None
        self._generator = torch.Generator(device)

    def keep_statistics(self) -> None:
        """Copy the moving statistics, which the forward pass moves."""
        self._kept = [tensor.clone() for tensor in self.auxiliary.values()]

    @torch.no_grad()
    def restore_statistics(self) -> None:
        """Restore the statistics that :meth:`keep_statistics` copied."""
        for tensor, kept in zip(self.auxiliary.values(), self._kept):
            tensor.copy_(kept)

    def forward(self, images: np.ndarray, seed: int) -> torch.Tensor:
        """Features of uint8 (n, 3, H, W) in training; ``seed`` is that of dropout's masks."""
        self._output = None  # its graph makes room for the new one
        self._output = self.features(images, training=True, generator=self._generator.manual_seed(seed))
        return self._output.detach()

    def backward(self, d_features: np.ndarray) -> None:
        """The gradients of all parameters from those of the last features, float32 (n, D)."""
        output, self._output, self.gradients = self._output, None, {}
        wanted = list(self.arguments.values())
        assert output is not None, "a backward pass is behind a forward pass"
        for tensor in wanted:
            tensor.grad = None
        torch.autograd.backward(output, torch.from_numpy(d_features).to(self.device), inputs=wanted)
        self.gradients = {name: torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
                          for name, tensor in self.arguments.items()}

    def _announce(self, tensor: torch.Tensor) -> None:
        if self.ready:
            self.ready(tensor.grad)
