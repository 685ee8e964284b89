# SPDX-License-Identifier: Apache-2.0
"""PyTorch as an :class:`recognition.engines.interface.Engine`."""
from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from recognition.config.devices import Device, on_gpus
from recognition.engines.interface import Arrays, Computing, Updating
from recognition.engines.numbers import make_loss_scale, require_numbers
from recognition.engines.torch.backbone import ReplicatedBackbone
from recognition.engines.torch.deterministic import deterministic
from recognition.engines.torch.embedder import Embedder
from recognition.engines.torch.imports import torch
from recognition.engines.torch.placed import give_threads, torch_device
from recognition.engines.torch.processes.choose import make_communicator
from recognition.engines.torch.profiler import TorchProfiler
from recognition.errors import UserError
from recognition.head.shard import Shard
from recognition.networks.graph import Graph
from recognition.processes.communicator import Communicator


class TorchEngine:
    """PyTorch on CPUs, and on the GPUs that the installed one holds code for."""

    name = "torch"
    communicator, profiler = staticmethod(make_communicator), TorchProfiler

    def check_devices(self, devices: Sequence[Device]) -> None:
        for kind, index in devices:
            if kind == "gpu":
                _check_gpu(index)

    def free_memory(self, device: Device) -> int:
        return torch.cuda.mem_get_info(torch_device(device))[0]

    def has_bfloat16(self, devices: Sequence[Device]) -> bool:
        return True

    def deterministic(self, devices: Sequence[Device]) -> AbstractContextManager[None]:
        return deterministic() if on_gpus(devices) else nullcontext()

    def own_network(self, config: Any, path: Path | None) -> Graph:
        from recognition.engines.torch.modules.own_network import own_network
        from recognition.engines.torch.modules.timm_model import timm_graph

        return own_network(config, path) if path else timm_graph(config)

    def backbone(self, graph: Graph, start: tuple[Arrays, Arrays], image_shape: tuple[int, int, int],
                 computing: Computing, updating: Updating, communicator: Communicator) -> ReplicatedBackbone:
        from recognition.engines.torch.triton.batch_norm.choice import why_not

        require_numbers(computing)
        give_threads(computing.devices)
        low = (torch.float16 if on_gpus(computing.devices) else torch.bfloat16) if computing.in_16_bits else None
        devices = [torch_device(device) for device in computing.devices]
        kernels = low is not None and on_gpus(computing.devices)
        why = "; ".join(sorted({why_not(device) for device in devices} - {""})) if kernels else ""
        made = ReplicatedBackbone(graph, *start, devices, computing.batch_size, image_shape, communicator, low=low,
                                  recompute=computing.memonger, loss_scale=make_loss_scale(computing),
                                  keep_features=computing.keep_features and on_gpus(computing.devices),
                                  fused=kernels and not why, updating=updating)
        if kernels:
            made.startup_line = (f"backbone: PyTorch's batch norm rather than Triton's kernels: {why}" if why else
                          "backbone: Triton's kernels for batch norm with PReLU or a sum")
        return made

    def shard(self, device: Device, classes: tuple[int, int], dim: int, on_host: bool, low_products: bool = False,
              **options: Any) -> Shard:
        from recognition.engines.torch.shard import TorchShard
        from recognition.engines.torch.triton.choice import why_not

        place = torch_device(device)
        why = why_not(place, dim, on_host, options["normalised"]) if low_products else ""
        if low_products and not why:
            from recognition.engines.torch.triton.shard import TritonShard

            return TritonShard(place, *classes, dim, **options)
        shard = TorchShard(place, *classes, dim, on_host=on_host, **options)
        if why:
            line = f"head: float32 rather than Triton's kernels of 16 bits: {why}"
            shard.startup_line = "; ".join(filter(None, (line, shard.startup_line)))
        return shard

    def embedder(self, checkpoint: tuple[str, int], devices: Sequence[Device], batch_size: int,
                 image_shape: tuple[int, int, int], bfloat16: bool = False) -> Embedder:
        self.check_devices(devices)
        give_threads(devices)
        return Embedder(*checkpoint, devices, batch_size, image_shape, bfloat16)


def _check_gpu(index: int) -> None:
    """Raise a UserError unless PyTorch can compute on the visible GPU ``index``."""
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index < found:
        return
    why = ("the installed PyTorch is for the CPU only" if not (torch.version.cuda or torch.version.hip) else
           f"PyTorch {torch.__version__} finds {found} GPUs, expected it among them; does the driver work, and does "
           "CUDA_VISIBLE_DEVICES name it?")
    raise UserError(f"gpu {index}: {why}")
