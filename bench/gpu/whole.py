# SPDX-License-Identifier: Apache-2.0
"""Whole steps of a network with a head of many identities: ours beside arcface_torch's, and where our time goes."""
from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from bench.gpu import theirs
from bench.gpu.fused import card_peaks, drawn_on_device
from bench.gpu.heads import ARCFACE, Kind, Size
from bench.gpu.networks import SIDE, images_of, made
from bench.gpu.report import Report, Setting
from recognition.engines.interface import Computing, Updating
from recognition.engines.torch.engine import TorchEngine
from recognition.engines.torch.imports import torch
from recognition.networks.flops import count_flops
from recognition.processes.communicator import SingleProcess

CASES = (("r50", 128, 1_000_000), ("r50", 512, 1_000_000), ("r100", 128, 1_000_000), ("r100", 512, 1_000_000),
         ("r100", 128, 100_000))
WARM, STEPS = 4, 12
# By what is in a kernel's name, the first that fits.
GROUPS = {
    "head: logits": ("exponentials", "slopes", "advance", "collect"), "head: update": ("update", "renew"),
    "batch norm, PReLU, sums": ("measure", "normalise", "sum_gradients", "differentiate", "merge_"),
    "convolutions": ("fprop", "dgrad", "wgrad", "conv", "cudnn", "implicit"),
    "other products": ("gemm", "nvjet", "cublas", "splitK"), "optimiser, checks": ("multi_tensor", "lpnorm"),
    "copies": ("Mem", "copy"),
}


def our_step(setting: Setting, network: str, count: int, classes: int) -> Callable[[], None]:
    """A step as the loop takes it: features, loss, gradients, the check, both updates; images come from the host."""
    from recognition.engines.torch.triton.shard import TritonShard

    graph, start = made(network)
    computing = Computing((("gpu", setting.device.index or 0),), count, True, keep_features=True)
    backbone = TorchEngine().backbone(graph, start, SIDE, computing, Updating(), SingleProcess())
    head = drawn_on_device(partial(TritonShard, setting.device), Size(classes, count, 512), Kind(ARCFACE))
    images, random = images_of(count), np.random.default_rng(0)

    def step() -> None:
        result = head.forward_backward(backbone.forward(images), random.integers(0, classes, count))
        backbone.backward(result.d_features)
        backbone.finite()
        head.step(0.01)
        backbone.step(1e-3)

    return step


def milliseconds(step: Callable[[], None]) -> float:
    """The time of a step among others, between which nobody waits, as in a run."""
    for _ in range(WARM):
        step()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(STEPS):
        step()
    torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - began) / STEPS


def side_by_side(setting: Setting, report: Report) -> None:
    """Images a second, peak memory, ratios, and the share of the card's peak that needed operations take."""
    if not setting.gpu:
        report.true("steps", True, "left out on CPUs")
        return
    peak = card_peaks(setting, report)
    for network, count, classes in CASES:
        title, found = f"{network}, {count} images, {classes:,} identities", {}
        makers: dict[str, Callable[[], Callable[[], None]]] = {
            "ours": partial(our_step, setting, network, count, classes)}
        if setting.arcface_torch:
            makers["arcface_torch"] = partial(theirs.whole_step, setting.arcface_torch, network, count, classes)
        for name, maker in makers.items():
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(setting.device)
            spent = milliseconds(maker())
            memory = torch.cuda.max_memory_allocated(setting.device) / 1e9
            found[name] = spent, memory
            report.measured(f"{title}: {name}", 1e3 * count / spent, f"images/s, {spent:.1f} ms, peak {memory:.2f} GB")
        useful = 3 * count_flops(made(network)[0], SIDE).products * count + 6 * count * classes * 512
        report.measured(f"{title}: share of the card's peak", 100 * useful / found["ours"][0] / 1e-3 / peak, "%")
        if "arcface_torch" in found:
            ours, other = found["ours"], found["arcface_torch"]
            report.measured(f"{title}: as fast as arcface_torch", other[0] / ours[0], "times")
            report.measured(f"{title}: memory of arcface_torch's", ours[1] / other[1], "times")


def where(setting: Setting, report: Report) -> None:
    """The time of a step's kernels by groups, and what the device waits."""
    if not setting.gpu:
        report.true("steps", True, "left out on CPUs")
        return
    for network, count, classes in (("r50", 128, 1_000_000), ("r100", 128, 100_000)):
        step = our_step(setting, network, count, classes)
        spent = milliseconds(step)
        kinds = torch.profiler.ProfilerActivity
        with torch.profiler.profile(activities=[kinds.CUDA]) as profile:
            for _ in range(STEPS):
                step()
            torch.cuda.synchronize()
        sums = grouped([(event.key, event.self_device_time_total / 1e3 / STEPS) for event in profile.key_averages()])
        sums["waiting for the host"] = spent - sum(sums.values())
        for name, part in sums.items():
            report.measured(f"{network}, {count} images, {classes:,} identities: {name}", part,
                            f"ms of {spent:.1f}, {100 * part / spent:.1f} %")
        del step
        gc.collect()
        torch.cuda.empty_cache()


def grouped(kernels: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Sums of the times of kernels by GROUPS, with the rest last."""
    sums = dict.fromkeys([*GROUPS, "others"], 0.0)
    for name, spent in kernels:
        sums[next((group for group, words in GROUPS.items() if any(word in name for word in words)), "others")] += spent
    return sums
