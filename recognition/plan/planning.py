# SPDX-License-Identifier: Apache-2.0
"""Plan of a run before it is started: memory, bytes sent and operations of a device, for each method to train."""
from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Callable, NamedTuple

from recognition.config.options import Config
from recognition.engines.configured import build_network, computing_of
from recognition.engines.maps import maps_in_training
from recognition.engines.shards import shard_kind, why_no_low_products
from recognition.networks.dropped import as_trained
from recognition.networks.flops import count_flops
from recognition.networks.graph import Graph
from recognition.networks.recompute import computed_again
from recognition.networks.shapes import infer_shapes
from recognition.plan.head_costs import (
    FLOAT,
    HALF,
    MOMENTS,
    SHARDS,
    HeadSize,
    Memory,
    head_operations,
    old_memory,
    placed_memory,
    selected_classes,
    sent_data_parallel,
    sent_parallel,
)

MOST_DEVICES = 4096  # the largest number that is tried
MOST_CLASSES = 10**12


@dataclass(frozen=True)
class BackboneCost:
    """Costs of one replica of the backbone."""

    parameters: int  # numbers
    states: int  # numbers in the moving statistics
    maps: int  # bytes of maps and of the gradients between layers, for its images
    images: int  # bytes
    operations: int  # matrix products of its images in a step: forward, twice that backward, and what runs again

    def memory(self, moments: int) -> Memory:
        return {"backbone": ((2 + moments) * self.parameters + self.states) * FLOAT, "maps": self.maps,
                "images": self.images}


def backbone_cost(config: Config, graph: Graph | None = None, engine: str = "mxnet") -> BackboneCost:
    """Costs of a configuration's network on its first device, ``per_batch_size`` images at a time.

    :param graph: the network, if it has been built; ``engine``: the name of what computes it.
    """
    height, width, channels = config.image_shape
    image, batch = (channels, height, width), config.per_batch_size
    graph = graph or build_network(config)
    flops, again = count_flops(graph, image), 0
    if config.memonger:
        again = count_flops(graph, image, computed_again(graph, image)).products
    states = infer_shapes(graph, image).auxiliary.values()
    pixels = batch * channels * height * width
    maps = maps_in_training(as_trained(graph, config), computing_of(config), image, engine)
    return BackboneCost(flops.parameters, sum(shape[0] for shape in states), maps, pixels * (FLOAT + 1),
                        config.device_batch * (3 * flops.products + again)
                        + (config.device_batch - batch) * flops.products)


@dataclass(frozen=True)
class PlannedRun:
    """The run that is planned; every device is a process of its own."""

    classes: int
    devices: int
    images: int  # a device and step
    dim: int
    backbone: BackboneCost
    kind: str = "gpu"  # of the devices, or "cpu"
    sub_centres: int = 1
    ratio: float = 0.1  # of the sampled method
    optimizer: str = "sgd"
    centres_on: str = "device"  # or "cpu", "disk": where W is, where the classes are cut
    number_bytes: int = FLOAT  # of W and its moments
    shard: str = ""  # what computes with W, of SHARDS; as the kind of device if not given
    filtered: bool = False  # conflicting negatives are left out
    gradient_bytes: int = FLOAT  # of a number of the backbone's gradient on its way between processes
    average: bool = False  # whether there is a moving average of the backbone's weights
    reserve: int = 0  # bytes that are not planned: libraries, workspaces

    def head(self, ratio: float = 1.0) -> HeadSize:
        """The largest shard of W cut over all devices."""
        classes, batch = -(-self.classes // self.devices), self.images * self.devices
        return HeadSize(classes, selected_classes(classes, ratio, batch, self.devices) if ratio < 1 else classes, batch,
                        self.dim, self.sub_centres, MOMENTS[self.optimizer], self.filtered, self.number_bytes)

    def whole_head(self) -> HeadSize:
        """All of W on each device, for its own images."""
        return HeadSize(self.classes, self.classes, self.images, self.dim, self.sub_centres, MOMENTS[self.optimizer],
                        self.filtered, self.number_bytes)


def shard_of(config: Config, engine: str) -> str:
    """The kind of what computes with the class centres of a configuration on the device, a key of SHARDS. GPUs are
    assumed to be new enough for Triton's kernels."""
    why_not = why_no_low_products(config.emb_size, config.centers_on != "device", config.loss_name != "softmax")
    return shard_kind(engine, config.devices[0][0], config.centers_numbers != "float32",
                      kernels=config.low_products and not why_not)


def planned_run(config: Config, classes: int, devices: int, backbone: BackboneCost, reserve: int = 0,
                engine: str = "mxnet") -> PlannedRun:
    """The run of a configuration with so many classes on so many devices, all of the kind of its first."""
    return PlannedRun(classes, devices, config.device_batch, config.emb_size, backbone, kind=config.devices[0][0],
                      sub_centres=config.loss_K, ratio=config.sample_ratio, optimizer=config.optimizer,
                      centres_on=config.centers_on, shard=shard_of(config, engine), reserve=reserve,
                      number_bytes=FLOAT if config.centers_numbers == "float32" else HALF,
                      gradient_bytes=FLOAT if config.gradient_numbers == "float32" else HALF,
                      filtered=config.interclass_filtering_threshold > 0, average=config.ema > 0)


class Cost(NamedTuple):
    """Costs of one device."""

    memory: Memory  # bytes by what they are for
    sent: int  # bytes in a step
    head_operations: int  # of matrix products in a step
    backbone_operations: int
    host: int = 0  # bytes in the memory of its host
    disk: int = 0  # bytes on a disk of its host

    @property
    def total(self) -> int:
        return sum(self.memory.values())


class Method(NamedTuple):
    """A method to train, and its costs for a device."""

    title: str
    command: str
    cost: Callable[[PlannedRun], Cost]


def _cost(run: PlannedRun, size: HeadSize, memory: Memory, sent: int, host: int = 0, disk: int = 0) -> Cost:
    backbone = run.backbone
    memory = {**memory, **backbone.memory(size.moments + run.average), "set aside": run.reserve}
    return Cost(memory, sent, head_operations(size), backbone.operations, host, disk)


def _sent_with_all(run: PlannedRun) -> int:
    return sent_data_parallel(run.devices, run.images, run.whole_head(), _travelling(run))


def _travelling(run: PlannedRun) -> int:
    """Numbers of float32 that take as many bytes as the backbone's gradients on their way."""
    return run.backbone.parameters * run.gradient_bytes // FLOAT


def _old(run: PlannedRun) -> Cost:
    size = dataclasses.replace(run.whole_head(), number_bytes=FLOAT)
    return _cost(run, size, old_memory(size), _sent_with_all(run))


def _data_parallel(run: PlannedRun) -> Cost:
    size = run.whole_head()
    return _cost(run, size, SHARDS[run.shard or run.kind](size), _sent_with_all(run))


def _parallel(run: PlannedRun, ratio: float = 1.0) -> Cost:
    size = run.head(ratio)
    sent = sent_parallel(run.devices, run.images, run.dim, _travelling(run))
    placed = placed_memory(size, run.shard or run.kind, run.kind, run.centres_on)
    return _cost(run, size, placed.device, sent, placed.host, placed.disk)


METHODS = {
    "old": Method("public recipe", "data parallel", _old),
    "data_parallel": Method("data parallel", "train.py", _data_parallel),
    "parallel": Method("on x and W", "train_parall.py", _parallel),
    "sampled": Method("sampled", "--sample-ratio", lambda run: _parallel(run, run.ratio)),
}


def most_classes(method: Method, run: PlannedRun, memory: int) -> int | None:
    """The largest number of classes for which a device needs at most ``memory`` bytes; 0 if one class needs more, None
    if the devices hold nothing that grows with the number."""

    def fits(classes: int) -> bool:
        return method.cost(dataclasses.replace(run, classes=classes)).total <= memory

    if fits(MOST_CLASSES):
        return None
    low, high = 0, MOST_CLASSES
    while high - low > 1:  # low fits, or is 0; high does not
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def fewest_devices(method: Method, run: PlannedRun, memory: int) -> int | None:
    """The smallest number of devices of ``memory`` bytes each, with as many images a device; None if none will do.

    More devices do not always help: each then has fewer classes but sees the features of more images.
    """
    return next((devices for devices in range(1, MOST_DEVICES + 1)
                 if method.cost(dataclasses.replace(run, devices=devices)).total <= memory), None)
