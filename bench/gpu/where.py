# SPDX-License-Identifier: Apache-2.0
"""Where the time of a step goes: kernels by groups, and the gaps in which the device has nothing to do.

Two profiles: one sees the device alone, for kernels and gaps. The other sees the host, too, and tells in which phase of
the loop the host was late; it slows the host, so only the shares of phases are taken from it.
"""
from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from bench.gpu import whole
from bench.gpu.report import Report, Setting
from recognition.engines.torch.imports import torch

CASES = (whole.Case("r50", 128, 1_000_000), whole.Case("r100", 128, 100_000))
STEPS = 12
LAUNCH = 5.0  # microseconds: shorter gaps lie between kernels that were launched together
# By what is in a kernel's name, the first that fits.
GROUPS = {
    "head: logits": ("exponentials", "slopes", "advance", "collect"), "head: update": ("update", "renew"),
    "batch norm, PReLU, sums": ("measure", "normalise", "sum_gradients", "differentiate", "merge_"),
    "convolutions": ("fprop", "dgrad", "wgrad", "conv", "cudnn", "implicit"),
    "other products": ("gemm", "nvjet", "cublas", "splitK"), "optimiser, checks": ("multi_tensor", "lpnorm", "sgd"),
    "copies": ("Mem", "copy"),
}
OTHERS = "others"
IN_GRAPHS, HOST, BETWEEN = "gaps below 5 us, between kernels", "gaps in which the host was late", "between phases"
PHASE = "phase: "  # begins the names of phases in a profile


class Span(NamedTuple):
    """Something with a name that takes time, microseconds."""

    name: str
    start: float
    end: float


def group_of(kernel: str) -> str:
    """The group of a kernel by its name."""
    return next((group for group, words in GROUPS.items() if any(word in kernel for word in words)), OTHERS)


def grouped(kernels: Iterable[Span]) -> dict[str, float]:
    """Sums of the times of kernels by GROUPS, with the rest last."""
    sums = dict.fromkeys([*GROUPS, OTHERS], 0.0)
    for kernel in kernels:
        sums[group_of(kernel.name)] += kernel.end - kernel.start
    return sums


def gaps(kernels: Sequence[Span]) -> list[tuple[float, float]]:
    """Start and end of each time in which no kernel ran, from the first kernel's start to the last one's end."""
    found, busy_until = [], np.inf
    for _, start, end in sorted(kernels, key=lambda kernel: kernel.start):
        if start > busy_until:
            found.append((busy_until, start))
        busy_until = end if busy_until == np.inf else max(busy_until, end)
    return found


def late_by_phase(idle: Sequence[tuple[float, float]], phases: Sequence[Span]) -> dict[str, float]:
    """The gaps of LAUNCH or longer, by the phase that the host was in as it launched the kernel that ended each:
    LAUNCH before it began."""
    phases = sorted(phases, key=lambda phase: phase.start)
    starts, found = [phase.start for phase in phases], dict[str, float]()
    for start, end in idle:
        if end - start >= LAUNCH:
            place = bisect_right(starts, end - LAUNCH) - 1
            name = phases[place].name if place >= 0 and end - LAUNCH <= phases[place].end else BETWEEN
            found[name] = found.get(name, 0.0) + end - start
    return found


def parts_of(kernels: Sequence[Span]) -> dict[str, float]:
    """Microseconds of groups of kernels and of both kinds of gaps: the whole time, if no kernels run side by side."""
    idle = [end - start for start, end in gaps(kernels)]
    return {**grouped(kernels), IN_GRAPHS: sum(gap for gap in idle if gap < LAUNCH),
            HOST: sum(gap for gap in idle if gap >= LAUNCH)}


def profiled(setting: Setting, step: whole.Step, steps: int, with_host: bool) -> tuple[list[Span], list[Span]]:
    """Kernels and phases of steps; on CPUs operators stand in for kernels."""
    kinds = torch.profiler.ProfilerActivity
    wanted = [*([kinds.CUDA] if setting.gpu else []), *([kinds.CPU] if with_host or not setting.gpu else [])]
    with torch.profiler.profile(activities=wanted) as profile:
        for _ in range(steps):
            step()
        whole.wait(setting)
    return spans_of(profile.events(), setting.gpu)


def spans_of(events: Iterable[Any], gpu: bool) -> tuple[list[Span], list[Span]]:
    """Kernels and phases among a profile's events. A phase is shown on the device, too, where it is no kernel."""
    kernels, phases = list[Span](), list[Span]()
    for event in events:
        on_device = event.device_type == torch.autograd.DeviceType.CUDA
        span = Span(event.name.removeprefix(PHASE), event.time_range.start, event.time_range.end)
        if event.name.startswith(PHASE):
            phases += [] if on_device else [span]
        elif on_device == gpu:
            kernels.append(span)
    return kernels, phases


def where(setting: Setting, report: Report) -> None:
    """Where a step's time goes."""
    steps = STEPS if setting.gpu else 2
    for case in CASES if setting.gpu else whole.SMALL:
        step, *_ = whole.warmed_up(setting, lambda case=case: whole.our_step(  # type: ignore[misc]
            setting, case, phase=lambda name: torch.profiler.record_function(PHASE + name)))
        spent = float(np.median(whole.in_turn(setting, {"": step})[""]))
        kernels, _ = profiled(setting, step, steps, with_host=False)
        both = profiled(setting, step, steps, with_host=True)
        del step
        whole.free(setting)
        if kernels:
            tell(report, f"{case}", spent, kernels, late_by_phase(gaps(both[0]), both[1]), steps)
        else:
            report.true(f"{case}: kernels were seen", False, "the profiler saw none")


def tell(report: Report, title: str, spent: float, kernels: Sequence[Span], late: dict[str, float],
         steps: int) -> None:
    """Report the parts of a step and make their table.

    :param spent: milliseconds of a step without the profiler.
    :param late: gaps by phase in the other profile; their shares of HOST are told.
    """
    whole_step = (max(kernel.end for kernel in kernels) - min(kernel.start for kernel in kernels)) / steps / 1e3
    parts = {name: part / steps / 1e3 for name, part in parts_of(kernels).items()}
    lost = sum(late.values()) or 1.0
    shares = {f"- of these in the phase {name}": parts[HOST] * part / lost
              for name, part in sorted(late.items(), key=lambda item: -item[1])}
    report.measured(f"{title}: a step", spent, f"ms, {whole_step:.2f} ms with the profiler")
    for name, part in {**parts, **shares}.items():
        share = f"{100 * part / whole_step:.1f} %"
        report.measured(f"{title}: {name}", part, f"ms, {share}")
        report.row(f"Where a step goes: {title}; {spent:.1f} ms, {whole_step:.1f} ms with the profiler",
                   {"part": name, "ms": f"{part:.2f}", "of the step": share})
