# SPDX-License-Identifier: Apache-2.0
"""PyTorch's operators that normalise, in the words of ``recognition.networks.sym``."""
from __future__ import annotations

from collections.abc import Sequence

from recognition.engines.torch.modules.call import Call, Unknown, reshape_to
from recognition.networks import sym
from recognition.networks.graph import VARIABLE
from recognition.networks.sym import Symbol


def batch_norm(call: Call, data: Symbol, weight: Symbol | None, bias: Symbol | None, mean: Symbol | None,
               var: Symbol | None, training: bool, momentum: float, eps: float, cudnn: bool = False) -> Symbol:
    if mean is None and training:  # as of weights that are made unit
        return _factored(call, standardised(data, (0, *range(2, len(call.ins[0]))), eps), 1, weight, bias)
    if bias is None or weight is None or mean is None or var is None or weight._draft.operator is not VARIABLE:
        raise Unknown("a batch norm without weight, bias or moving statistics")
    frozen = weight._draft.attrs.pop("__fixed__", "") == "1"
    return sym.BatchNorm(data, weight, bias, mean, var, eps=eps, momentum=1 - momentum, fix_gamma=frozen)


def layer_norm(call: Call, data: Symbol, sizes: Sequence[int], weight: Symbol | None = None,
               bias: Symbol | None = None, eps: float = 1e-5, cudnn: bool = True) -> Symbol:
    if len(sizes) == 1 and weight is not None and bias is not None:
        return sym.LayerNorm(data, weight, bias, eps=eps)
    found = standardised(data, tuple(range(len(call.out) - len(sizes), len(call.out))), eps)
    found = found if weight is None else sym.broadcast_mul(found, _in_front(call, weight, sizes))
    return found if bias is None else sym.broadcast_add(found, _in_front(call, bias, sizes))


def _in_front(call: Call, vector: Symbol, sizes: Sequence[int]) -> Symbol:
    """A tensor with axes of 1 in front, as many as the result has."""
    return sym.Reshape(vector, shape=(*(1 for _ in call.out[len(sizes) :]), *sizes))


def standardised(data: Symbol, axes: tuple[int, ...], eps: float) -> Symbol:
    """``data`` with mean 0 and variance 1 over ``axes``."""
    apart = sym.broadcast_sub(data, sym.mean(data, axis=axes, keepdims=True))
    variance = sym.mean(sym.square(apart), axis=axes, keepdims=True)
    return sym.broadcast_mul(apart, sym.rsqrt(variance + eps))


def _factored(call: Call, data: Symbol, axis: int, weight: Symbol | None, bias: Symbol | None) -> Symbol:
    """Multiply by a factor, and add an offset, for each place of an axis."""
    along = tuple(-1 if place == axis else 1 for place in range(len(call.ins[0])))
    data = data if weight is None else sym.broadcast_mul(data, sym.Reshape(weight, shape=along))
    return data if bias is None else sym.broadcast_add(data, sym.Reshape(bias, shape=along))


def rms_norm(call: Call, data: Symbol, sizes: Sequence[int], weight: Symbol | None = None,
             eps: float | None = None) -> Symbol:
    axes = tuple(range(len(call.out) - len(sizes), len(call.out)))
    squares = sym.mean(sym.square(data), axis=axes, keepdims=True)
    found = sym.broadcast_mul(data, sym.rsqrt(squares + (2.0 ** -23 if eps is None else eps)))
    return found if weight is None else sym.broadcast_mul(found, _in_front(call, weight, sizes))


def group_norm(call: Call, data: Symbol, groups: int, weight: Symbol | None = None, bias: Symbol | None = None,
               eps: float = 1e-5, cudnn: bool = True) -> Symbol:
    found = standardised(sym.Reshape(data, shape=(0, groups, -1)), (2,), eps)
    return _factored(call, reshape_to(call._replace(ins=[call.out[:1]]), found, call.out), 1, weight, bias)
