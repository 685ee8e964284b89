# SPDX-License-Identifier: Apache-2.0
"""Choice of what computes: an engine by its name, and the holder of a shard of class centres.

An engine is imported when it is chosen, and not before.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from recognition.config.devices import Device, require_bfloat16
from recognition.config.options import Config, check
from recognition.engines.interface import Computing, Engine
from recognition.errors import UserError
from recognition.head.shard import Shard
from recognition.networks import build_symbol
from recognition.networks.graph import Graph


def choose_engine(name: str = "auto") -> Engine:
    """The engine that the option ``engine`` names; MXNet for ``auto``.

    :raises UserError: if there is no such engine, or it cannot be imported.
    """
    if check("engine", name, "engine") == "torch":
        from recognition.engines.torch.engine import TorchEngine

        return TorchEngine()
    from recognition.engines.mxnet.engine import MxnetEngine

    return MxnetEngine()


def build_network(config: Config) -> Graph:
    """The network of a configuration. A file of the user's own is code, for the engine of the run.

    :raises UserError: as :func:`recognition.networks.build_symbol`.
    """
    return build_symbol(config, lambda options, path: choose_engine(config.engine).own_network(options, path))


def computing_of(config: Config) -> Computing:
    """The devices, batch and numbers with which a configuration wants the backbone computed."""
    return Computing(config.devices, config.per_batch_size, config.in_16_bits, config.fp16_scale, config.memonger)


def maps_in_training(graph: Graph, computing: Computing, image_shape: tuple[int, int, int]) -> int:
    """Bytes that MXNet sets aside on a device for maps and the gradients between layers. Needs no MXNet."""
    from recognition.engines.mxnet.activations import maps_memory
    from recognition.engines.mxnet.passes.choose import bound_form
    from recognition.engines.mxnet.passes.winograd import held_copies

    bound = bound_form(graph, computing, image_shape)
    return sum(bytes_of(bound, image_shape, computing.batch_size) for bytes_of in (maps_memory, held_copies))


def make_shard(engine: Engine, device: Device, classes: tuple[int, int], dim: int, on_host: bool, sampled: bool,
               **options: Any) -> Shard:
    """A shard of the class centres ``start .. stop - 1``, on whatever computes fastest with them.

    On CPUs that is :mod:`recognition.engines.cpu`, whatever the engine. With W in the host's memory (``on_host``) the
    rows of a sample travel to the device. Without a sample all of W would travel in each step, so the host computes.
    """
    if device[0] == "cpu" or (on_host and not sampled):
        from recognition.engines.cpu.shard import CpuShard

        return CpuShard(*classes, dim, **options)
    return engine.shard(device, classes, dim, on_host, **options)


def check_bfloat16(flag: str, devices: Sequence[Device]) -> None:
    """Check that a checkpoint's network can run in bfloat16 on the devices.

    :raises UserError: about ``flag``, if it cannot.
    """
    if devices[0][0] == "gpu":
        raise UserError(f"{flag}: found GPUs, expected CPUs that have it; leave it out")
    require_bfloat16(flag)
