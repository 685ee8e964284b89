# SPDX-License-Identifier: Apache-2.0
"""Whole steps of a network with a head of many identities: ours beside arcface_torch's, in turn, in one process."""
from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from bench.gpu import theirs
from bench.gpu.fused import card_peaks, drawn_on_device
from bench.gpu.heads import ARCFACE, Kind, Size
from bench.gpu.networks import CPU, SIDE, images_of, made
from bench.gpu.report import Report, Setting, judged
from recognition.config.devices import Device
from recognition.engines.interface import Computing, Updating
from recognition.engines.torch.engine import TorchEngine
from recognition.engines.torch.imports import torch
from recognition.engines.torch.shard import TorchShard
from recognition.networks.flops import count_flops
from recognition.networks.graph import Graph
from recognition.networks.shapes import all_shapes
from recognition.processes.communicator import SingleProcess

CLIP_NORM = 5.0  # as arcface_torch's train_v2.py clips
WARM = 4  # steps: the first is computed operator by operator, the second is recorded
TABLE = "A step of training, beside arcface_torch's"


class Case(NamedTuple):
    """A step: its network, images, identities, and what the issue of the GPU engine asks of it."""

    network: str
    images: int
    classes: int
    times_as_fast: float | None = None  # as arcface_torch, at least
    share_of_memory: float | None = None  # of arcface_torch's, at most

    def __str__(self) -> str:
        return f"{self.network}, {self.images} images, {self.classes:,} identities"


class Way(NamedTuple):
    """How we take a step, where it is not the usual way."""

    centres_in_16_bits: bool = False
    memonger: bool = False


USUAL = Way()
CASES = (Case("r50", 128, 1_000_000, 2, 0.6), Case("r50", 512, 1_000_000, 2, 0.6),
         Case("r100", 128, 1_000_000, 2, 0.6), Case("r100", 512, 1_000_000, 2, 0.6), Case("r100", 128, 100_000, 1.5))
SMALL = (Case("demo", 2, 300),)
MORE = {"ours, W in bfloat16": Way(centres_in_16_bits=True), "ours, memonger": Way(memonger=True)}
MORE_FROM = 512  # images, from which on these are tried, too
ROUNDS, STEPS = 5, 4  # turns, and steps of a turn
Step = Callable[[], None]
Phase = Callable[[str], AbstractContextManager[Any]]


class Measured(NamedTuple):
    """What a step takes."""

    milliseconds: float  # median of rounds
    least: float
    most: float
    peak: float  # GB of tensors at once, the first steps included
    held: float  # GB taken from the card in steps after the first ones, the maps of recorded passes included

    def __str__(self) -> str:
        memory = f", peak {self.peak:.2f} GB, {self.held:.2f} GB held after warm-up" if self.peak else ""
        return f"{self.milliseconds:.1f} ms ({self.least:.1f} to {self.most:.1f}){memory}"


def no_phase(name: str) -> AbstractContextManager[Any]:
    return nullcontext()


def our_step(setting: Setting, case: Case, way: Way = USUAL, phase: Phase = no_phase) -> Step:
    """A step as the loop takes it: features, loss, gradients, the check, both updates; images come from the host.

    :param phase: marks the loop's phases.
    """
    graph, start = made(case.network)
    device: Device = ("gpu", setting.device.index or 0) if setting.gpu else CPU
    computing = Computing((device,), case.images, setting.gpu, memonger=way.memonger, keep_features=True)
    backbone = TorchEngine().backbone(graph, start, SIDE, computing, Updating(clip_norm=CLIP_NORM), SingleProcess())
    kind = Kind(ARCFACE, {"in_16_bits": way.centres_in_16_bits})
    head = drawn_on_device(_shard(setting), Size(case.classes, case.images, width_of(graph)), kind)
    images, random = backbone.buffer((case.images, *SIDE)), np.random.default_rng(0)
    images[:] = images_of(case.images)

    def step() -> None:
        labels = random.integers(0, case.classes, case.images)
        with phase("forward"):
            features = backbone.forward(images)
        with phase("copy ahead"):
            backbone.coming(images)
        with phase("head"):
            result = head.forward_backward(features, labels)
        with phase("backward"):
            backbone.backward(result.d_features)
        with phase("check"):
            finite = backbone.finite()
        with phase("update W"):
            head.step(0.01) if finite else head.leave_out()
        with phase("update"):
            backbone.step(1e-3) if finite else backbone.leave_out()

    return step


def width_of(graph: Graph) -> int:
    """How many numbers a feature has."""
    head = graph.heads[0]
    return int(all_shapes(graph, (1, *SIDE))[head.node][head.output][1])


def _shard(setting: Setting) -> Any:
    """A maker of the shard that a run has on the device."""
    if not setting.gpu:
        return partial(TorchShard, setting.device)
    from recognition.engines.torch.triton.shard import TritonShard

    return partial(TritonShard, setting.device)


def wait(setting: Setting) -> None:
    if setting.gpu:
        torch.cuda.synchronize(setting.device)


def free(setting: Setting) -> None:
    """Free what nothing holds any more."""
    gc.collect()
    if setting.gpu:
        torch.cuda.empty_cache()


def _taken(setting: Setting) -> tuple[int, int]:
    """Bytes of tensors, and bytes taken from the card."""
    device = setting.device
    return (torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)) if setting.gpu else (0, 0)


def warmed_up(setting: Setting, make: Callable[[], Step]) -> tuple[Step, float, float]:
    """A step after its first ones, and the peak and held GB of :class:`Measured`.

    Maps of recorded passes are taken from the card, but the allocator does not count them as tensors: so two numbers.
    """
    free(setting)
    tensors, taken = _taken(setting)
    peak = held = 0
    if setting.gpu:
        torch.cuda.reset_peak_memory_stats(setting.device)
    step = make()
    for _ in range(WARM if setting.gpu else 1):
        step()
    wait(setting)
    if setting.gpu:
        peak = torch.cuda.max_memory_allocated(setting.device) - tensors
        torch.cuda.empty_cache()  # cuDNN's search and the pass of operators have left more than steps need
        torch.cuda.reset_peak_memory_stats(setting.device)
        for _ in range(2):
            step()
        wait(setting)
        held = torch.cuda.max_memory_reserved(setting.device) - taken
    return step, peak / 1e9, held / 1e9


def in_turn(setting: Setting, steps: Mapping[str, Step]) -> dict[str, list[float]]:
    """Milliseconds a step in each round of each. In a round nobody waits between steps, as in a run."""
    found: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS if setting.gpu else 2):
        for name, step in steps.items():
            count = STEPS if setting.gpu else 1
            wait(setting)
            began = time.perf_counter()
            for _ in range(count):
                step()
            wait(setting)
            found[name].append(1e3 * (time.perf_counter() - began) / count)
    return found


def measure(setting: Setting, makers: Mapping[str, Callable[[], Step]]) -> dict[str, Measured]:
    """Measure steps that take turns, all in memory at once.

    :raises torch.OutOfMemoryError: if they do not fit together.
    """
    steps, memory = dict[str, Step](), dict[str, tuple[float, float]]()
    for name, make in makers.items():
        step, *sizes = warmed_up(setting, make)
        steps[name], memory[name] = step, (sizes[0], sizes[1])
    return {name: Measured(float(np.median(rounds)), min(rounds), max(rounds), *memory[name])
            for name, rounds in in_turn(setting, steps).items()}


def side_by_side(setting: Setting, report: Report) -> None:
    """Images a second, memory, ratios, and the share of the card's peak that needed operations take."""
    peak = card_peaks(setting, report)
    for case in CASES if setting.gpu else SMALL:
        makers: dict[str, Callable[[], Step]] = {"ours": partial(our_step, setting, case)}
        if setting.arcface_torch and setting.gpu:
            makers["arcface_torch"] = partial(theirs.whole_step, setting.arcface_torch, case.network, case.images,
                                              case.classes)
        why = ""
        try:
            found = measure(setting, makers)
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
        if why:  # behind the error, whose traceback holds tensors
            report.say(f"{case}: one after the other, as both do not run together: {why.splitlines()[0]}")
            found = {name: part for name, make in makers.items()
                     for part in _alone(setting, report, f"{case}: {name}", make)}
        if case.images >= MORE_FROM or not setting.gpu:
            found.update({name: part for name, way in MORE.items() for part in _alone(
                setting, report, f"{case}: {name}", partial(our_step, setting, case, way))})
        graph = made(case.network)[0]
        operations = case.images * (3 * count_flops(graph, SIDE).products + 6 * case.classes * width_of(graph))
        for name, part in found.items():
            tell(report, case, name, part, found.get("arcface_torch"), operations / peak)
        free(setting)


def _alone(setting: Setting, report: Report, title: str, make: Callable[[], Step]) -> list[Measured]:
    """Measure one step; nothing if it does not fit, or fails, which is bad."""
    try:
        return list(measure(setting, {"": make}).values())
    except torch.OutOfMemoryError:
        report.true(title, True, "does not fit into the card's memory")
    except Exception as error:  # the other steps still tell something
        report.true(title, False, f"{type(error).__name__}: {error}")
    return []


def tell(report: Report, case: Case, name: str, found: Measured, other: Measured | None, at_peak: float) -> None:
    """Report what a step takes, and add a row to the table.

    :param other: arcface_torch's, if it is measured.
    :param at_peak: seconds of three forward passes and the head's three products at the card's peak.
    """
    rate, share = 1e3 * case.images / found.milliseconds, 1e5 * at_peak / found.milliseconds
    report.measured(f"{case}: {name}", rate, f"images/s, {found}")
    report.measured(f"{case}: {name}: share of the card's peak", share, "%")
    cells = {"network, images, identities": str(case), "way": name, "images/s": f"{rate:.0f}",
             "ms: median (least to most)": f"{found.milliseconds:.1f} ({found.least:.1f} to {found.most:.1f})",
             "peak GB": f"{found.peak:.2f}", "GB held after warm-up": f"{found.held:.2f}",
             "share of the product's peak": f"{share:.0f} %"}
    if other and name != "arcface_torch":
        faster, memory = other.milliseconds / found.milliseconds, found.peak / other.peak
        report.measured(f"{case}: {name}: as fast as arcface_torch", faster, "times")
        report.measured(f"{case}: {name}: memory of arcface_torch's", memory, "times")
        usual = name == "ours"
        cells["times as fast as arcface_torch"] = judged(faster, least=case.times_as_fast if usual else None)
        cells["of its peak"] = judged(memory, most=case.share_of_memory)
    report.row(TABLE, cells)
