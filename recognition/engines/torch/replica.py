# SPDX-License-Identifier: Apache-2.0
"""A backbone on one device, in training."""
from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Callable
from weakref import ref

import numpy as np

from recognition.engines.interface import Arrays
from recognition.engines.torch.deterministic import fastest_convolutions
from recognition.engines.torch.graphs.graphed import GraphedPass, can_record
from recognition.engines.torch.graphs.uploads import Uploads
from recognition.engines.torch.imports import torch
from recognition.engines.torch.placed import Placed
from recognition.networks.graph import Graph

_logger = logging.getLogger(__name__)


class Replica(Placed):
    """A network whose parameters all get gradients, and whose moving statistics can be put back.

    On a GPU the second pass of a shape is recorded as CUDA graphs, which compute that and all later ones of the shape;
    other shapes, and networks that cannot be recorded, are computed operator by operator, with the same bits.
    """

    def __init__(self, graph: Graph, parameters: Arrays, auxiliary: Arrays, device: torch.device,
                 low: torch.dtype | None, image_shape: tuple[int, int, int], recompute: bool,
                 fused: bool = False) -> None:
        """:param recompute: layers between a few kept maps are computed again in the backward pass.
        :param fused: batch norms are Triton's kernels in 16 bits.
        """
        super().__init__(graph, parameters, auxiliary, device, low, recompute=recompute, image_shape=image_shape,
                         fused=fused)
        self.arguments, self.auxiliary = self.network.arguments, self.network.auxiliary
        self.gradients: dict[str, torch.Tensor] = {}  # of the last backward pass
        # Called with each gradient as soon as it is there, or will be for what the current stream does after the call.
        self.ready: Callable[[torch.Tensor], None] | None = None
        self._announced: list[str] = []  # the order of these calls in the last pass of operators
        for name, tensor in self.arguments.items():
            tensor.register_post_accumulate_grad_hook(partial(_tell, ref(self), name))
        self._kept: list[torch.Tensor] = []
        self._output: torch.Tensor | None = None
        self._generator = torch.Generator(device)
        self._on_gpu, self.records = device.type == "cuda", can_record(device)  # whether a pass is to be recorded
        self.uploads = Uploads(device) if self.records else None
        self._streams = [torch.cuda.Stream(device) for _ in range(2 if self.records else 0)]  # of recorded passes
        self.recorded: GraphedPass | None = None
        self._replays = False  # whether the recorded pass is that of the last images
        self._shape: tuple[int, ...] = ()  # of the last images
        self._warm: tuple[int, ...] = ()  # shape of the last images that the operators made features and gradients of

    @torch.no_grad()
    def keep_statistics(self) -> None:
        """Copy the moving statistics, which the forward pass moves."""
        moving = list(self.auxiliary.values())
        self._kept = self._kept or [torch.empty_like(tensor) for tensor in moving]
        if moving:
            torch._foreach_copy_(self._kept, moving)

    @torch.no_grad()
    def restore_statistics(self) -> None:
        """Restore the statistics that :meth:`keep_statistics` copied."""
        if self._kept:
            torch._foreach_copy_(list(self.auxiliary.values()), self._kept)

    def forward(self, images: np.ndarray, seed: int) -> torch.Tensor:
        """Features of uint8 (n, 3, H, W) in training; ``seed`` is that of dropout's masks."""
        self._output = None  # its graph makes room for the new one
        if self.records and not self.recorded and images.shape == self._warm:
            self._record(images.shape)
        self._generator.manual_seed(seed)
        recorded = self.recorded if self.recorded and self.recorded.images.shape == images.shape else None
        self._shape, self._replays = images.shape, recorded is not None
        if recorded and self.uploads:
            self.gradients = {}  # their memory is used for maps
            self.uploads.into(recorded.images, images)
            return recorded.forward()
        with self._fastest():
            self._output = self.features_there(self._arrived(images), training=True, generator=self._generator)
        return self._output.detach()

    def _arrived(self, images: np.ndarray) -> torch.Tensor:
        if not self.uploads:
            return self.there(images)
        pixels = torch.empty(images.shape, dtype=torch.uint8, device=self.device)
        self.uploads.into(pixels, images)
        return pixels

    def backward(self, d_features: np.ndarray | torch.Tensor) -> None:
        """The gradients of all parameters from those of the last features, float32 (n, D)."""
        if self.recorded and self._replays:
            self.recorded.backward(d_features)
            self.gradients = self.recorded.gradients
            if self.ready:
                self.recorded.announce(self.ready, self._announced)  # in the operators' order, which others may have
            return
        output, self._output, self._announced = self._output, None, []
        assert output is not None, "a backward pass is behind a forward pass"
        self._drop_gradients()
        with self._fastest():
            # The same bits as from a gradient that is handed over, whose shape PyTorch compares with SymPy: 0.7 s once.
            along = (output * torch.as_tensor(d_features, device=self.device)).sum()
            torch.autograd.backward(along, inputs=list(self.arguments.values()))
        self.gradients = {name: torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
                          for name, tensor in self.arguments.items()}
        self._warm = self._shape

    def give_back(self) -> None:
        """Give back the maps of the recorded pass; the next step records it again."""
        self.recorded = None
        self._drop_gradients()

    def _drop_gradients(self) -> None:
        self.gradients = {}
        for tensor in self.arguments.values():
            tensor.grad = None

    def _announce(self, name: str) -> None:
        self._announced.append(name)
        if self.ready:
            self.ready(self.arguments[name].grad)

    def _fastest(self) -> AbstractContextManager[None]:
        return fastest_convolutions() if self._on_gpu else nullcontext()

    def _record(self, shape: tuple[int, ...]) -> None:
        """Record the pass, or say in a line why it cannot be, and then never try again."""
        self._drop_gradients()
        compute = partial(self.features_there, training=True, generator=self._generator)
        try:
            self.recorded = GraphedPass(compute, self.arguments, shape, self._generator, self._streams,
                                        with_moments=self.ready is not None and not torch.version.hip)
        except Exception as error:  # an operator's, the driver's, for want of memory: the run goes on without
            _logger.warning("backbone: computed operator by operator rather than by CUDA graphs: %s (%s)",
                            " ".join(str(error).split())[:200], type(error).__name__)
            self.records, self._generator = False, torch.Generator(self.device)  # the old one may expect a recording
        if not self.recorded and self._on_gpu:
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()


def _tell(replica: ref[Replica], name: str, _: torch.Tensor) -> None:
    """Tell a replica of the gradient of its argument ``name``. The argument must not hold the replica, whose memory
    would then wait for Python's search for cycles."""
    if owner := replica():
        owner._announce(name)
