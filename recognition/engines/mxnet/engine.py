# SPDX-License-Identifier: Apache-2.0
"""MXNet as an :class:`recognition.engines.interface.Engine`."""
from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from recognition.config.devices import Device, on_gpus
from recognition.engines.interface import Arrays, Computing, Updating
from recognition.engines.mxnet.backbone import ReplicatedBackbone
from recognition.engines.mxnet.embedder import Embedder
from recognition.engines.mxnet.imports import check_gpu, mx
from recognition.engines.mxnet.own_network import own_symbol
from recognition.engines.mxnet.passes.choose import form_to_train
from recognition.engines.mxnet.processes.choose import make_communicator
from recognition.engines.mxnet.profiler import MxnetProfiler
from recognition.engines.mxnet.shard import MxnetShard
from recognition.engines.numbers import make_loss_scale
from recognition.errors import UserError
from recognition.networks.graph import Graph
from recognition.processes.communicator import Communicator


class MxnetEngine:
    """MXNet 1.9 on CPUs, and on the GPUs that its wheels hold code for."""

    name = "mxnet"
    communicator, own_network, profiler = staticmethod(make_communicator), staticmethod(own_symbol), MxnetProfiler

    def check_devices(self, devices: Sequence[Device]) -> None:
        for kind, index in devices:
            if kind == "gpu":
                check_gpu(index)

    def free_memory(self, device: Device) -> int:
        return int(mx.context.gpu_memory_info(device[1])[0])

    def has_bfloat16(self, devices: Sequence[Device]) -> bool:
        return not on_gpus(devices)

    def deterministic(self, devices: Sequence[Device]) -> AbstractContextManager[None]:
        if on_gpus(devices):
            raise UserError("deterministic: found it with MXNet on GPUs, whose sums come in any order; expected CPUs, "
                            "which always give the same bits, or --engine torch")
        return nullcontext()

    def backbone(self, graph: Graph, start: tuple[Arrays, Arrays], image_shape: tuple[int, int, int],
                 computing: Computing, updating: Updating, communicator: Communicator) -> ReplicatedBackbone:
        return ReplicatedBackbone(form_to_train(graph, computing, image_shape), *start,
                                  [mx.Context(*device) for device in computing.devices], computing.batch_size,
                                  image_shape, communicator, loss_scale=make_loss_scale(computing), updating=updating)

    def shard(self, device: Device, classes: tuple[int, int], dim: int, on_host: bool, low_products: bool = False,
              **options: Any) -> MxnetShard:
        return MxnetShard(mx.Context(*device), *classes, dim, on_host=on_host, **options)

    def embedder(self, checkpoint: tuple[str, int], devices: Sequence[Device], batch_size: int,
                 image_shape: tuple[int, int, int], bfloat16: bool = False) -> Embedder:
        self.check_devices(devices)
        return Embedder(*checkpoint, devices, batch_size, image_shape, bfloat16)
