# SPDX-License-Identifier: Apache-2.0
"""The head as Triton kernels: against float64, and time, memory and share of the card's peak beside others.

The others are our chunks in float32 and a plain PyTorch head of our own that does what the public PartialFC_V2 does:
normalised copies, logits of B x C in float32, autograd, a dense gradient and a dense optimiser.
"""
from __future__ import annotations

import gc
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

from bench.gpu import theirs
from bench.gpu.heads import ARCFACE, KINDS, Kind, Size, batch, expected, first_centres, head_of, step_of
from bench.gpu.report import Report, Setting, judged, kernels_usable
from recognition.engines.torch import shard as torch_shard
from recognition.engines.torch.imports import torch
from recognition.engines.torch.triton.choice import why_not
from recognition.head.sharded import ShardedHead

PLAIN_LR, MOMENTUM, DECAY = 0.001, 0.9, 0.0005
DATASHEET = {"H100 80GB HBM3": 989, "H200": 989, "A100": 312}  # TFLOP/s of dense float16, by what is in a card's name
KERNELS, IN_16_BITS, OTHER = "kernels", "kernels, W in 16 bits", "PartialFC_V2"


class Case(NamedTuple):
    """A head that is timed, and what the issue of the GPU engine asks of it."""

    classes: int
    ratio: float = 1.0  # sampled
    milliseconds: float | None = None  # at most, of the kernels
    gigabytes: float | None = None

    def __str__(self) -> str:
        return f"{self.classes:,} classes" + (f", sampled {self.ratio:g}" if self.ratio < 1 else "")


CASES = (Case(1_000_000, 1, 20, 6), Case(1_000_000, 0.1), Case(10_000_000), Case(10_000_000, 0.1, 20),
         Case(29_000_000), Case(29_000_000, 0.1))
SMALL = (Case(300, 1, 20, 6), Case(600, 0.1))
MOST_OF_FLOAT32 = 10_000_000  # classes: beyond, W and momentum in float32 exceed a card of 80 GB
MOST_OF_OTHERS = 1_000_000  # classes: beyond, the others take more than a second a step, or more than fits


def kernels_against_float64(setting: Setting, report: Report) -> None:
    """Products of float16: 1e-3 to 3e-3 of the norms of gradients. Of bfloat16, with W kept so, four times that."""
    size = Size(20_000, 512, 512) if setting.gpu else Size(300, 32, 64)
    if not kernels_usable(setting, report, partial(why_not, setting.device, size.dim, False, True)):
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
    side, gpu = 8192 if setting.gpu else 256, setting.gpu
    a, b = (torch.randn(side, side, device=setting.device).half() for _ in range(2))
    source = torch.randn(side * side * (16 if gpu else 1), device=setting.device)
    target = torch.empty_like(source)

    def seconds(work: Callable[[], Any]) -> float:
        found = []
        for _ in range(13 if gpu else 3):
            start = time.perf_counter()
            work()
            _wait(setting)
            found.append(time.perf_counter() - start)
        return float(np.median(found[3 if gpu else 1:]))

    peak, copy = 2 * side**3 / seconds(lambda: torch.mm(a, b)), seconds(lambda: target.copy_(source))
    moved = 8 * source.numel() / copy / 1e9
    report.measured("a product of float16", peak / 1e12, "TFLOP/s")
    report.measured("a copy", moved, "GB/s")
    card = torch.cuda.get_device_name(setting.device) if gpu else "CPU"
    memory = torch.cuda.get_device_properties(setting.device).total_memory / 1e9 if gpu else 0.0
    datasheet = next((most for name, most in DATASHEET.items() if name in card), 0)
    report.row("The card's limits", {
        "card": card, "memory, GB": memory, f"product of {side} x {side}, float16, TFLOP/s": peak / 1e12,
        "of the datasheet's": f"{peak / 1e10 / datasheet:.0f} % of {datasheet}" if datasheet else "",
        "copy, GB/s": f"{moved:.0f}"})
    return peak


def kernels_cost(setting: Setting, report: Report) -> None:
    """Time of a step with the host's part, peak memory, and 6 B C D operations by the time and the card's peak."""
    dim = 512 if setting.gpu else 64
    if not kernels_usable(setting, report, partial(why_not, setting.device, dim, False, True)):
        return
    from recognition.engines.torch.triton.shard import TritonShard

    peak, device = card_peaks(setting, report), setting.device
    kernels, chunks = partial(TritonShard, device), partial(torch_shard.TorchShard, device)
    for case in CASES if setting.gpu else SMALL:
        size, found = Size(case.classes, 1024 if setting.gpu else 32, dim), dict[str, tuple[float, float]]()
        usual = {KERNELS: partial(_ours, kernels, size, case.ratio, False)}
        makers: dict[str, Callable[[], Any]] = {
            **(usual if case.classes <= MOST_OF_FLOAT32 else {}),
            IN_16_BITS: partial(_ours, kernels, size, case.ratio, True),
            **(_others(setting, size, case.ratio, chunks) if case.classes <= MOST_OF_OTHERS else {})}
        for name, make in makers.items():
            try:
                found[name] = _measure(setting, make, size)
            except torch.OutOfMemoryError:
                report.true(f"{name}, {case}", True, "does not fit into the card's memory")
            except Exception as error:  # the other heads still tell something
                report.true(f"{name}, {case}", False, f"{type(error).__name__}: {error}")
            if setting.gpu:  # behind the error, whose traceback holds tensors
                gc.collect()
                torch.cuda.empty_cache()
        for name, (seconds, memory) in found.items():
            _tell(report, case, size, name, seconds, memory, found.get(OTHER), peak)


def _others(setting: Setting, size: Size, ratio: float, chunks: Any) -> dict[str, Callable[[], Any]]:
    """Our chunks, and PartialFC_V2 itself where its files and a GPU are at hand, else the plain head."""
    other = {OTHER: partial(theirs.head_step, setting.arcface_torch, size.classes, ratio)
             } if setting.arcface_torch and setting.gpu else {"plain PyTorch": partial(_plain, setting, size, ratio)}
    return {"chunks in float32": partial(_ours, chunks, size, ratio, False), **other}


def _wait(setting: Setting) -> None:
    if setting.gpu:
        torch.cuda.synchronize(setting.device)


def _measure(setting: Setting, make: Callable[[], Any], size: Size) -> tuple[float, float]:
    """Seconds of a step among others, and the peak of memory, GB."""
    if setting.gpu:
        torch.cuda.reset_peak_memory_stats(setting.device)
    step, (warm, runs) = make(), (0, 1)
    if setting.gpu:
        warm, runs = (3, 10) if size.classes <= MOST_OF_FLOAT32 else (1, 3)
    drawn = [batch(size, number) for number in range(warm + runs + 1)]
    features = [torch.from_numpy(x).to(setting.device) for x, _ in drawn]
    start = time.perf_counter()
    for number, ((_, labels), (_, coming)) in enumerate(zip(drawn, drawn[1:])):
        if number == warm:
            _wait(setting)
            start = time.perf_counter()
        step(features[number], labels, coming)
    _wait(setting)
    seconds = (time.perf_counter() - start) / runs
    return seconds, torch.cuda.max_memory_allocated(setting.device) / 1e9 if setting.gpu else 0.0


def _tell(report: Report, case: Case, size: Size, name: str, seconds: float, memory: float,
          other: tuple[float, float] | None, peak: float) -> None:
    """Report what a head takes, and add a row to the table.

    :param other: seconds and memory of PartialFC_V2, if it is measured; ``peak``: FLOP/s of the card's product.
    """
    share = 6 * size.batch * size.classes * case.ratio * size.dim / seconds / peak
    title, usual = f"{name}, {case}", name == KERNELS
    report.measured(title, 1000 * seconds, "ms")
    report.measured(f"{title}: peak memory", memory, "GB")
    report.measured(f"{title}: share of the card's peak", 100 * share, "%")
    cells = {"head": str(case), "way": name,
             "ms": judged(1000 * seconds, most=case.milliseconds if usual else None),
             "peak GB": judged(memory, most=case.gigabytes if usual else None),
             "share of the product's peak": f"{100 * share:.0f} %"}
    if other and name != OTHER:
        cells |= {"times as fast as PartialFC_V2": f"{other[0] / seconds:.1f}",
                  "of its peak": f"{memory / other[1]:.2f}"}
    report.row(f"The head alone: {size.batch:,} features of {size.dim} numbers, SGD with momentum", cells)
