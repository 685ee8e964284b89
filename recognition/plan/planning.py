# SPDX-License-Identifier: Apache-2.0
"""What a run would take, before it is started: memory, bytes sent and operations of a device, for each way to train."""
from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Callable, NamedTuple

from recognition.config.options import Config
from recognition.engines.choose import build_network, computing_of, maps_in_training
from recognition.networks.flops import count_flops
from recognition.networks.recompute import computed_again
from recognition.networks.shapes import infer_shapes
from recognition.plan.head_costs import (
    FLOAT,
    MOMENTS,
    SHARDS,
    HeadSize,
    Memory,
    head_operations,
    host_memory,
    old_memory,
    selected_classes,
    sent_data_parallel,
    sent_parallel,
)

MOST_DEVICES = 4096  # that are tried
MOST_CLASSES = 10**12


@dataclass(frozen=True)
class BackboneCost:
    """Of one replica."""

    parameters: int  # numbers
    states: int  # numbers in the moving statistics
    maps: int  # bytes of maps and of the gradients between layers, for its images
    images: int  # bytes
    operations: int  # matrix products of its images in a step: forward, twice that backward, and what runs again

    def memory(self, moments: int) -> Memory:
        return {"backbone": ((2 + moments) * self.parameters + self.states) * FLOAT, "maps": self.maps,
                "images": self.images}


def backbone_cost(config: Config) -> BackboneCost:
    """Of the network of a configuration, for ``per_batch_size`` images on its first device."""
    height, width, channels = config.image_shape
    image, batch = (channels, height, width), config.per_batch_size
    graph = build_network(config)
    flops, again = count_flops(graph, image), 0
    if config.memonger:
        again = count_flops(graph, image, computed_again(graph, image)).products
    states = infer_shapes(graph, image).auxiliary.values()
    pixels = batch * channels * height * width
    maps = maps_in_training(graph, computing_of(config), image)
    return BackboneCost(flops.parameters, sum(shape[0] for shape in states), maps, pixels * (FLOAT + 1),
                        batch * (3 * flops.products + again))


@dataclass(frozen=True)
class Setting:
    """What is planned: every device is a process of its own."""

    classes: int
    devices: int
    images: int  # a device and step
    dim: int
    backbone: BackboneCost
    kind: str = "gpu"  # of the devices, or "cpu"
    sub_centres: int = 1
    ratio: float = 0.1  # of the sampled way
    optimizer: str = "sgd"
    on_host: bool = False  # W stays in host memory where the classes are cut
    filtered: bool = False  # conflicting negatives are left out
    reserve: int = 0  # bytes that are not planned: libraries, workspaces

    def head(self, ratio: float = 1.0) -> HeadSize:
        """The largest shard of W cut over all devices."""
        classes, batch = -(-self.classes // self.devices), self.images * self.devices
        return HeadSize(classes, selected_classes(classes, ratio, batch, self.devices) if ratio < 1 else classes, batch,
                        self.dim, self.sub_centres, MOMENTS[self.optimizer], self.filtered)

    def whole_head(self) -> HeadSize:
        """All of W on each device, for its own images."""
        return HeadSize(self.classes, self.classes, self.images, self.dim, self.sub_centres, MOMENTS[self.optimizer],
                        self.filtered)


class Cost(NamedTuple):
    """Of one device."""

    memory: Memory  # bytes by what they are for
    sent: int  # bytes in a step
    head_operations: int  # of matrix products in a step
    backbone_operations: int
    host: int = 0  # bytes in the memory of its host

    @property
    def total(self) -> int:
        return sum(self.memory.values())


class Way(NamedTuple):
    """A way to train, and what it costs a device."""

    title: str
    command: str
    cost: Callable[[Setting], Cost]


def _cost(setting: Setting, size: HeadSize, memory: Memory, sent: int, host: int = 0) -> Cost:
    backbone = setting.backbone
    memory = {**memory, **backbone.memory(size.moments), "set aside": setting.reserve}
    return Cost(memory, sent, head_operations(size), backbone.operations, host)


def _sent_with_all(setting: Setting) -> int:
    return sent_data_parallel(setting.devices, setting.images, setting.whole_head(), setting.backbone.parameters)


def _old(setting: Setting) -> Cost:
    size = setting.whole_head()
    return _cost(setting, size, old_memory(size), _sent_with_all(setting))


def _data_parallel(setting: Setting) -> Cost:
    size = setting.whole_head()
    return _cost(setting, size, SHARDS[setting.kind](size), _sent_with_all(setting))


def _parallel(setting: Setting, ratio: float = 1.0) -> Cost:
    size = setting.head(ratio)
    sent = sent_parallel(setting.devices, setting.images, setting.dim, setting.backbone.parameters)
    on_host = setting.on_host and setting.kind == "gpu"
    memory, host = host_memory(size) if on_host else (SHARDS[setting.kind](size), 0)
    return _cost(setting, size, memory, sent, host)


WAYS = {
    "old": Way("public recipe", "data parallel", _old),
    "data_parallel": Way("data parallel", "train.py", _data_parallel),
    "parallel": Way("on x and W", "train_parall.py", _parallel),
    "sampled": Way("sampled", "--sample-ratio", lambda setting: _parallel(setting, setting.ratio)),
}


def most_classes(way: Way, setting: Setting, memory: int) -> int | None:
    """The largest number of classes whose devices need at most ``memory`` bytes each; 0 if not even one does, None if
    the devices hold nothing that grows with it."""

    def fits(classes: int) -> bool:
        return way.cost(dataclasses.replace(setting, classes=classes)).total <= memory

    if fits(MOST_CLASSES):
        return None
    low, high = 0, MOST_CLASSES
    while high - low > 1:  # low fits, or is 0; high does not
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def fewest_devices(way: Way, setting: Setting, memory: int) -> int | None:
    """The smallest number of devices of ``memory`` bytes each, with as many images a device; None if none will do.

    More devices are not always a way out: each then has fewer classes but sees the features of more images.
    """
    return next((devices for devices in range(1, MOST_DEVICES + 1)
                 if way.cost(dataclasses.replace(setting, devices=devices)).total <= memory), None)
