# SPDX-License-Identifier: Apache-2.0
"""The head as Triton kernels: against float64, and time, memory and share of the card's peak beside others.

The others are our chunks in float32 and a plain PyTorch head of our own that does what the public PartialFC_V2 does:
normalised copies, logits of B x C in float32, autograd, a dense gradient and a dense optimiser.
"""
from __future__ import annotations

import gc
import importlib.util
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import numpy as np

from bench.gpu import theirs
from bench.gpu.heads import ARCFACE, KINDS, Kind, Size, batch, expected, first_centres, head_of, step_of
from bench.gpu.report import Report, Setting
from recognition.engines.torch import shard as torch_shard
from recognition.engines.torch.imports import torch
from recognition.engines.torch.triton.choice import why_not
from recognition.head.sharded import ShardedHead

PLAIN_LR, MOMENTUM, DECAY = 0.001, 0.9, 0.0005


def _usable(setting: Setting, report: Report, dim: int) -> bool:
    """Whether the kernels can be used here; on a CPU they run in Triton's interpreter."""
    why = "" if importlib.util.find_spec("triton") else "Triton is not installed"
    if not setting.gpu:
        os.environ["TRITON_INTERPRET"] = "1"  # nothing has imported Triton yet
    elif not why:
        why = why_not(setting.device, dim, False, True)
    report.true("the kernels can be used", not why, why)
    return not why


def kernels_against_float64(setting: Setting, report: Report) -> None:
    """Products of float16: 1e-3 to 3e-3 of the norms of gradients. Of bfloat16, with W kept so, four times that."""
    size = Size(20_000, 512, 512) if setting.gpu else Size(300, 32, 64)
    if not _usable(setting, report, size.dim):
        return
    from recognition.engines.torch.triton.shard import TritonShard

    names = ("arcface", "combined", "three sub-centres", "sampled", "sampled, three sub-centres, AdamW")
    for name, low in [*((name, False) for name in names), ("arcface", True), ("sampled", True)]:
        kind = KINDS[name]
        title, allowed = f"{name}, W in 16 bits" if low else name, 0.02 if low else 0.005
        w = torch.from_numpy(first_centres(size, kind)).bfloat16().float().numpy()  # both kinds of W hold the same
        bias, build = np.zeros(len(w), np.float32), partial(TritonShard, setting.device, in_16_bits=low)
        (found, classes), (again, _) = (step_of(head_of(build, size, kind), size, kind, w, bias) for _ in range(2))
        wanted = expected(setting, size, kind, w, bias, classes)
        report.close(f"{title}: loss", found.loss, wanted.loss, 1e-3)
        report.close(f"{title}: gradient by x", found.d_x, wanted.d_x, allowed, "norm")
        report.close(f"{title}: gradient by W", found.d_w, wanted.d_w, allowed, "norm")
        report.true(f"{title}: the same bits twice", found.bits() == again.bits())


Step = Callable[[torch.Tensor, np.ndarray, np.ndarray], float]  # of features, labels, and labels of the next step


def _plain(setting: Setting, size: Size, ratio: float) -> Step:
    """A step of the plain head: autograd over dense logits; sampled, of ``ratio`` of W, with a dense gradient."""
    w = torch.nn.Parameter(torch.empty(size.classes, size.dim, device=setting.device).normal_(std=0.01))
    optimiser = torch.optim.SGD([w], PLAIN_LR, MOMENTUM, weight_decay=DECAY)
    normalised = torch.nn.functional.normalize

    def step(x: torch.Tensor, labels: np.ndarray, coming: np.ndarray) -> float:
        features = x.detach().requires_grad_()
        y, centres = torch.from_numpy(labels).to(setting.device), w
        if ratio < 1:
            draw = torch.rand(size.classes, device=setting.device)
            draw[y] = 2
            rows = draw.topk(round(ratio * size.classes)).indices.sort().values
            y, centres = torch.searchsorted(rows, y), w[rows]
        cosines = (normalised(features) @ normalised(centres).T).clamp(-1, 1)
        angle = cosines.gather(1, y[:, None]).arccos() + ARCFACE.m2
        loss = torch.nn.functional.cross_entropy(cosines.scatter(1, y[:, None], angle.cos()) * ARCFACE.s, y)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        return float(loss.detach())

    return step


def drawn_on_device(build: Any, size: Size, kind: Kind) -> ShardedHead:
    """A head whose W is drawn on the device: 10,000,000 classes take a minute on the host."""
    with mock.patch.object(torch_shard, "initial_pieces", lambda *place: ()):
        head = head_of(build, size, kind)
    shard: Any = head.shards[0]
    shard._centres[0].normal_(std=0.01)
    if hasattr(shard, "_renew"):
        shard._renew(0, size.classes)
    return head


def _ours(build: Any, size: Size, ratio: float, low: bool) -> Step:
    """A step of our head."""
    head = drawn_on_device(build, size, Kind(ARCFACE, {"in_16_bits": low}, ratio))

    def step(x: torch.Tensor, labels: np.ndarray, coming: np.ndarray) -> float:
        if ratio < 1:
            head.expect(coming)
        result = head.forward_backward(x if x.device.type == "cuda" else x.numpy(), labels)
        head.step(PLAIN_LR)
        assert head.finite  # waits for the device
        return result.loss

    return step


def card_peaks(setting: Setting, report: Report) -> float:
    """FLOP/s of a large product in float16, and bytes a second of a large copy: the card's own limits."""
    side = 8192 if setting.gpu else 256
    a, b = (torch.randn(side, side, device=setting.device).half() for _ in range(2))
    source = torch.randn(side * side * (16 if setting.gpu else 1), device=setting.device)
    target = torch.empty_like(source)

    def seconds(work: Callable[[], Any]) -> float:
        found = []
        for _ in range(6):
            start = time.perf_counter()
            work()
            if setting.gpu:
                torch.cuda.synchronize(setting.device)
            found.append(time.perf_counter() - start)
        return float(np.median(found[1:]))

    peak = 2 * side**3 / seconds(lambda: torch.mm(a, b))
    report.measured("a product of float16", peak / 1e12, "TFLOP/s")
    report.measured("a copy", 8 * source.numel() / seconds(lambda: target.copy_(source)) / 1e9, "GB/s")
    return peak


def kernels_cost(setting: Setting, report: Report) -> None:
    """Time of a step with the host's part, peak memory, and 6 B C D operations by the time and the card's peak."""
    large, dim = ((1_000_000, 10_000_000), 512) if setting.gpu else ((300, 600), 64)
    if not _usable(setting, report, dim):
        return
    from recognition.engines.torch.triton.shard import TritonShard

    peak, device = card_peaks(setting, report), setting.device
    kernels, chunks = partial(TritonShard, device), partial(torch_shard.TorchShard, device)
    for classes, ratio in ((large[0], 1.0), (large[0], 0.1), (large[1], 1.0), (large[1], 0.1)):
        size = Size(classes, 1024 if setting.gpu else 32, dim)
        makers: dict[str, Callable[[], Any]] = {
            "kernels": partial(_ours, kernels, size, ratio, False),
            "kernels, W in 16 bits": partial(_ours, kernels, size, ratio, True),
            **_others(setting, size, ratio, chunks)}
        for name, make in makers.items():
            title = f"{name}, {classes:,} classes" + (f", sampled {ratio:g}" if ratio < 1 else "")
            try:
                _measure(setting, report, title, make, size, ratio, peak)
            except torch.OutOfMemoryError:
                report.true(title, True, "does not fit into the card's memory")
            if setting.gpu:
                gc.collect()
                torch.cuda.empty_cache()


def _others(setting: Setting, size: Size, ratio: float, chunks: Any) -> dict[str, Callable[[], Any]]:
    """Our chunks, and PartialFC_V2 itself where its files are at hand, else the plain head."""
    if size.classes > 1_000_000:  # more than a second a step, or more than fits
        return {}
    other = {"PartialFC_V2": partial(theirs.head_step, setting.arcface_torch, size.classes, ratio)
             } if setting.arcface_torch else {"plain PyTorch": partial(_plain, setting, size, ratio)}
    return {"chunks in float32": partial(_ours, chunks, size, ratio, False), **other}


def _wait(setting: Setting) -> None:
    if setting.gpu:
        torch.cuda.synchronize(setting.device)


def _measure(setting: Setting, report: Report, title: str, make: Callable[[], Any], size: Size, ratio: float,
             peak: float) -> None:
    if setting.gpu:
        torch.cuda.reset_peak_memory_stats(setting.device)
    step, (warm, runs) = make(), (3, 10) if setting.gpu else (0, 1)
    drawn = [batch(size, number) for number in range(warm + runs + 1)]
    features = [torch.from_numpy(x).to(setting.device) for x, _ in drawn]
    start = 0.0
    for number, ((_, labels), (_, coming)) in enumerate(zip(drawn, drawn[1:])):
        if number == warm:
            _wait(setting)
            start = time.perf_counter()
        step(features[number], labels, coming)
    _wait(setting)
    seconds = (time.perf_counter() - start) / runs
    report.measured(title, 1000 * seconds, "ms")
    if setting.gpu:
        report.measured(f"{title}: peak memory", torch.cuda.max_memory_allocated(setting.device) / 1e9, "GB")
        share = 6 * size.batch * size.classes * ratio * size.dim / seconds / peak
        report.measured(f"{title}: share of the card's peak", 100 * share, "%")
