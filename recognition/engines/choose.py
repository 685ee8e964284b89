# SPDX-License-Identifier: Apache-2.0
"""Choice of what computes: an engine by its name, and the holder of a shard of class centres.

An engine is imported when it is chosen, and not before.
"""
from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from recognition.config.devices import CPU, Device, on_gpus, processor_flags, require_bfloat16
from recognition.config.options import Config, check
from recognition.config.user_code import is_timm
from recognition.engines.interface import Computing, Engine
from recognition.errors import UserError
from recognition.head.shard import Shard
from recognition.networks import build_symbol, own_size
from recognition.networks.graph import Graph, rewrite

LIBRARIES = {"mxnet": "MXNet", "torch": "PyTorch"}  # by the names of engines, which are those of their modules
# Of the maps that PyTorch keeps, which are those of the graph (its own count for y1 and r50 is 4 and 8 % less). With
# it and 0.5 GB for libraries the plan is -14 to +25 % off what CPU processes held (y1, r50; 16 to 64 images).
TORCH_FACTOR = 1.2
KERNELS_FACTOR = 0.95  # on GPUs in 16 bits: maps are freed before the largest gradients come; 0.84 to 0.95 measured
AMX = "amx_bf16"  # a flag of processors that multiply tiles of bfloat16, which PyTorch's oneDNN uses and MXNet's not


class Choice(NamedTuple):
    """The name of an engine, and the line that says why it was chosen; '' where nothing was to be chosen."""

    name: str
    line: str = ""


def decide(name: str = "auto", devices: Sequence[Device] = CPU, in_16_bits: bool = False, network: str = "") -> Choice:
    """The engine that the option ``engine`` names. For ``auto`` what is installed and can use the devices: of two, on
    GPUs PyTorch, and on CPUs the one that was measured to train faster.

    :param in_16_bits: whether a backbone is to be trained in 16 bits; ``network``: its family.
    :raises UserError: if there is no such engine, or none is installed.
    """
    check("engine", name, "engine")
    if name != "auto":
        return _with_warning(Choice(name), devices, in_16_bits, network)
    if is_timm(network):
        return Choice("torch", "engine: PyTorch, which timm's models are for")
    found = [engine for engine in LIBRARIES if importlib.util.find_spec(engine)]
    if not found:
        raise UserError("engine: found neither MXNet nor PyTorch, expected one of them: `make demo` installs MXNet, "
                        "`ENGINE=torch make demo` PyTorch")
    if found == ["mxnet"]:
        return _with_warning(Choice("mxnet"), devices, in_16_bits, network)  # mostly without a line, as for years
    if found == ["torch"]:
        return Choice("torch", "engine: PyTorch; MXNet is not installed")
    name, why = _for_gpus(devices) if on_gpus(devices) else _for_cpus(in_16_bits, network)
    other = LIBRARIES["mxnet" if name == "torch" else "torch"]
    return Choice(name, f"engine: {LIBRARIES[name]} rather than {other}: {why}")


def _with_warning(choice: Choice, devices: Sequence[Device], in_16_bits: bool, network: str) -> Choice:
    """The choice with the line that 16 bits make this run slower, if they do: with MXNet, which leaves AMX off."""
    if choice.name == "mxnet" and in_16_bits and not on_gpus(devices) and _gains_by_amx(network):
        return choice._replace(line="engine: in 16 bits MXNet trains residual networks slower than in float32 on "
                               "processors with AMX (r50 5.1 to 7.7 images/s); --engine torch is faster (14.7)")
    return choice


def _gains_by_amx(network: str) -> bool:
    """True if PyTorch's 16 bits train the family ``network`` faster here: dense convolutions, on tiles of AMX."""
    return network == "fresnet" and AMX in processor_flags()


def _for_gpus(devices: Sequence[Device]) -> tuple[str, str]:
    """The engine for GPUs where both are installed, and why."""
    try:
        choose_engine("torch").check_devices(devices)
    except UserError as error:
        return "mxnet", f"PyTorch cannot use the devices ({error})"
    return "torch", "the devices are GPUs"


def _for_cpus(in_16_bits: bool, network: str) -> tuple[str, str]:
    """The engine for CPUs where both are installed, and why. Images a second in training, MXNet 1.9.1 with our passes
    and PyTorch 2.13, batch of 16 (r100: 8), two cores of an Intel processor with AMX and of an AMD Zen 3, which has no
    AVX-512 and no bfloat16:

    ====== ======== =========== ============== ========== ============
    preset numbers  Intel MXNet Intel PyTorch  AMD MXNet  AMD PyTorch
    ====== ======== =========== ============== ========== ============
    y1     float32  52.1        34.7           53.9       39.7
    y1     bfloat16 61.0        35.6
    r50    float32  7.7         5.6 to 6.4     4.1        3.6
    r50    bfloat16 5.1         14.7
    r100   float32                             2.2        2.0
    ====== ======== =========== ============== ========== ============

    So in bfloat16 dense convolutions, those of residual networks, go to the tiles of AMX. Commands that embed and do
    not train take the same engine: there PyTorch is 7 to 11 % faster on that AMD (``docs/records/performance.md``), but
    slower where Winograd's pass pays, and one rule for all is worth more than that.
    """
    if in_16_bits and _gains_by_amx(network):
        return "torch", "in 16 bits it trains residual networks faster on processors with AMX (14.7 to 5.1 images/s)"
    return "mxnet", "on CPUs it trains faster (r100 1.1, r50 1.1 to 1.3, y1 1.4 to 1.5 times the images/s)"


def choose_engine(name: str = "auto", devices: Sequence[Device] = CPU) -> Engine:
    """The engine of :func:`decide`, imported.

    :raises UserError: as there; also if the engine cannot be imported.
    """
    if decide(name, devices).name == "torch":
        from recognition.engines.torch.engine import TorchEngine

        return TorchEngine()
    from recognition.engines.mxnet.engine import MxnetEngine

    return MxnetEngine()


def decide_for(config: Config) -> Choice:
    """The engine of a run, and the line that says why.

    :raises UserError: as :func:`decide`.
    """
    return decide(config.engine, config.devices, config.in_16_bits, config.net_name)


def with_own_size(config: Config) -> Config:
    """The configuration with its network's own ``emb_size``, where that is a ``-symbol.json``.

    :raises UserError: as :func:`build_network`.
    """
    return dataclasses.replace(config, emb_size=own_size(config))


def build_network(config: Config) -> Graph:
    """The network of a configuration. A file of the user's own is code, for the engine of the run.

    :raises UserError: as :func:`recognition.networks.build_symbol`.
    """
    def own_network(options: Any, path: Path | None) -> Graph:
        return choose_engine(decide_for(config).name).own_network(options, path)

    return build_symbol(config, own_network)


def computing_of(config: Config) -> Computing:
    """The devices, batch and numbers with which a configuration wants the backbone computed."""
    return Computing(config.devices, config.per_batch_size, config.in_16_bits, config.fp16_scale, config.memonger,
                     keep_features=_keeps_features(config))


def _keeps_features(config: Config) -> bool:
    """Whether the head takes features where the backbone leaves them: it is one shard on the same device."""
    with_backbone = config.centers_on == "device" or config.sample_ratio < 1  # else the host computes, see make_shard
    return (len(config.devices) == 1 and with_backbone and config.gradient_acc == 1
            and not (config.triplets or config.label_smoothing or config.loss_margin == "magface"))


def maps_in_training(graph: Graph, computing: Computing, image_shape: tuple[int, int, int],
                     engine: str = "mxnet") -> int:
    """Bytes that an engine takes on a device for maps and the gradients between layers. Needs neither library."""
    from recognition.engines.mxnet.activations import maps_memory
    from recognition.engines.mxnet.passes.choose import bound_form
    from recognition.engines.mxnet.passes.winograd import held_copies

    if engine == "torch":
        by_kernels = computing.in_16_bits and on_gpus(computing.devices) and not computing.memonger
        factor = KERNELS_FACTOR if by_kernels else TORCH_FACTOR
        computed = _as_torch_computes(graph, computing, image_shape)
        return round(factor * maps_memory(computed, image_shape, computing.batch_size, scattering=1.0,
                                          not_kept=_norms_of_convolutions(graph) if by_kernels else ()))
    bound = bound_form(graph, computing, image_shape)
    return sum(bytes_of(bound, image_shape, computing.batch_size) for bytes_of in (maps_memory, held_copies))


def _as_torch_computes(graph: Graph, computing: Computing, image_shape: tuple[int, int, int]) -> Graph:
    """The graph with casts and marks of what is computed again, which for PyTorch may be batch norms on any device.

    In 16 bits on GPUs without PReLUs behind batch norms: one kernel computes both and keeps nothing in between.
    """
    from recognition.engines.mxnet.passes.precision import low_precision
    from recognition.engines.mxnet.passes.recompute import recompute

    if computing.in_16_bits and on_gpus(computing.devices):
        graph = rewrite(graph, {"LeakyReLU": lambda maker, node, inputs: (
            inputs[0] if maker.nodes[inputs[0].node].op == "BatchNorm" else None)})
    if computing.in_16_bits:
        graph = low_precision(graph, "float16" if on_gpus(computing.devices) else "bfloat16", image_shape)
    return recompute(graph, image_shape) if computing.memonger else graph


def _norms_of_convolutions(graph: Graph) -> set[str]:
    """Names of the batch norms that a convolution alone reads, maybe through a PReLU: Triton's kernels compute them
    again for its backward pass."""
    def alone(place: int) -> int | None:
        return readers[place][0] if len(readers[place]) == 1 else None

    readers, nodes, found = graph.readers(), graph.nodes, set[str]()
    for place, node in enumerate(nodes):
        if node.op == "BatchNorm":
            behind = alone(place)
            behind = alone(behind) if behind is not None and nodes[behind].op == "LeakyReLU" else behind
            if behind is not None and nodes[behind].op == "Convolution":
                found.add(node.name)
    return found


def make_shard(engine: Engine, device: Device, classes: tuple[int, int], dim: int, on_host: bool, sampled: bool,
               low_products: bool = False, numbers: str = "float32", folder: Path | None = None,
               **options: Any) -> Shard:
    """A shard of the class centres ``start .. stop - 1``, on whatever computes fastest with them.

    On CPUs that is :mod:`recognition.engines.cpu`, whatever the engine. With W in the host's memory (``on_host``) the
    rows of a sample travel to the device. Without a sample all of W would travel in each step, so the host computes.
    Centres whose ``numbers`` are bfloat16 are PyTorch's, also on CPUs. With ``folder`` they are on a disk.

    :raises UserError: if there are no such numbers.
    """
    if folder:
        options["folder"] = folder
    if numbers != "float32":
        if engine.name != "torch":
            raise UserError(f"centres_numbers: found {numbers!r}, but MXNet keeps class centres as float32; expected "
                            "--engine torch")
        options["in_16_bits"] = True
    elif device[0] == "cpu" or (on_host and not sampled):
        from recognition.engines.cpu.shard import CpuShard

        return CpuShard(*classes, dim, **options)
    return engine.shard(device, classes, dim, on_host, low_products and device[0] != "cpu", **options)


def check_bfloat16(flag: str, devices: Sequence[Device]) -> None:
    """Check that a checkpoint's network can run in bfloat16 on the devices.

    :raises UserError: about ``flag``, if it cannot.
    """
    if on_gpus(devices):
        raise UserError(f"{flag}: found GPUs, expected CPUs that have it; leave it out")
    require_bfloat16(flag)
