# SPDX-License-Identifier: Apache-2.0
"""Pooling by MXNet's rules: where windows end, and what a mean is divided by."""
from __future__ import annotations

import math
from typing import Any, Callable

from recognition.engines.torch.imports import torch
from recognition.engines.torch.operators.layers import as_laid_out, channels_first

F = torch.nn.functional
_MAX: dict[int, Callable[..., torch.Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_MEAN: dict[int, Callable[..., torch.Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _pooling(values: Any, data: torch.Tensor) -> torch.Tensor:
    layout = values.layout
    data = channels_first(data, layout)
    found = _global(values, data) if values.global_pool else _local(values, data)
    return as_laid_out(found, layout)


def _global(values: Any, data: torch.Tensor) -> torch.Tensor:
    axes = list(range(2, data.ndim))
    if values.pool_type == "avg":
        return data.mean(axes, keepdim=True)
    if values.pool_type == "max":
        return _MAX[len(axes)](data, data.shape[2:])
    return _powers_summed(values, data, lambda powers: powers.sum(axes, keepdim=True))


def _local(values: Any, data: torch.Tensor) -> torch.Tensor:
    kernel, rank = values.kernel, len(values.kernel)
    stride, pad = values.stride or (1,) * rank, values.pad or (0,) * rank
    ends = _ends(values.pooling_convention, data.shape[2:], kernel, stride, pad)
    plain = ends == pad and all(2 * edge <= size for edge, size in zip(pad, kernel))  # as PyTorch's own operators do
    if values.pool_type == "max":
        if plain:
            return _MAX[rank](data, kernel, stride, pad)
        return _MAX[rank](_padded(data, pad, ends, torch.finfo(data.dtype).min), kernel, stride)
    if values.pool_type == "avg":
        inside = values.count_include_pad is None or values.count_include_pad
        if plain:
            return _MEAN[rank](data, kernel, stride, pad, count_include_pad=inside)
        total = _MEAN[rank](_padded(data, pad, ends, 0.0), kernel, stride) * math.prod(kernel)
        return total / _counts(data, kernel, stride, pad, total.shape[2:], inside)
    return _powers_summed(values, data, lambda powers: _MEAN[rank](_padded(powers, pad, ends, 0.0), kernel, stride)
                          * math.prod(kernel))


def _ends(convention: str, sides: Any, kernel: Any, stride: Any, pad: Any) -> tuple[int, ...]:
    """The padding behind each side, so that windows end where the convention says."""
    if convention == "valid":
        return tuple(pad)
    ends = []
    for side, size, step, edge in zip(sides, kernel, stride, pad):
        windows = -(-side // step) if convention == "same" else -(-(side + 2 * edge - size) // step) + 1
        ends.append(max((windows - 1) * step + size - side - edge, 0))
    return tuple(ends)


def _padded(data: torch.Tensor, pad: Any, ends: Any, value: float) -> torch.Tensor:
    widths = [width for pair in reversed(list(zip(pad, ends))) for width in pair]
    return F.pad(data, widths, value=value)


def _counts(data: torch.Tensor, kernel: Any, stride: Any, pad: Any, sizes: Any, inside: bool) -> torch.Tensor:
    """The numbers of each window that count: those on the maps, with ``inside`` also those in the padding."""
    counts = data.new_ones(())
    for side, size, step, edge, windows in zip(data.shape[2:], kernel, stride, pad, sizes):
        starts = torch.arange(windows, device=data.device) * step - edge
        ends = (starts + size).clamp(max=side + edge)
        if not inside:
            starts, ends = starts.clamp(min=0), ends.clamp(max=side)
        counts = counts[..., None] * (ends - starts).to(data.dtype)
    return counts


def _powers_summed(values: Any, data: torch.Tensor, total: Any) -> torch.Tensor:
    """Sums of windows, or for ``lp`` the roots of sums of powers."""
    power = values.p_value if values.pool_type == "lp" else 1
    return total(data) if power == 1 else total(data ** power) ** (1 / power)


def _pooling_v1(values: Any, data: torch.Tensor) -> torch.Tensor:
    """The pooling of old files: the padding is zeros for the maximum, too, a mean is divided by the kernel's size, and
    all of several largest numbers have the gradient."""
    kernel, rank = (tuple(data.shape[2:]), data.ndim - 2) if values.global_pool else (values.kernel, len(values.kernel))
    stride, pad = values.stride or (1,) * rank, values.pad or (0,) * rank
    if values.global_pool:
        stride, pad = (1,) * rank, (0,) * rank
    ends = _ends(values.pooling_convention, data.shape[2:], kernel, stride, pad)
    if values.pool_type != "max":
        mean = _MEAN[rank](_padded(data, pad, ends, 0.0), kernel, stride)
        return mean if values.pool_type == "avg" else mean * math.prod(kernel)
    padded = _padded(data, pad, pad, 0.0)
    padded = _padded(padded, (0,) * rank, [end - edge for end, edge in zip(ends, pad)], torch.finfo(data.dtype).min)
    windows = padded
    for axis, (size, step) in enumerate(zip(kernel, stride), start=2):
        windows = windows.unfold(axis, size, step)
    inner = list(range(-rank, 0))
    largest = windows.detach().amax(inner, keepdim=True)
    moves = torch.where(windows.detach() == largest, windows - windows.detach(), 0.0)
    return largest.sum(inner) + moves.sum(inner)  # the second sum is zero, and has the gradient


def _adaptive(values: Any, data: torch.Tensor) -> torch.Tensor:
    sizes = values.output_size or (1,)
    return F.adaptive_avg_pool2d(data, (sizes[0], sizes[-1]))


def _upsampling(values: Any, *inputs: torch.Tensor) -> torch.Tensor:
    data, scale = inputs[0], values.scale
    if values.sample_type == "bilinear":
        return F.conv_transpose2d(data, inputs[1], None, scale, scale // 2, groups=data.shape[1])
    sizes = [side * scale for side in data.shape[2:]]
    grown = [item.repeat_interleave(sizes[0] // item.shape[2], 2).repeat_interleave(sizes[1] // item.shape[3], 3)
             for item in inputs]
    return torch.cat(grown, 1) if values.multi_input_mode == "concat" else sum(grown[1:], grown[0])


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "Pooling": _pooling, "Pooling_v1": _pooling_v1, "_contrib_AdaptiveAvgPooling2D": _adaptive,
    "UpSampling": _upsampling}
