# SPDX-License-Identifier: Apache-2.0
"""Checks of networks: forward and gradients against float64 on the CPU, states across devices, bits and time."""
from __future__ import annotations

import io
import logging
import time
from contextlib import nullcontext
from typing import Any
from unittest import mock

import numpy as np

from bench.gpu.report import Report, Setting
from recognition.config.devices import Device
from recognition.config.options import Config
from recognition.config.presets import ROOT, open_config
from recognition.engines.configured import build_network
from recognition.engines.interface import Computing, Updating
from recognition.engines.torch import network as torch_network
from recognition.engines.torch.deterministic import deterministic
from recognition.engines.torch.engine import TorchEngine
from recognition.engines.torch.imports import torch
from recognition.engines.torch.network import Network
from recognition.engines.torch.replica import Replica
from recognition.engines.torch.triton.batch_norm.choice import why_not
from recognition.networks import first_weights
from recognition.networks.graph import rewrite
from recognition.networks.initialise import initialise
from recognition.processes.communicator import SingleProcess

SIDE = (3, 112, 112)
CPU: Device = ("cpu", 0)


def made(name: str, dropout: bool = False) -> tuple[Any, tuple[Any, Any]]:
    """A preset's graph, without dropout unless it is asked for, as masks differ between devices; and first values."""
    file = open_config(str(ROOT / "sample_config.py"))
    chosen = {"network": name, "loss": "arcface", "dataset": "demo"}
    config = Config(**file.lay_presets(chosen, dict.fromkeys(chosen, "bench.gpu")))
    graph = build_network(config)
    graph = graph if dropout else rewrite(graph, {"Dropout": lambda maker, node, inputs: inputs[0]})
    return graph, initialise(graph, SIDE, 0, first_weights(config.net_name))


def images_of(count: int, step: int = 0) -> np.ndarray:
    return np.random.default_rng(step).integers(0, 256, (count, *SIDE), dtype=np.uint8)


def passes(network: Network, images: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Features in training, and the gradients of a fixed function of them by all parameters."""
    features = network(torch.from_numpy(images).float(), training=True)
    slopes = np.random.default_rng(0).standard_normal(features.shape)
    (features * torch.tensor(slopes, dtype=features.dtype, device=features.device)).sum().backward()
    return features.detach().cpu().numpy(), {name: tensor.grad.cpu().numpy()
                                             for name, tensor in network.arguments.items() if tensor.grad is not None}


def straight(parameters: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """First values with which PReLU is a line: slopes of 1, as its only factors that begin with 0.25."""
    return {name: np.ones_like(array) if (array == 0.25).all() else array for name, array in parameters.items()}


def against_float64(setting: Setting, report: Report) -> None:
    """In float32 with the products of the engine's own settings; TF32 rounds 8,000 times as much.

    A gradient jumps where an input of PReLU passes zero, and rounding (1e-5 of the features) takes some across: of y1
    with four images on a CPU the gradients are then off by 4e-3 of their norm, and by 3e-6 if PReLUs are lines. So they
    are compared twice: 1e-2 as the recipe has it, 2e-4 with lines (other devices sum in other orders).
    """
    for name in ("y1", "r18", "r50") if setting.gpu else ("y1",):
        graph, (parameters, auxiliary) = made(name)
        images = images_of(8 if setting.gpu else 4)
        for what, values, tolerance in (("", parameters, 1e-2), (", PReLUs as lines", straight(parameters), 2e-4)):
            wide, here = (Network(graph, values, auxiliary, device, dtype) for device, dtype in (
                (torch.device("cpu"), torch.float64), (setting.device, torch.float32)))
            with torch.no_grad():
                wanted, found = (network(torch.from_numpy(images)).cpu().numpy() for network in (wide, here))
            report.close(f"{name}{what}: features", found, wanted, 1e-4)
            (wanted, wanted_d), (found, found_d) = passes(wide, images), passes(here, images)
            report.close(f"{name}{what}: features in training", found, wanted, 1e-3)
            report.close(f"{name}{what}: gradients", joined(found_d), joined(wanted_d), tolerance, "norm")


def joined(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """All numbers of arrays by name, in the order of names."""
    return np.concatenate([arrays[name].ravel() for name in sorted(arrays)])


def in_16_bits(setting: Setting, report: Report) -> None:
    """Autocast against float32: a rounding is 4e-3 in bfloat16 and 5e-4 in float16, which CPUs run much slower and is
    left out there. With four images y1 on a CPU is off by 1.8e-2 and 2.2e-3 (features, of their norm), 9.7e-2 and
    2.8e-2 (gradients, that jump at PReLU's zero), and cosines of embeddings by 1.6e-4 and 2.3e-6.

    GPUs may round more maps. With the output of every layer rounded on a CPU y1 is off by 6.1e-2 and 7.5e-3 (features),
    3.4e-1 and 1.0e-1 (gradients), and r50 by less than half of that; twice as much is allowed on GPUs.
    """
    limits = ({torch.bfloat16: (1.2e-1, 7e-1, 4e-3), torch.float16: (1.5e-2, 2e-1, 1e-4)} if setting.gpu else
              {torch.bfloat16: (6e-2, 3e-1, 1e-3)})
    for name in ("y1", "r50") if setting.gpu else ("y1",):
        graph, start = made(name)
        images, found = images_of(16 if setting.gpu else 4), {}
        for low in (None, *limits):
            replica = Replica(graph, *start, setting.device, low, SIDE, recompute=False)
            features = replica.forward(images, 0).cpu().numpy()
            replica.backward(np.random.default_rng(0).standard_normal(features.shape).astype(np.float32))
            gradients = {key: tensor.cpu().numpy() for key, tensor in replica.gradients.items()}
            with torch.inference_mode():
                embedded = torch.nn.functional.normalize(replica.features(images)).cpu().numpy()
            found[low] = features, joined(gradients), embedded
        for low, (most, most_of_gradients, most_of_cosines) in limits.items():
            here = f"{name}, {str(low)[6:]}"
            report.close(f"{here}: features in training", found[low][0], found[None][0], most, "norm")
            report.close(f"{here}: gradients", found[low][1], found[None][1], most_of_gradients, "norm")
            cosines = (found[low][2] * found[None][2]).sum(axis=1)
            report.measured(f"{here}: 1 - cosine of embeddings", float(1 - cosines.min()), "", most_of_cosines)


def states_and_bits(setting: Setting, report: Report) -> None:
    """Two steps on the device, twice; and one there after one on the CPU, from whose state it goes on."""
    graph, start = made("y1")
    here: Device = ("gpu", setting.device.index or 0) if setting.gpu else CPU
    count = 16 if setting.gpu else 4

    def backbone(device: Device) -> Any:
        return TorchEngine().backbone(graph, start, SIDE, Computing((device,), count), Updating(), SingleProcess())

    def steps(network: Any, first: int, last: int) -> Any:
        for step in range(first, last):
            features = network.forward(images_of(count, step))
            network.backward(np.random.default_rng(step).standard_normal(features.shape).astype(np.float32) / 100)
            network.step(0.01)
        return network.state()

    with deterministic() if setting.gpu else nullcontext():
        whole, again = (steps(backbone(here), 0, 2).parameters for _ in range(2))
    report.true("y1: the same bits twice", all(whole[name].tobytes() == again[name].tobytes() for name in whole),
                "with --deterministic")
    ended = backbone(here)
    ended.load(steps(backbone(CPU), 0, 1), 1)
    report.close("y1: parameters of a step on the CPU and one here", joined(steps(ended, 1, 2).parameters),
                 joined(whole), 1e-4, "norm")


def graphs(setting: Setting, report: Report) -> None:
    """Four steps by CUDA graphs, and by operators that keep all norms' outputs: the same bits with --deterministic; and
    the time of both without.

    y1 and r50, with dropout, batches of another size between; in float32, float16, and with layers computed again.
    """
    if not setting.gpu:
        report.true("graphs", True, "left out on CPUs, which have none")
        return
    for name, low, again in (("y1", None, False), ("y1", torch.float16, False), ("r50", torch.float16, False),
                             ("r50", torch.float16, True)):
        what = f"{name}, {str(low or torch.float32)[6:]}" + (", computed again" if again else "")
        with deterministic():
            with mock.patch.object(torch_network, "convolutions_of_norms", lambda *_: set()):
                wanted, _, _ = _steps_of(name, setting.device, low, again, by_graphs=False)
            found, recorded, why = _steps_of(name, setting.device, low, again, by_graphs=True)
        report.true(f"{what}: recorded", recorded, why)
        differ = [key for key in wanted if wanted[key].tobytes() != found[key].tobytes()]
        report.true(f"{what}: the same bits", not differ, f"{len(differ)} of {len(wanted)} arrays differ {differ[:3]}")
    for name in ("y1", "r50"):
        for by_graphs in (False, True):
            seconds, _ = seconds_a_pass(name, setting.device, by_graphs)
            report.measured(f"{name}, float16, 128 images: pass by {'graphs' if by_graphs else 'operators'}",
                            seconds * 1e3, "ms")


def _steps_of(name: str, device: torch.device, low: torch.dtype | None, again: bool,
              by_graphs: bool) -> tuple[dict[str, np.ndarray], bool, str]:
    """All that four passes of a replica leave, whether they were recorded, and what was logged."""
    replica = _replica(name, device, low, again, by_graphs)
    found, said = {}, io.StringIO()
    handler = logging.StreamHandler(said)
    logging.getLogger("recognition").addHandler(handler)
    for step, count in enumerate((16, 16, 8, 16, 16)):
        features = replica.forward(images_of(count, step), step)
        slopes = np.random.default_rng(step).standard_normal(tuple(features.shape)).astype(np.float32)
        replica.backward(slopes)
        with torch.no_grad():
            torch._foreach_sub_(list(replica.arguments.values()), list(replica.gradients.values()), alpha=1e-4)
        groups = {"": {"features": features}, "d ": replica.gradients, "w ": replica.arguments,
                  "s ": replica.auxiliary}
        found.update({f"{step} {kind}{key}": tensor.detach().cpu().numpy().copy() for kind, group in groups.items()
                      for key, tensor in group.items()})
    logging.getLogger("recognition").removeHandler(handler)
    return found, replica.recorded is not None, said.getvalue().strip()


def _replica(name: str, device: torch.device, low: torch.dtype | None, again: bool, by_graphs: bool) -> Replica:
    """A replica as a run has it: with dropout, and in 16 bits with the kernels that the card can use."""
    graph, start = made(name, dropout=True)
    replica = Replica(graph, *start, device, low, SIDE, again, fused=low is not None and not why_not(device))
    replica.records = by_graphs
    return replica


def seconds_a_pass(name: str, device: torch.device, by_graphs: bool, count: int = 128) -> tuple[float, float]:
    """Seconds of a pass forward and backward, the least, and of the first two, which search and record."""
    replica = _replica(name, device, torch.float16, False, by_graphs)
    images, seconds = images_of(count), []
    for step in range(8):
        began = time.perf_counter()
        features = replica.forward(images, step)
        replica.backward(np.zeros(tuple(features.shape), np.float32))
        torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return min(seconds[3:]), sum(seconds[:2])


def speed(setting: Setting, report: Report) -> None:
    """Images a second in training, float32 and 16 bits, and the peak of memory."""
    if not setting.gpu:
        report.true("speed", True, "left out on CPUs: bench.networks.backbone measures it")
        return
    device: Device = ("gpu", setting.device.index or 0)
    for name in ("y1", "r50", "r100"):
        graph, start = made(name)
        for in_16_bits in (False, True):
            torch.cuda.reset_peak_memory_stats(setting.device)
            network = TorchEngine().backbone(graph, start, SIDE, Computing((device,), 128, in_16_bits), Updating(),
                                             SingleProcess())
            seconds, images = [], images_of(128)
            for _ in range(6):
                began = time.perf_counter()
                features = network.forward(images)
                network.backward(features / np.float32(1e4))
                network.step(1e-4)
                torch.cuda.synchronize(setting.device)
                seconds.append(time.perf_counter() - began)
            what = f"{name}, {'float16' if in_16_bits else 'float32'}, 128 images"
            report.measured(f"{what}: training", 128 / min(seconds[2:]), "images/s")
            report.measured(f"{what}: the first two steps, with cuDNN's search and recording", sum(seconds[:2]), "s")
            report.measured(f"{what}: peak memory", torch.cuda.max_memory_allocated(setting.device) / 2**20, "MB")
            del network  # before the next one takes its memory
