# SPDX-License-Identifier: Apache-2.0
"""Batch norm with PReLU or a sum as Triton kernels: against float64, and time and bytes a second beside PyTorch's.

Times of maps are those of a forward and a backward pass in a CUDA graph, so without the host's part. Bytes are what the
kernels move: each map as often as it is read or written, 3 times forward, 4 with a sum, and 5 backward.
"""
from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

from bench.gpu.networks import SIDE, images_of, joined, made
from bench.gpu.report import Report, Setting, kernels_usable
from recognition.engines.torch import network
from recognition.engines.torch.fusing import fused_nodes
from recognition.engines.torch.imports import torch
from recognition.engines.torch.replica import Replica
from recognition.engines.torch.triton.batch_norm import choice
from recognition.networks.shapes import all_shapes

F = torch.nn.functional
EPS, IMAGES, REPLAYS = 2e-5, 128, 20
CHECKED = [(16, 64, 56, 56), (16, 512, 7, 7), (16, 256, 14, 14)]
# numbers of a tile, warps, stages, programs of a multiprocessor
CUTS = [(4096, 8, 3, 4), (4096, 8, 1, 4), (4096, 8, 2, 4), (4096, 8, 3, 2), (4096, 8, 3, 8), (4096, 4, 3, 4),
        (4096, 4, 3, 8), (2048, 4, 3, 8), (8192, 8, 2, 2)]


class Kind(NamedTuple):
    """What a batch norm has behind it."""

    prelu: bool
    sum: bool

    def __str__(self) -> str:
        names = {(True, False): "with PReLU", (False, True): "with a sum", (False, False): "alone"}
        return names.get(self, "with both")


BOTH, PRELU = Kind(True, True), Kind(True, False)


def maps_of(name: str) -> Counter[tuple[int, int, Kind]]:
    """How many batch norms a preset has, by channels, side of the map, and kind."""
    graph = made(name)[0]
    shapes, found = all_shapes(graph, (1, *SIDE)), Counter[tuple[int, int, Kind]]()
    for place, fused in fused_nodes(graph, ()).items():
        shape = shapes[place][0]
        if len(shape) == 4:
            behind = fused.behind.op if fused.behind else ""
            found[shape[1], shape[2], Kind(behind == "LeakyReLU", behind not in ("", "LeakyReLU"))] += 1
    return found


def inputs(setting: Setting, size: tuple[int, ...], dtype: Any = torch.float16) -> list[Any]:
    """x, gamma, beta, slope, what is added, and the gradient of y."""
    generator = torch.Generator(setting.device).manual_seed(0)

    def draw(*sizes: int) -> torch.Tensor:
        return torch.randn(sizes, generator=generator, device=setting.device)

    x, added, d_y = (draw(*size).to(dtype).contiguous(memory_format=torch.channels_last) for _ in range(3))
    return [x, *(draw(size[1]) for _ in range(3)), added, d_y]


def passes_of(kind: Kind, ours: bool, arrays: list[Any], cut: Any = None) -> Callable[[], list[Any]]:
    """A function of nothing: y, and the gradients of x, gamma, beta, slope and what is added."""
    from recognition.engines.torch.triton.batch_norm.function import USUAL, batch_norm

    x, gamma, beta, slope, added = (array.detach().requires_grad_() for array in arrays[:5])
    leaves = [x, gamma, beta, *([slope] if kind.prelu else []), *([added] if kind.sum else [])]

    def passes() -> list[Any]:
        if ours:
            y = batch_norm(x, gamma, beta, EPS, slope if kind.prelu else None, added if kind.sum else None,
                           cut or USUAL).y
        else:
            y = F.batch_norm(x, None, None, gamma, beta, True, 0.0, EPS)
            y = F.prelu(y, slope.to(y.dtype)) if kind.prelu else y
            y = y + added if kind.sum else y
        return [y.detach(), *torch.autograd.grad(y, leaves, arrays[5])]

    return passes


def milliseconds(setting: Setting, passes: Callable[[], Any]) -> float:
    """The time of one call, replayed from a CUDA graph; on CPUs that of a plain call."""
    if not setting.gpu:
        began = time.perf_counter()
        passes()
        return 1e3 * (time.perf_counter() - began)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        passes()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        passes()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    graph.replay()
    start.record()
    for _ in range(REPLAYS):
        graph.replay()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / REPLAYS


def against_float64(setting: Setting, report: Report) -> None:
    """Compare by norms. Vectors' gradients are float32 sums, 2e-5; maps' numbers are rounded, 2^-11 and 2^-8."""
    if not kernels_usable(setting, report, partial(choice.why_not, setting.device)):
        return
    limits = {torch.float32: 2e-6, torch.float16: 5e-4, torch.bfloat16: 5e-3}
    for size in CHECKED if setting.gpu else [(2, 20, 3, 3)]:
        for dtype, allowed in limits.items():
            arrays, title = inputs(setting, size, dtype), f"{size}, {str(dtype)[6:]}"
            found, again = (passes_of(BOTH, True, arrays)() for _ in range(2))
            wanted = passes_of(BOTH, False, [array.double() for array in arrays])()
            for name, ours, theirs in zip(("y", "x", "gamma", "beta", "slope", "sum"), found, wanted):
                limit = allowed if name in ("y", "x", "sum") else 2e-5
                report.close(f"{title}: {name}", ours.cpu().double(), theirs.cpu(), limit, "norm")
            report.true(f"{title}: the same bits twice", all(map(torch.equal, found, again)))


def cost(setting: Setting, report: Report) -> None:
    """Measure the time of each kind of map of r50, of all that a step has, and of the network."""
    if not kernels_usable(setting, report, partial(choice.why_not, setting.device)):
        return
    totals = dict.fromkeys(("kernels", "PyTorch"), 0.0)
    maps = maps_of("r50") if setting.gpu else {(20, 3, kind): 1 for kind in (PRELU, Kind(False, True))}
    for (channels, side, kind), count in sorted(maps.items(), key=lambda item: -item[0][1]):
        title = f"{channels} x {side} {kind}"
        arrays = inputs(setting, (IMAGES if setting.gpu else 2, channels, side, side))
        spent = {name: milliseconds(setting, passes_of(kind, name == "kernels", arrays)) for name in totals}
        for name, found in spent.items():
            report.measured(f"{title}, {count} of them: {name}", found, "ms")
            totals[name] += found * count
        moved = arrays[0].numel() * 2 * (9 if kind.sum else 8)
        report.measured(f"{title}: kernels' bytes", moved / spent["kernels"] / 1e6, "GB/s")
    for name, total in totals.items():
        report.measured(f"all of a step: {name}", total, "ms")
    if setting.gpu:
        _network(setting, report)


def cuts(setting: Setting, report: Report) -> None:
    """Other tiles and numbers of programs than the usual ones, where most time goes."""
    if not kernels_usable(setting, report, partial(choice.why_not, setting.device)):
        return
    from recognition.engines.torch.triton.batch_norm.function import Cut

    for channels, side in ((64, 112), (256, 14), (512, 7)) if setting.gpu else ((20, 3),):
        arrays = inputs(setting, (IMAGES if setting.gpu else 2, channels, side, side))
        for cut in CUTS:
            found = milliseconds(setting, passes_of(PRELU, True, arrays, Cut(*cut)))
            report.measured(f"{channels} x {side} with PReLU, {cut}", found, "ms")


def _network(setting: Setting, report: Report) -> None:
    """A step of r50 in float16 with the kernels, with them and norms kept for convolutions, and without; the errors of
    features and gradients against float32."""
    graph, start = made("r50")
    found = {}
    for name in ("float32", "PyTorch", "kernels, norms kept", "kernels"):
        low = None if name == "float32" else torch.float16
        with mock.patch.object(network, "convolutions_of_norms", lambda *_: set()) if "kept" in name else nullcontext():
            replica = Replica(graph, *start, setting.device, low, SIDE, recompute=False, fused="kernels" in name)
        features = replica.forward(images_of(16), 0).cpu().numpy()
        replica.backward(np.random.default_rng(0).standard_normal(features.shape).astype(np.float32))
        found[name] = features, joined({key: tensor.cpu().numpy() for key, tensor in replica.gradients.items()})
        if low:
            _speed(setting, report, f"r50, {IMAGES} images, {name}", replica)
        del replica
        torch.cuda.empty_cache()
    for place, what in enumerate(("features", "gradients")):
        wanted = found["float32"][place]
        theirs, ours = (float(np.linalg.norm(found[name][place] - wanted)) for name in ("PyTorch", "kernels"))
        report.measured(f"r50: error of {what} by that of PyTorch's operators", ours / theirs, "", 1.5)


def _speed(setting: Setting, report: Report, title: str, replica: Replica) -> None:
    """Time and memory of a forward and a backward pass, and the time of its kernels, the longest by name."""
    images, seconds = images_of(IMAGES), []
    torch.cuda.reset_peak_memory_stats(setting.device)

    def step() -> None:
        replica.backward(replica.forward(images, 0).cpu().numpy() / np.float32(1e4))
        torch.cuda.synchronize(setting.device)

    for _ in range(6):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    report.measured(f"{title}: passes", 1e3 * min(seconds[2:]), "ms")
    report.measured(f"{title}: peak memory", torch.cuda.max_memory_allocated(setting.device) / 2**20, "MB")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
    events = [(event.self_device_time_total / 1e3, event.count, event.key) for event in profile.key_averages()]
    report.measured(f"{title}: all kernels", sum(event[0] for event in events), "ms")
    for spent, count, kernel in sorted(events, reverse=True)[:16]:
        report.say(f"    {spent:7.3f} ms {count:5d} {kernel[:90]}")
