# SPDX-License-Identifier: Apache-2.0
"""Operators that normalise: batch norm and its relatives."""
from __future__ import annotations

from typing import Any, Callable

from recognition.engines.torch.imports import torch
from recognition.engines.torch.operators.gradients import at_least_float32, constant
from recognition.engines.torch.operators.passes import BatchStatistics, Pass

F = torch.nn.functional


def _batch_norm(run: Pass, values: Any, data: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor,
                moving_mean: torch.Tensor, moving_var: torch.Tensor) -> Any:
    """Batch norm over all axes but ``axis``, by the batch's statistics in training and the moving ones otherwise.

    With ``output_mean_var`` mean and 1 / sqrt(variance + eps) come behind the result, without gradients.
    """
    if values.fix_gamma:
        gamma = constant(torch.ones_like(gamma), gamma)
    axis = getattr(values, "axis", 1)
    maps = data if axis % data.ndim == 1 else data.movedim(axis, 1)
    training = run.training and not values.use_global_stats
    mean, var, count = moving_mean, moving_var, maps.numel() // maps.shape[1]
    if training:
        mean, var = moving_mean.new_zeros((2, maps.shape[1])).unbind()  # which batch_norm fills: its momentum is 1
    result = torch.batch_norm(maps, gamma, beta, mean, var, training=training, momentum=1.0, eps=values.eps,
                              cudnn_enabled=torch.backends.cudnn.enabled)
    if training:
        var = torch.zeros_like(var) if count == 1 else var
        run.statistics.append(BatchStatistics(moving_mean, moving_var, mean, var, count, values.momentum))
        var = var * ((count - 1) / count)
    result = result if maps is data else result.movedim(1, axis)
    return _with_moments(values, (data, gamma, beta), result, mean, (var.detach() + values.eps).rsqrt())


def _with_moments(values: Any, inputs: tuple[torch.Tensor, ...], result: torch.Tensor, *moments: torch.Tensor) -> Any:
    return (result, *(constant(moment, *inputs) for moment in moments)) if values.output_mean_var else result


def _along(data: torch.Tensor, axis: int, vector: torch.Tensor) -> torch.Tensor:
    """A vector as a tensor that is multiplied with ``data`` along an axis."""
    sizes = [1] * data.ndim
    sizes[axis] = -1
    return vector.reshape(sizes)


def _standardised(data: torch.Tensor, axes: Any, eps: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``data`` with mean 0 and variance 1 over ``axes``; the mean and sqrt(variance + eps), axes of 1 kept."""
    variance, mean = torch.var_mean(data, axes, correction=0, keepdim=True)
    std = (variance + eps).sqrt()
    return (data - mean) / std, mean, std


def _layer_norm(values: Any, data: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor) -> Any:
    data = at_least_float32(data)
    if values.axis % data.ndim == data.ndim - 1 and not values.output_mean_var:  # it keeps one map, the others three
        return F.layer_norm(data, gamma.shape, gamma, beta, values.eps)
    result, mean, std = _standardised(data, values.axis, values.eps)
    result = result * _along(data, values.axis, gamma) + _along(data, values.axis, beta)
    return _with_moments(values, (data, gamma, beta), result, mean, std)


def _group_norm(values: Any, data: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor) -> Any:
    """Group norm of MXNet 1.9.1, whose factors and offsets are one a group."""
    groups = at_least_float32(data).reshape(data.shape[0], values.num_groups, -1)
    result, mean, std = _standardised(groups, -1, values.eps)
    result = (result * gamma[:, None] + beta[:, None]).reshape(data.shape)
    return _with_moments(values, (data, gamma, beta), result, mean[..., 0], std[..., 0])


def _instance_norm(values: Any, data: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    data = at_least_float32(data)
    result, _, _ = _standardised(data, list(range(2, data.ndim)), values.eps)
    return result * _along(data, 1, gamma) + _along(data, 1, beta)


def _l2_normalization(values: Any, data: torch.Tensor) -> torch.Tensor:
    data = at_least_float32(data)
    first, behind = {"instance": (1, data.ndim), "channel": (1, 2), "spatial": (2, data.ndim)}[values.mode]
    return data / (data.square().sum(list(range(first, behind)), keepdim=True) + values.eps).sqrt()


def _lrn(values: Any, data: torch.Tensor) -> torch.Tensor:
    return F.local_response_norm(at_least_float32(data), values.nsize, values.alpha, values.beta, values.knorm)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "LayerNorm": _layer_norm, "GroupNorm": _group_norm, "InstanceNorm": _instance_norm,
    "L2Normalization": _l2_normalization, "LRN": _lrn,
}
# The synchronous one is like the others here: a process has one device, and its statistics are that device's.
OF_THE_PASS: dict[str, Callable[..., Any]] = dict.fromkeys(
    ("BatchNorm", "BatchNorm_v1", "_contrib_SyncBatchNorm"), _batch_norm)
