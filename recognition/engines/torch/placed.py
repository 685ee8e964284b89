# SPDX-License-Identifier: Apache-2.0
"""A network on one device, in the numbers that it computes with, and inference by the networks of several devices."""
from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from recognition.config.devices import Device, local_place, on_gpus, processors
from recognition.engines.interface import Arrays
from recognition.engines.torch.imports import torch
from recognition.engines.torch.network import Network
from recognition.networks.graph import Graph


class Placed:
    """A network on one device. Parameters and statistics are float32, and so are its features."""

    def __init__(self, graph: Graph, parameters: Arrays, auxiliary: Arrays, device: torch.device,
                 low: torch.dtype | None = None, **options: Any) -> None:
        """:param low: the numbers of 16 bits that heavy layers compute with; None for float32.
        :param options: those of :class:`recognition.engines.torch.network.Network`.
        """
        self.device, self._low = device, low
        self.network = Network(graph, parameters, auxiliary, device, **options)
        if device.type == "cuda":
            lay_out_as_maps(self.network.arguments)

    def features(self, images: np.ndarray, training: bool = False,
                 generator: torch.Generator | None = None) -> torch.Tensor:
        """The features of images, uint8 (n, 3, H, W): float32 (n, D) on the device, which may still compute them."""
        return self.features_there(self.there(images), training, generator)

    def there(self, images: np.ndarray) -> torch.Tensor:
        """The images on the device."""
        return torch.from_numpy(np.require(images, requirements=["C", "W"])).to(self.device)

    def features_there(self, images: torch.Tensor, training: bool = False,
                       generator: torch.Generator | None = None) -> torch.Tensor:
        """The features of images that are on the device, without waiting for anything."""
        pixels = images.to(torch.float32, memory_format=torch.channels_last)
        with torch.autocast(self.device.type, dtype=self._low, enabled=self._low is not None,
                            cache_enabled=self.device.type != "cuda"):  # a recorded pass must cast each time
            found = self.network(pixels, training=training, generator=generator)
        return found.float()

    def give_back(self) -> None:
        """Give back memory that can be taken again."""


def lay_out_as_maps(arguments: dict[str, torch.Tensor]) -> None:
    """Put parameters of four axes into memory with the channels last, as maps are on GPUs; PyTorch would do so in each
    pass, and turn their gradients back."""
    for name, tensor in arguments.items():
        if tensor.dim() == 4:
            arguments[name] = tensor.detach().to(memory_format=torch.channels_last).requires_grad_()


def give_threads(devices: Sequence[Device], environ: Mapping[str, str] = os.environ) -> None:
    """Let PyTorch use the threads of all CPU devices at once, as it computes one device after the other.

    ``share_processors`` has given each its share of the processors; one device has it already.
    """
    own = environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if len(devices) > 1 and not on_gpus(devices) and own.isdecimal():
        most = max(1, processors() // local_place(environ)[1])
        torch.set_num_threads(max(1, min(most, len(devices) * int(own))))


def torch_device(device: Device) -> torch.device:
    kind, index = device
    return torch.device("cuda", index) if kind == "gpu" else torch.device("cpu")


@torch.inference_mode()
def embed(networks: Sequence[Placed], batch_size: int, images: np.ndarray) -> list[np.ndarray]:
    """Features of the networks, ``batch_size`` images each at a time, in the order of the images.

    Everything is queued before the first result is read, so that no device waits for another. Where a device has too
    little memory, networks give back what they can make again.
    """
    try:
        return _embedded(networks, batch_size, images)
    except torch.OutOfMemoryError:
        for network in networks:
            network.give_back()
    torch.cuda.empty_cache()  # behind the error, whose traceback holds maps
    return _embedded(networks, batch_size, images)


def _embedded(networks: Sequence[Placed], batch_size: int, images: np.ndarray) -> list[np.ndarray]:
    lows = range(0, len(images), batch_size)
    queued = [networks[place % len(networks)].features(images[low : low + batch_size])
              for place, low in enumerate(lows)]
    return [features.cpu().numpy() for features in queued]


def to_host(tensors: Mapping[str, torch.Tensor], names: Sequence[str] = ()) -> Arrays:
    """Copies of all tensors, or of those named, as NumPy arrays."""
    return {name: np.array(tensors[name].detach().cpu().numpy(), order="C") for name in names or tensors}


def copied(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies of all tensors, on their devices."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@torch.no_grad()
def add(tensors: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor]) -> None:
    """Do ``a += b`` for all tensors."""
    torch._foreach_add_(list(tensors.values()), [others[name] for name in tensors])


@torch.no_grad()
def blend(averages: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor], share: float) -> None:
    """Do ``a += share (w - a)`` for all tensors."""
    if averages:  # a network may have no statistics
        torch._foreach_lerp_(list(averages.values()), [tensors[name] for name in averages], share)


@torch.no_grad()
def fill(tensors: Mapping[str, torch.Tensor], values: Mapping[str, np.ndarray]) -> None:
    """Copy values over the tensors of their names."""
    for name, value in values.items():
        tensors[name].copy_(torch.from_numpy(np.require(value, np.float32, ["C", "W"])))
