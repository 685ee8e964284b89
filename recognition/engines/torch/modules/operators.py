# SPDX-License-Identifier: Apache-2.0
"""PyTorch's own operators, as ``torch.export`` writes them, in the words of ``recognition.networks.sym``.

Each is a function of a :class:`Call` and the operator's arguments, in which tensors are symbols.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Callable

from recognition.engines.torch.imports import torch
from recognition.engines.torch.modules.call import (
    Call,
    Unknown,
    expand,
    is_number,
    pair,
    permute,
    reshape,
    reshape_to,
    tuple_of,
)
from recognition.engines.torch.modules.norms import batch_norm, group_norm, layer_norm, rms_norm
from recognition.networks import sym
from recognition.networks.sym import Symbol, make


def _convolution(call: Call, data: Symbol, weight: Symbol, bias: Symbol | None = None, stride: Any = 1,
                 padding: Any = 0, dilation: Any = 1, groups: int = 1) -> Symbol:
    outputs, _, *kernel = call.ins[1]
    rank = len(kernel)
    inputs = [data, weight, *([] if bias is None else [bias])]
    return sym.Convolution(*inputs, num_filter=outputs, kernel=tuple(kernel), stride=pair(call, stride, rank),
                           pad=pair(call, padding, rank), dilate=pair(call, dilation, rank), num_group=groups,
                           no_bias=bias is None)


def _linear(call: Call, data: Symbol, weight: Symbol, bias: Symbol | None = None) -> Symbol:
    inputs = [data, weight, *([] if bias is None else [bias])]
    return sym.FullyConnected(*inputs, num_hidden=call.ins[1][0], no_bias=bias is None, flatten=len(call.ins[0]) == 2)


def _max_pool(call: Call, data: Symbol, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1,
              ceil: bool = False) -> Symbol:
    if set(pair(call, dilation)) != {1}:
        raise Unknown("a pooling with dilation")
    return _pool(call, data, kernel, stride, padding, pool_type="max", pooling_convention="full" if ceil else "valid")


def _mean_pool(call: Call, data: Symbol, kernel: Any, stride: Any = (), padding: Any = 0, ceil: bool = False,
               inside: bool = True, divisor: int | None = None) -> Symbol:
    if divisor is not None:
        raise Unknown("a pooling with divisor_override")
    return _pool(call, data, kernel, stride, padding, pool_type="avg", count_include_pad=inside,
                 pooling_convention="full" if ceil else "valid")


def _pool(call: Call, data: Symbol, kernel: Any, stride: Any, padding: Any, **attrs: Any) -> Symbol:
    kernel = pair(call, kernel)
    return sym.Pooling(data, kernel=kernel, stride=pair(call, stride) if stride else kernel,
                       pad=pair(call, padding), **attrs)


def _adaptive(kind: str) -> Callable[..., Any]:
    def pool(call: Call, data: Symbol, sizes: Any) -> Symbol:
        if set(pair(call, sizes)) == {1}:
            return sym.Pooling(data, kernel=(1,) * (len(call.ins[0]) - 2), global_pool=True, pool_type=kind)
        sides = list(zip(call.ins[0][2:], pair(call, sizes)))
        if all(side % size == 0 for side, size in sides):
            windows = tuple(side // size for side, size in sides)
            return sym.Pooling(data, kernel=windows, stride=windows, pool_type=kind)
        if kind != "avg" or len(call.ins[0]) != 4:
            raise Unknown("an adaptive pooling to more than one place")
        return make("_contrib_AdaptiveAvgPooling2D", data, output_size=pair(call, sizes))

    return pool


def _two(name: str, scalar: str, reverse: str = "") -> Callable[..., Any]:
    """Arithmetic of two tensors, or of a tensor and a number."""
    def compute(call: Call, left: Any, right: Any, alpha: float = 1) -> Symbol:
        left, right = (call.table(item) if isinstance(item, torch.Tensor) else item for item in (left, right))
        if not isinstance(left, Symbol):
            return make(f"_{reverse or scalar}_scalar", right, scalar=left)
        if not isinstance(right, Symbol):
            return make(f"_{scalar}_scalar", left, scalar=float(right) * alpha)
        right = right if alpha == 1 else make("_mul_scalar", right, scalar=alpha)
        same = len(call.ins) == 2 and list(map(str, call.ins[0])) == list(map(str, call.ins[1]))
        return make(f"elemwise_{name}" if same else f"broadcast_{name}", left, right)

    return compute


def _one(name: str, **attrs: Any) -> Callable[..., Any]:
    return lambda call, data, *_: make(name, data, **attrs)


def _clip(call: Call, data: Symbol, low: float | None = None, high: float | None = None) -> Symbol:
    if low is None or high is None:
        return make("_minimum_scalar" if low is None else "_maximum_scalar", data,
                        scalar=high if low is None else low)
    return sym.clip(data, a_min=low, a_max=high)


def _gelu(call: Call, data: Symbol, approximate: str = "none") -> Symbol:
    if approximate == "none":
        return make("LeakyReLU", data, act_type="gelu")
    cubes = sym.square(data) * data * 0.044715  # Hendrycks and Gimpel, arXiv 1606.08415, section 2
    return data * 0.5 * (sym.tanh((data + cubes) * (2 / math.pi) ** 0.5) + 1.0)


def _hard(call: Call, data: Symbol) -> Symbol:
    return sym.clip(make("_plus_scalar", data, scalar=3), a_min=0, a_max=6) / 6


def _reduction(name: str) -> Callable[..., Any]:
    def reduce(call: Call, data: Symbol, axes: Any = None, keepdim: bool = False) -> Symbol:
        axes = tuple(range(len(call.ins[0]))) if axes is None or axes == [] else tuple_of(axes)
        return make(name, data, axis=axes, keepdims=keepdim)

    return reduce


def _vector_norm(call: Call, data: Symbol, order: float = 2, axes: Any = None, keepdim: bool = False) -> Symbol:
    if order != 2 or axes is None:
        raise Unknown("a norm that is not Euclidean, or over all axes")
    return sym.sqrt(sym.sum(sym.square(data), axis=tuple_of(axes), keepdims=keepdim))


def _swap(call: Call, data: Symbol, first: int, second: int) -> Symbol:
    axes = list(range(len(call.ins[0])))
    axes[first], axes[second] = axes[second], axes[first]
    return permute(call, data, axes)


def _select(call: Call, data: Symbol, axis: int, place: int) -> Symbol:
    part = sym.slice_axis(data, axis=axis, begin=place, end=None if place == -1 else place + 1)
    return reshape(call._replace(ins=[()]) if axis == 0 else call, part)


def _slice(call: Call, data: Symbol, axis: int = 0, begin: int | None = None, end: Any = None,
           step: int = 1) -> Symbol:
    if list(map(str, call.ins[0])) == list(map(str, call.out)):
        return data
    axis %= len(call.ins[0])
    size = call.ins[0][axis]
    if not is_number(size):
        raise Unknown("a slice of the batch")
    if step != 1:
        places = range(size)[begin:end:step]
        return sym.slice(data, begin=(*(None for _ in range(axis)), places.start),
                         end=(*(None for _ in range(axis)), places.stop), step=(*(1 for _ in range(axis)), step))
    return sym.slice_axis(data, axis=axis, begin=begin or 0, end=None if end is None or end >= size else end)


def _parts(call: Call, data: Symbol, size: Any, axis: int = 0) -> list[Symbol]:
    axis %= len(call.ins[0])
    whole = call.ins[0][axis]
    if not is_number(whole):
        raise Unknown("a split of the batch")
    if not is_number(size) or whole % size:
        sizes = [min(size, whole - begin) for begin in range(0, whole, size)] if is_number(size) else size
        ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
        return [sym.slice_axis(data, axis=axis, begin=end - part, end=end) for part, end in zip(sizes, ends)]
    count = whole // size
    parts = sym.SliceChannel(data, num_outputs=count, axis=axis)
    return [parts[number] for number in range(count)]


def _chunk(call: Call, data: Symbol, count: int, axis: int = 0) -> list[Symbol]:
    return _parts(call, data, -(-call.ins[0][axis] // count), axis)


def _unbind(call: Call, data: Symbol, axis: int = 0) -> list[Symbol]:
    sizes = list(call.ins[0])
    sizes[axis] = 1
    return [reshape(call._replace(ins=[tuple(sizes)]), part) for part in _parts(call, data, 1, axis)]


def _stack(call: Call, parts: Sequence[Symbol], axis: int = 0) -> Symbol:
    sizes = list(call.out)
    sizes[axis] = 1
    return make("Concat", *(reshape_to(call._replace(ins=call.ins[place:]), part, sizes)
                            for place, part in enumerate(parts)), dim=axis % len(sizes))


def _matmul(call: Call, left: Symbol, right: Symbol) -> Symbol:
    first, second = call.ins
    if len(second) == 2 and len(first) > 1:
        return sym.FullyConnected(left, sym.transpose(right), num_hidden=second[1], no_bias=True, flatten=False)
    if min(len(first), len(second)) < 2:
        raise Unknown("a product with a vector")
    batch = call.out[:-2]
    left, right = (expand(call._replace(ins=[sizes], out=(*batch, *sizes[-2:])), data)
                   for sizes, data in ((first, left), (second, right)))
    return sym.batch_dot(left, right)


def _attention(call: Call, query: Symbol, key: Symbol, value: Symbol, mask: Any = None, dropout: float = 0.0,
               causal: bool = False, *, scale: float | None = None, enable_gqa: bool = False) -> Symbol:
    if causal or enable_gqa or len({len(shape) for shape in call.ins[:3]}) > 1:
        raise Unknown("an attention with is_causal or enable_gqa")
    scale = call.ins[0][-1] ** -0.5 if scale is None else scale
    products = sym.batch_dot(query, key, transpose_b=True) * scale
    if isinstance(mask, torch.Tensor):
        mask = call.table(torch.zeros(mask.shape).masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else mask)
    weights = sym.softmax(products if mask is None else sym.broadcast_add(products, mask), axis=-1)
    return sym.batch_dot(sym.Dropout(weights, p=dropout) if dropout else weights, value)


def _one_an_image(call: Call, data: Symbol, *_: Any, **__: Any) -> Symbol:
    """A number an image, (N, 1, ...), not yet filled: what stochastic depth draws into."""
    if not call.out or is_number(call.out[0]) or any(not is_number(size) or size != 1 for size in call.out[1:]):
        raise Unknown(f"a new tensor of {tuple(map(str, call.out))}")
    ones = sym.ones_like(call.images)
    for axis in (1, 2, 3):
        ones = sym.slice_axis(ones, axis=axis, begin=0, end=1)
    return sym.Reshape(ones, shape=(0, *(1 for _ in call.out[1:])))


def _bernoulli(call: Call, data: Symbol, kept: float = 0.5, generator: Any = None) -> Symbol:
    """1 with the probability ``kept``, else 0; without training what it is on average. ``data`` are ones."""
    return sym.Dropout(data, p=1 - kept) * kept


def _same(call: Call, data: Symbol, *_: Any, **__: Any) -> Symbol:
    return data


TABLE: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution), "linear": _linear, "batch_norm": batch_norm,
    "layer_norm": layer_norm, "scaled_dot_product_attention": _attention, "matmul": _matmul, "bmm": _matmul,
    "prelu": lambda call, data, slope: make("LeakyReLU", data, slope, act_type="prelu"),
    "leaky_relu": lambda call, data, slope=0.01: make("LeakyReLU", data, act_type="leaky", slope=slope),
    "rms_norm": rms_norm, "group_norm": group_norm,
    "elu": lambda call, data, alpha=1.0: make("LeakyReLU", data, act_type="elu", slope=alpha),
    "gelu": _gelu, "selu": _one("LeakyReLU", act_type="selu"),
    **{name: _one("Activation", act_type=name) for name in ("relu", "sigmoid", "tanh")},
    "softplus": lambda call, data: make("Activation", data, act_type="softrelu"),
    "silu": lambda call, data: data * make("sigmoid", data), "hardsigmoid": _hard,
    "hardswish": lambda call, data: data * _hard(call, data),
    **dict.fromkeys(("clamp", "hardtanh", "clamp_min"), _clip), "relu6": _one("clip", a_min=0, a_max=6),
    "new_empty": _one_an_image, "bernoulli": _bernoulli,
    "dropout": lambda call, data, p, train: make("Dropout", data, p=p) if p and train else data,
    "feature_dropout": lambda call, data, p, train: make("Dropout", data, p=p, axes=tuple(range(2, len(call.ins[0])))),
    **dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool3d"), _max_pool),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d", "avg_pool3d"), _mean_pool),
    **{f"adaptive_avg_pool{rank}d": _adaptive("avg") for rank in (1, 2, 3)},
    **{f"adaptive_max_pool{rank}d": _adaptive("max") for rank in (1, 2, 3)},
    "add": _two("add", "plus"), "sub": _two("sub", "minus", "rminus"), "mul": _two("mul", "mul"),
    "div": _two("div", "div", "rdiv"),
    "rsub": lambda call, data, number: make("_rminus_scalar", data, scalar=number),
    "pow": lambda call, data, power: make("_power_scalar", data, scalar=power),
    **{name: _one(ours) for name, ours in (("neg", "negative"), ("sqrt", "sqrt"), ("rsqrt", "rsqrt"), ("exp", "exp"),
                                           ("log", "log"), ("abs", "abs"), ("erf", "erf"), ("square", "square"),
                                           ("reciprocal", "reciprocal"), ("detach", "BlockGrad"))},
    "mean": _reduction("mean"), "sum": _reduction("sum"), "amax": _reduction("max"), "amin": _reduction("min"),
    "linalg_vector_norm": _vector_norm,
    "softmax": lambda call, data, axis, dtype=None: make("softmax", data, axis=axis),
    **dict.fromkeys(("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "_unsafe_view"), reshape),
    "permute": permute, "transpose": _swap, "select": _select, "slice": _slice, "expand": expand,
    "expand_as": expand, **dict.fromkeys(("split", "split_with_sizes"), _parts), "chunk": _chunk, "unbind": _unbind,
    "cat": lambda call, parts, axis=0: make("Concat", *parts, dim=axis),
    "stack": _stack,
    **dict.fromkeys(("contiguous", "clone", "to", "alias", "type_as", "_to_copy", "lift_fresh_copy"), _same),
}
