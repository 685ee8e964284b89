# SPDX-License-Identifier: Apache-2.0
"""Checks of the head: its kinds against float64, states across devices, bits, memory and time."""
from __future__ import annotations

import dataclasses
import time
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from bench.gpu.report import Report, Setting
from recognition.engines.cpu.shard import CpuShard
from recognition.engines.torch.imports import torch
from recognition.engines.torch.shard import TorchShard
from recognition.head.margin import Margin
from recognition.head.sampling import ClassSampler
from recognition.head.shard import ShardState
from recognition.head.sharded import ShardedHead
from recognition.optim.adamw import AdamW
from recognition.processes.communicator import SingleProcess

ARCFACE, SOFTMAX = Margin(64, 1, 0.5), Margin(normalised=False)


class Size(NamedTuple):
    classes: int
    batch: int
    dim: int


class Kind(NamedTuple):
    """A head: its margin, the options of its shard, its sample, its optimiser."""

    margin: Margin
    options: dict[str, Any] = {}  # noqa: RUF012 - never changed
    ratio: float = 1.0
    adamw: AdamW | None = None


KINDS = {
    "arcface": Kind(ARCFACE), "cosface": Kind(Margin(64, 1, 0, 0.35)), "combined": Kind(Margin(64, 1, 0.3, 0.2)),
    "softmax with a bias": Kind(SOFTMAX, {"with_bias": True}),
    "straight through": Kind(dataclasses.replace(ARCFACE, straight_through=True)),
    "three sub-centres": Kind(ARCFACE, {"sub_centres": 3}), "a filter of conflicts": Kind(ARCFACE, {"ceiling": 6.4}),
    "sampled": Kind(ARCFACE, ratio=0.1), "W on the host": Kind(ARCFACE, {"on_host": True}),
    "sampled, W on the host": Kind(ARCFACE, {"on_host": True}, 0.1),
    "sampled, three sub-centres, AdamW": Kind(ARCFACE, {"sub_centres": 3}, 0.1, AdamW()),
}


def small_or_large(setting: Setting) -> Size:
    return Size(80_000, 512, 512) if setting.gpu else Size(3_000, 32, 64)


def make(setting: Setting, size: Size, kind: Kind, on_cpu: bool = False) -> ShardedHead:
    options = {name: value for name, value in kind.options.items() if not (on_cpu and name == "on_host")}
    build: Any = CpuShard if on_cpu else partial(TorchShard, setting.device)
    return head_of(build, size, kind._replace(options=options))


def head_of(build: Any, size: Size, kind: Kind) -> ShardedHead:
    """A head of one shard, which ``build`` makes."""
    shard = build(0, size.classes, size.dim, normalised=kind.margin.normalised, scale=kind.margin.scale, **kind.options)
    return ShardedHead([shard], kind.margin, SingleProcess(), sampler=ClassSampler(kind.ratio, 3), adamw=kind.adamw)


def batch(size: Size, step: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(step)
    x = random.standard_normal((size.batch, size.dim), dtype=np.float32)
    return x, random.integers(0, size.classes, size.batch)


def reference(setting: Setting, kind: Kind, state: ShardState, x: np.ndarray, labels: np.ndarray
              ) -> tuple[float, np.ndarray, np.ndarray]:
    """The loss and its gradients by x and W, by autograd over a dense float64 graph; ``labels`` are rows of ``state``.
    """
    x64, w, bias = (torch.tensor(a, dtype=torch.float64, device=setting.device) for a in (x, state.centres, state.bias))
    for leaf in (x64, w):
        leaf.requires_grad_()
    margin, rows, y = kind.margin, torch.arange(len(x), device=setting.device), torch.tensor(labels).to(setting.device)
    units = [a / (a.square().sum(1, keepdim=True) + 1e-10).sqrt() if margin.normalised else a for a in (x64, w)]
    z = (units[0] @ units[1].T + bias).view(len(x), -1, kind.options.get("sub_centres", 1)).amax(2)
    target = t = z[rows, y]
    if margin.normalised:
        target = margin.s * (torch.cos(margin.m1 * torch.acos(t) + margin.m2) - margin.m3)
        if margin.straight_through:
            target = margin.s * t + (target - margin.s * t).detach()
    z = (z * margin.scale).masked_fill(z * margin.scale > kind.options.get("ceiling", np.inf), -np.inf)
    z = z.index_put((rows, y), target)
    loss = (z.logsumexp(1) - target).mean()
    d_x, d_w = torch.autograd.grad(loss, (x64, w))
    return float(loss.detach()), d_x.cpu().numpy(), d_w.cpu().numpy()


def first_centres(size: Size, kind: Kind) -> np.ndarray:
    """Class centres of norms near 1, float32 (rows, D)."""
    rows = size.classes * kind.options.get("sub_centres", 1)
    random = np.random.default_rng(7)
    return random.standard_normal((rows, size.dim), dtype=np.float32) / np.float32(np.sqrt(size.dim))


class Gradients(NamedTuple):
    """What a step came to: its loss, its gradients by x, and by the rows of W that took part."""

    loss: float
    d_x: np.ndarray
    d_w: np.ndarray

    def bits(self) -> bytes:
        return self.d_x.tobytes() + self.d_w.tobytes()


def step_of(head: ShardedHead, size: Size, kind: Kind, w: np.ndarray, bias: np.ndarray) -> tuple[Gradients, np.ndarray]:
    """A step from these centres, and the classes that took part. The gradient by W is in the first moment after it."""
    head.shards[0].load(ShardState(w, np.zeros_like(w), bias, np.zeros_like(bias)))
    x, labels = batch(size)
    drawn = head.sampler(labels, 0, 0, size.classes)
    classes = np.arange(size.classes) if drawn is None else drawn
    head.wd = 0.0
    result = head.forward_backward(x, labels)
    head.step(1.0)
    moment = head.shards[0].state().momentum[rows_of(classes, kind)]
    d_w = moment / (1 - np.float32(kind.adamw.beta1)) if kind.adamw else -moment
    return Gradients(result.loss, result.d_features, d_w), classes


def rows_of(classes: np.ndarray, kind: Kind) -> np.ndarray:
    """The rows of W of these classes."""
    k = kind.options.get("sub_centres", 1)
    return (classes[:, None] * k + np.arange(k)).ravel()


def expected(setting: Setting, size: Size, kind: Kind, w: np.ndarray, bias: np.ndarray,
             classes: np.ndarray) -> Gradients:
    """What :func:`step_of` comes to in float64."""
    rows, (x, labels) = rows_of(classes, kind), batch(size)
    before = ShardState(w[rows], w[:0], bias[rows], bias[:0])
    return Gradients(*reference(setting, kind, before, x, np.searchsorted(classes, labels)))


def kinds_against_float64(setting: Setting, report: Report) -> None:
    """Logits reach 64 and lose 4e-6 to float32: 2e-5.

    Of the 41 million cosines on a GPU a few lie within rounding (6e-8) of the filter's threshold, or of that of another
    sub-centre, and fall on the other side: then a class with p up to 1e-3 is off, reckoned, so 2e-3 is allowed.
    """
    size = small_or_large(setting)
    for name, kind in KINDS.items():
        head, w = make(setting, size, kind), first_centres(size, kind)
        bias = np.random.default_rng(8).standard_normal(len(w), dtype=np.float32) * np.float32(head.shards[0].with_bias)
        found, classes = step_of(head, size, kind, w, bias)
        wanted = expected(setting, size, kind, w, bias, classes)
        limit = 2e-3 if setting.gpu and kind.options.keys() & {"ceiling", "sub_centres"} else 2e-5
        report.close(f"{name}: loss", found.loss, wanted.loss, 1e-5)
        report.close(f"{name}: gradient by x", found.d_x, wanted.d_x, limit)
        report.close(f"{name}: gradient by W", found.d_w, wanted.d_w, limit)


def states_and_bits(setting: Setting, report: Report) -> None:
    """Six steps on the device, three there after three on the CPU, and the first again: bits, and 1e-4 of W (momentum
    at 0.01 amplifies 1e-6 a step)."""
    size = small_or_large(setting)._replace(classes=5_000)
    for name in ("arcface", "sampled, W on the host", "sampled, three sub-centres, AdamW"):
        kind = KINDS[name]._replace(adamw=AdamW(eps=0.1) if KINDS[name].adamw else None)
        whole, again, ended, begun = (make(setting, size, kind, on_cpu) for on_cpu in (False, False, False, True))
        results = []
        for head, first, last in ((whole, 0, 6), (again, 0, 6), (begun, 0, 3), (ended, 3, 6)):
            if head is ended:
                head.shards[0].load(begun.shards[0].state())
                head.steps = 3
            for step in range(first, last):
                result = head.forward_backward(*batch(size, step))
                head.step(0.01)
            results.append((result.d_features, *head.shards[0].state()))
        report.true(f"{name}: the same bits twice", all(
            a.tobytes() == b.tobytes() for a, b in zip(results[0], results[1])))
        report.close(f"{name}: W of three steps on the CPU and three here", results[3][1], results[0][1], 1e-4)


def memory_and_time(setting: Setting, report: Report) -> None:
    """A million classes: peak memory beside W and its moments at most a gigabyte, whatever their number."""
    size = Size(1_000_000, 1024, 512) if setting.gpu else Size(20_000, 64, 128)
    for name, ratio, adamw in (("full", 1.0, None), ("sampled 0.1", 0.1, None), ("AdamW", 1.0, AdamW())):
        if setting.gpu:
            torch.cuda.reset_peak_memory_stats(setting.device)
        head = make(setting, size, Kind(ARCFACE, ratio=ratio, adamw=adamw))
        seconds = []
        for step in range(6):
            x, labels = batch(size, step)
            start = time.perf_counter()
            head.forward_backward(x, labels)
            head.step(0.001)
            assert head.finite  # waits for the device
            seconds.append(time.perf_counter() - start)
        report.measured(f"{name}: a step of {size.classes} classes, B = {size.batch}, D = {size.dim}",
                        1000 * min(seconds[1:]), "ms")
        if setting.gpu:
            stored = 4 * size.classes * size.dim * (3 if adamw else 2)
            peak = torch.cuda.max_memory_allocated(setting.device)
            report.measured(f"{name}: peak memory beside W and its moments", (peak - stored) / 2**20, "MB", 1024)
        del head
