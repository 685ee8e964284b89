# SPDX-License-Identifier: Apache-2.0
"""The operators that networks call layers: products, activations, dropout, the last softmax."""
from __future__ import annotations

import math
from typing import Any, Callable

from recognition.engines.torch.imports import torch
from recognition.engines.torch.operators.gradients import at_least_float32
from recognition.engines.torch.operators.passes import Pass

F = torch.nn.functional
_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def channels_first(data: torch.Tensor, layout: str) -> torch.Tensor:
    return data.movedim(-1, 1) if layout.endswith("C") else data


def as_laid_out(data: torch.Tensor, layout: str) -> torch.Tensor:
    return data.movedim(1, -1) if layout.endswith("C") else data


def _convolution(values: Any, data: torch.Tensor, weight: torch.Tensor,
                 bias: torch.Tensor | None = None) -> torch.Tensor:
    rank, layout = len(values.kernel), values.layout
    result = _CONVOLUTIONS[rank](
        channels_first(data, layout), channels_first(weight, layout), bias, values.stride or 1, values.pad or 0,
        values.dilate or 1, values.num_group)
    return as_laid_out(result, layout)


def _deconvolution(values: Any, data: torch.Tensor, weight: torch.Tensor,
                   bias: torch.Tensor | None = None) -> torch.Tensor:
    data, weight = channels_first(data, values.layout), channels_first(weight, values.layout)
    rank = len(values.kernel)
    stride, dilate = values.stride or (1,) * rank, values.dilate or (1,) * rank
    pad, more = values.pad or (0,) * rank, values.adj or (0,) * rank
    if any(values.target_shape):  # which says the padding
        over = [step * (side - 1) + apart * (size - 1) + 1 - wanted for side, size, step, apart, wanted in zip(
            data.shape[2:], values.kernel, stride, dilate, values.target_shape)]
        pad, more = tuple((left + 1) // 2 for left in over), tuple(left % 2 for left in over)
    result = _TRANSPOSED[rank](data, weight, bias, stride, pad, more, values.num_group, dilate)
    return as_laid_out(result, values.layout)


def _fully_connected(values: Any, data: torch.Tensor, weight: torch.Tensor,
                     bias: torch.Tensor | None = None) -> torch.Tensor:
    return F.linear(data.flatten(1) if values.flatten else data, weight, bias)


_ACTIVATIONS: dict[str, Callable[..., torch.Tensor]] = {
    "relu": F.relu, "sigmoid": torch.sigmoid, "softrelu": F.softplus, "softsign": F.softsign, "tanh": torch.tanh}


def _activation(values: Any, data: torch.Tensor) -> torch.Tensor:
    return _ACTIVATIONS[values.act_type](data)


def _leaky(run: Pass, values: Any, data: torch.Tensor, gamma: torch.Tensor | None = None) -> torch.Tensor:
    """A line with two slopes, or a curve. ``gamma``, the slopes of prelu: ``(C,)``, or one for all channels."""
    if gamma is not None:
        return F.prelu(data, gamma.flatten().to(data.dtype))
    if values.act_type == "elu":
        return F.elu(data, values.slope)
    if values.act_type == "gelu":
        return F.gelu(data)
    if values.act_type == "selu":
        return F.selu(data)
    if values.act_type == "rrelu":
        low, high = values.lower_bound, values.upper_bound
        slope: Any = (low + high) / 2
        if run.training:
            slope = (low + (high - low) * run.uniform(data.shape, data)).to(data.dtype)
        return torch.where(data > 0, data, data * slope)
    return F.leaky_relu(data, values.slope)


def _dropout(run: Pass, values: Any, data: torch.Tensor) -> torch.Tensor:
    """Zero with probability p, else divided by 1 - p; over ``axes`` all numbers fare alike."""
    if not values.p or not (run.training or values.mode == "always"):
        return data
    axes = [axis % data.ndim for axis in values.axes]
    sizes = tuple(1 if axis in axes else size for axis, size in enumerate(data.shape))
    kept = run.uniform(sizes, data) < 1 - values.p
    return data * (kept.to(data.dtype) / (1 - values.p) if values.p < 1 else kept.to(data.dtype))


def _softmax_activation(values: Any, data: torch.Tensor) -> torch.Tensor:
    return at_least_float32(data).softmax(1 if values.mode == "channel" else -1)


class _SoftmaxOutput(torch.autograd.Function):
    """Softmax whose gradient is that of the cross entropy with ``label``, whatever gradient comes from behind."""

    @staticmethod
    def forward(ctx: Any, values: Any, data: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        ctx.values = values
        if values.multi_output or values.preserve_shape:
            result = data.softmax(1 if values.multi_output else -1)
        else:
            result = data.flatten(1).softmax(1).reshape(data.shape)
        ctx.save_for_backward(result, label)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        result, label = ctx.saved_tensors
        found = _softmax_gradient(ctx.values, result, label)
        return None, found * gradient if ctx.values.out_grad else found, torch.zeros_like(label)


def _softmax_gradient(values: Any, result: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    if label.shape == result.shape:  # probabilities
        return (result - label) * values.grad_scale
    if values.multi_output:
        rows = result.flatten(2)  # (N, C, positions)
    elif values.preserve_shape:
        rows = result.reshape(-1, result.shape[-1]).unsqueeze(2)
    else:
        rows = result.flatten(1).unsqueeze(2)
    classes = rows.shape[1]
    label = label.reshape(rows.shape[0], rows.shape[2])
    target = torch.zeros_like(rows).scatter_(1, label.long().clamp(0, classes - 1).unsqueeze(1), 1)
    if values.smooth_alpha and not values.multi_output:
        target = target * (1 - values.smooth_alpha - values.smooth_alpha / (classes - 1)) \
            + values.smooth_alpha / (classes - 1)
    found = rows - target
    counted = label != values.ignore_label
    if values.use_ignore:
        found = found * counted.unsqueeze(1)
    size = rows.shape[2] if values.multi_output and values.normalization != "valid" else 1
    if values.normalization == "batch":
        size *= rows.shape[0]
    elif values.normalization == "valid":
        return (found * (values.grad_scale / counted.sum().clamp(min=1))).reshape(result.shape)
    return (found * (values.grad_scale / size)).reshape(result.shape)


def _softmax_output(values: Any, data: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
    data = at_least_float32(data)
    if label is None:
        label = data.new_zeros(math.prod(data.shape[2:]) * data.shape[0] if values.multi_output else data.shape[:1])
    return _SoftmaxOutput.apply(values, data, label)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "Convolution": _convolution, "Convolution_v1": _convolution, "Deconvolution": _deconvolution,
    "FullyConnected": _fully_connected, "Activation": _activation, "SoftmaxActivation": _softmax_activation,
    "SoftmaxOutput": _softmax_output,
}
OF_THE_PASS: dict[str, Callable[..., Any]] = {"LeakyReLU": _leaky, "Dropout": _dropout}
