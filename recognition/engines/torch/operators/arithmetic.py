# SPDX-License-Identifier: Apache-2.0
"""Operators that compute number by number, and products of matrices. Steps and comparisons have gradients of zero."""
from __future__ import annotations

import functools
import math
from typing import Any, Callable

from recognition.engines.torch.imports import torch
from recognition.engines.torch.operators.gradients import at_least_float32, constant

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64,
           "int32": torch.int32, "int64": torch.int64, "int8": torch.int8, "uint8": torch.uint8, "bool": torch.bool}


def _one(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda values, data: function(data)


def _flat(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
    """An operator whose gradient is zero."""
    return lambda values, data: constant(function(data), data)


def _scalar(function: Callable[[torch.Tensor, float], torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda values, data: function(data, values.scalar)


def _compared(function: Callable[[torch.Tensor, float], torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda values, data: constant(function(data, values.scalar).to(data.dtype), data)


def _both(function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A comparison of two tensors."""
    return lambda values, left, right: constant(function(left, right).to(left.dtype), left, right)


def _modulo(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The remainder with the divisor's sign; 0 for a divisor of 0, as in MXNet."""
    zero = right == 0
    return torch.where(zero, 0, torch.remainder(left, torch.where(zero, 1, right)))


def _two(function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda values, left, right: function(left, right)


def _cast(values: Any, data: torch.Tensor) -> torch.Tensor:
    dtype = _DTYPES[values.dtype]
    return data.to(dtype) if dtype.is_floating_point else constant(data.to(dtype), data)


def _cast_together(values: Any, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """All in the type that holds every input's numbers, or with ``cast_narrow`` in the shortest of theirs."""
    types = [data.dtype for data in inputs]
    wanted = min(types, key=lambda dtype: dtype.itemsize) if values.cast_narrow \
        else functools.reduce(torch.promote_types, types)
    return tuple(data.to(wanted) for data in inputs)


def _softmax(values: Any, data: torch.Tensor, function: Any = torch.softmax) -> torch.Tensor:
    data = at_least_float32(data)
    result = function(data if values.temperature is None else data / values.temperature, values.axis)
    return result if values.dtype == "None" else result.to(_DTYPES[values.dtype])


def _rounded(data: torch.Tensor) -> torch.Tensor:
    """Whole numbers; halves go away from zero."""
    return torch.sign(data) * torch.floor(data.abs() + 0.5)


def _hard_sigmoid(values: Any, data: torch.Tensor) -> torch.Tensor:
    return (data * values.alpha + values.beta).clamp(0, 1)


# Where both are the same, MXNet gives the first all of the gradient.


def _larger(left: torch.Tensor, right: Any) -> torch.Tensor:
    return torch.where(left >= right, left, right)


def _smaller(left: torch.Tensor, right: Any) -> torch.Tensor:
    return torch.where(left <= right, left, right)


def _dot(values: Any, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Sum over the last axis of the first and the first of the second, or of a transposed one over its other end."""
    axes = [0 if values.transpose_a else left.ndim - 1], [right.ndim - 1 if values.transpose_b else 0]
    result = torch.tensordot(left, right, axes)
    return result if result.ndim else result.reshape(1)


def _batch_dot(values: Any, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return torch.matmul(left.mT if values.transpose_a else left, right.mT if values.transpose_b else right)


_SUM = _two(torch.add)

_COMPARISONS: dict[str, Callable[..., torch.Tensor]] = {
    "equal": torch.eq, "not_equal": torch.ne, "greater": torch.gt, "greater_equal": torch.ge, "lesser": torch.lt,
    "lesser_equal": torch.le,
    **{f"logical_{name}": lambda left, right, function=function: function(left != 0, torch.as_tensor(right) != 0)
       for name, function in (("and", torch.logical_and), ("or", torch.logical_or), ("xor", torch.logical_xor))},
}

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "_copy": lambda values, data: data,
    "BlockGrad": _flat(lambda data: data), "ones_like": _flat(torch.ones_like), "zeros_like": _flat(torch.zeros_like),
    "floor": _flat(torch.floor), "ceil": _flat(torch.ceil), "round": _flat(_rounded), "sign": _flat(torch.sign),
    "softsign": _one(torch.nn.functional.softsign), "log": _one(torch.log), "rsqrt": _one(torch.rsqrt),
    "reciprocal": _one(torch.reciprocal), "erf": _one(torch.erf), "square": _one(torch.square),
    "sqrt": _one(torch.sqrt), "relu": _one(torch.relu), "negative": _one(torch.neg), "sigmoid": _one(torch.sigmoid),
    "tanh": _one(torch.tanh), "exp": _one(torch.exp), "abs": _one(torch.abs),
    "_contrib_div_sqrt_dim": _one(lambda data: data / math.sqrt(data.shape[-1])),
    "hard_sigmoid": _hard_sigmoid, "Cast": _cast, "amp_cast": _cast, "amp_multicast": _cast_together,
    "softmax": _softmax, "log_softmax": functools.partial(_softmax, function=torch.log_softmax),
    "clip": lambda values, data: data.clamp(values.a_min, values.a_max),
    "_plus_scalar": _scalar(torch.add), "_minus_scalar": _scalar(torch.sub), "_mul_scalar": _scalar(torch.mul),
    "_div_scalar": _scalar(torch.div), "_power_scalar": _scalar(torch.pow),
    "_rminus_scalar": _scalar(lambda data, scalar: scalar - data),
    "_rdiv_scalar": _scalar(lambda data, scalar: scalar / data),
    "_rpower_scalar": _scalar(lambda data, scalar: torch.pow(scalar, data)),
    "_maximum_scalar": _scalar(_larger), "_minimum_scalar": _scalar(_smaller), "_mod_scalar": _scalar(torch.remainder),
    "_rmod_scalar": _scalar(lambda data, scalar: _modulo(torch.full_like(data, scalar), data)), "_mod": _two(_modulo),
    "_hypot_scalar": _scalar(lambda data, scalar: torch.hypot(data, torch.full_like(data, scalar))),
    "_hypot": _two(torch.hypot),
    **{f"_{name}_scalar": _compared(function) for name, function in _COMPARISONS.items()},
    **{f"_{name}": _both(function) for name, function in _COMPARISONS.items()},
    **dict.fromkeys(("elemwise_add", "broadcast_add", "_grad_add"), _SUM),
    **dict.fromkeys(("elemwise_sub", "broadcast_sub"), _two(torch.sub)),
    **dict.fromkeys(("elemwise_mul", "broadcast_mul"), _two(torch.mul)),
    **dict.fromkeys(("elemwise_div", "broadcast_div"), _two(torch.div)),
    **dict.fromkeys(("_maximum", "broadcast_maximum"), _two(_larger)),
    **dict.fromkeys(("_minimum", "broadcast_minimum"), _two(_smaller)),
    **dict.fromkeys(("_power", "broadcast_power"), _two(torch.pow)),
    "add_n": lambda values, *inputs: functools.reduce(torch.add, inputs),
    "dot": _dot, "batch_dot": _batch_dot,
}
