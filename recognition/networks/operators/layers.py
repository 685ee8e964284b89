# SPDX-License-Identifier: Apache-2.0
"""The operators that networks call layers: products, pooling, activations, dropout, the last softmax."""
from __future__ import annotations

import math
from collections.abc import Sequence

from recognition.networks.operators import onnx
from recognition.networks.operators.operator import (
    INPUTS,
    Operator,
    Parameter,
    Shape,
    ShapeError,
    Shapes,
    Values,
    boolean,
    boolean_or_none,
    each_output,
    forward,
    free,
    integer,
    integer_or_none,
    merged,
    same,
    shape,
    words,
)

BOTH = ("bfloat16", "float16")
LAYOUTS = Parameter(words("None", "NCW", "NCHW", "NCDHW", "NWC", "NHWC", "NDHWC"), "None")


def _channels_first(sizes: Shape, layout: str) -> Shape:
    """The sizes in the order (N, C, ...), of a shape whose layout may have the channels last."""
    if len(sizes) < 2:
        raise ShapeError(f"found an input {sizes}, expected maps (N, C, ...)")
    return (sizes[0], sizes[-1], *sizes[1:-1]) if layout.endswith("C") else sizes


def _as_laid_out(sizes: Shape, layout: str) -> Shape:
    return (sizes[0], *sizes[2:], sizes[1]) if layout.endswith("C") else sizes


def _window(values: Values, data: Shape) -> tuple[Shape, Shape, Shape, Shape]:
    """Kernel, stride, dilation and padding of a layer of maps ``data`` (N, C, ...)."""
    rank = len(values.kernel)
    if len(data) != rank + 2:
        raise ShapeError(f"found an input of {len(data)} axes {data}, expected {rank + 2} for the kernel "
                         f"{values.kernel}")
    stride, pad = values.stride or (1,) * rank, values.pad or (0,) * rank
    dilate = getattr(values, "dilate", ()) or (1,) * rank
    if not all(len(sizes) == rank for sizes in (stride, dilate, pad)):
        raise ShapeError(f"found the stride {stride}, dilate {dilate} and pad {pad}, expected {rank} numbers each")
    if min(*values.kernel, *stride, *dilate) < 1 or min(pad) < 0:
        raise ShapeError("found a kernel, a stride, a dilation or a padding out of range")
    return values.kernel, stride, dilate, pad


def _grouped(values: Values, channels: int) -> None:
    if values.num_group < 1 or values.num_filter < 1 or channels % values.num_group \
            or values.num_filter % values.num_group:
        raise ShapeError(f"found {channels} channels, {values.num_filter} filters and {values.num_group} groups, "
                         "expected groups of as many each")


def _convolution(values: Values, ins: Shapes, outs: Shapes) -> None:
    if not ins[0]:
        return
    batch, channels, *sides = data = _channels_first(ins[0], values.layout)
    kernel, stride, dilate, pad = _window(values, data)
    _grouped(values, channels)
    weight = (values.num_filter, channels // values.num_group, *kernel)
    ins[1] = merged(ins[1], _as_laid_out(weight, values.layout))
    _bias(values.num_filter, ins)
    sizes = []
    for side, size, step, apart, edge in zip(sides, kernel, stride, dilate, pad):
        left = side + 2 * edge - (apart * (size - 1) + 1)
        if side and left < 0:
            raise ShapeError(f"kernel size exceed input: {kernel} with dilate {dilate}, pad {pad} on {tuple(sides)}")
        sizes.append(left // step + 1 if side else 0)
    outs[0] = merged(outs[0], _as_laid_out((batch, values.num_filter, *sizes), values.layout))


def _bias(size: int, ins: Shapes) -> None:
    if len(ins) > 2:
        ins[2] = merged(ins[2], (size,))


def _deconvolution(values: Values, ins: Shapes, outs: Shapes) -> None:
    if not ins[0]:
        return
    batch, channels, *sides = data = _channels_first(ins[0], values.layout)
    kernel, stride, dilate, pad = _window(values, data)
    _grouped(values, channels)
    weight = (channels, values.num_filter // values.num_group, *kernel)
    ins[1] = merged(ins[1], _as_laid_out(weight, values.layout))
    _bias(values.num_filter, ins)
    rank = len(kernel)
    adjust, target = values.adj or (0,) * rank, values.target_shape or (0,) * rank
    if len(adjust) != rank or len(target) != rank:
        raise ShapeError(f"found adj {adjust} and target_shape {target}, expected {rank} numbers each")
    sizes = []
    for side, size, step, apart, edge, more, wanted in zip(sides, kernel, stride, dilate, pad, adjust, target):
        whole = step * (side - 1) + apart * (size - 1) + 1
        if any(target):
            if whole < wanted:
                raise ShapeError(f"too big target shape: {target} of {tuple(sides)}")
            more, size_out = (whole - wanted) % 2, wanted
        else:
            size_out = whole - 2 * edge + more
            if side and size_out < 1:
                raise ShapeError(f"found a padding {pad} that leaves nothing of {tuple(sides)}")
        if more >= step:
            raise ShapeError(f"adj({more}) must be smaller than stride({step})")
        sizes.append(size_out if side else 0)
    outs[0] = merged(outs[0], _as_laid_out((batch, values.num_filter, *sizes), values.layout))


def _fully_connected(values: Values, ins: Shapes, outs: Shapes) -> None:
    if not ins[0]:
        return
    if values.num_hidden < 1:
        raise ShapeError(f"found num_hidden {values.num_hidden}, expected at least 1")
    data = ins[0]
    width = math.prod(data[1:]) if values.flatten else data[-1]
    ins[1] = merged(ins[1], (values.num_hidden, width))
    _bias(values.num_hidden, ins)
    outs[0] = merged(outs[0], (*(data[:1] if values.flatten else data[:-1]), values.num_hidden))


def _pooling(values: Values, ins: Shapes, outs: Shapes) -> None:
    if not ins[0]:
        return
    layout = getattr(values, "layout", "None")
    batch, channels, *sides = data = _channels_first(ins[0], layout)
    if values.pool_type == "lp" and values.p_value is None:
        raise ShapeError("found no p_value for the pool_type lp")
    if values.pooling_convention == "same" and (len(data) != 3 or any(values.pad)):
        raise ShapeError(f"found the pooling_convention same for an input {data} and pad {values.pad}, expected "
                         "(N, C, W) and no padding")
    if values.global_pool:
        if len(data) < 3:
            raise ShapeError(f"found an input {data}, expected maps (N, C, ...)")
        sizes = [1] * len(sides)
    else:
        kernel, stride, _, pad = _window(values, data)
        sizes = [_pooled(values.pooling_convention, *window) if window[0] else 0
                 for window in zip(sides, kernel, stride, pad)]
    for number in range(len(outs)):
        outs[number] = merged(outs[number], _as_laid_out((batch, channels, *sizes), layout))


def _pooling_v1(values: Values, ins: Shapes, outs: Shapes) -> None:
    if ins[0] and len(ins[0]) < 4:
        raise ShapeError(f"found an input {ins[0]}, expected maps (N, C, H, W)")
    _pooling(values, ins, outs)


def _pooled(convention: str, side: int, size: int, step: int, edge: int) -> int:
    if convention == "same":
        return -(-side // step)
    if size > side + 2 * edge:
        raise ShapeError(f"kernel size ({size}) exceeds input ({side} padded to {side + 2 * edge})")
    left = side + 2 * edge - size
    return (-(-left // step) if convention == "full" else left // step) + 1


def _upsampling(values: Values, ins: Shapes, outs: Shapes) -> None:
    if not all(ins[:1]):
        return
    batch, channels, height, width = data = ins[0] if len(ins[0]) == 4 else (0, 0, 0, 0)
    if data != ins[0]:
        raise ShapeError(f"found an input {ins[0]}, expected maps (N, C, H, W)")
    if values.sample_type == "bilinear":
        side = 2 * values.scale - values.scale % 2
        ins[1] = merged(ins[1], (channels, 1, side, side))
    elif values.multi_input_mode == "concat":
        channels = sum(found[1] for found in ins) if all(ins) else 0
    outs[0] = merged(outs[0], (batch, channels, height * values.scale, width * values.scale))


def _adaptive(values: Values, data: Shape) -> Shape:
    if len(data) != 4 or len(values.output_size) > 2:
        raise ShapeError(f"found an input {data} and the output_size {values.output_size}, expected maps (N, C, H, W) "
                         "and at most two numbers")
    sizes = values.output_size or (1,)
    return (*data[:2], sizes[0], sizes[-1])


def _leaky(values: Values, ins: Shapes, outs: Shapes) -> None:
    if ins[0] and len(ins) > 1 and not ins[1]:
        ins[1] = ins[0][1:2] or (1,)
    ins[0] = outs[0] = merged(ins[0], outs[0])


def _softmax_output(values: Values, ins: Shapes, outs: Shapes) -> None:
    data = ins[0]
    if not data:
        return
    if len(ins) > 1 and ins[1] != data:
        if values.multi_output:
            if ins[1] not in ((data[0], *data[2:]), (data[0], 1, *data[2:])):
                ins[1] = merged(ins[1], (data[0], math.prod(data[2:])))
        else:
            ins[1] = merged(ins[1], data[:-1])
    outs[0] = merged(outs[0], data)


def _winograd(values: Values, ins: Shapes, outs: Shapes) -> None:
    if ins[0]:
        ins[1] = merged(ins[1], (values.num_filter, ins[0][1], 3, 3))
        outs[0] = merged(outs[0], (ins[0][0], values.num_filter, *ins[0][2:]))


def _without_bias(values: Values, names: Sequence[str]) -> Sequence[str]:
    return names[:2] if values.no_bias else names


def _products(values: Values, ins: Sequence[Shape], out: Shape) -> int:
    """Operations of a product, two for a multiply-add; the weight is (outputs, inputs a group, kernel ...)."""
    return math.prod(out) * (2 * math.prod(ins[1][1:]) - 1 + (not values.no_bias))


def _windows(values: Values, ins: Sequence[Shape], out: Shape) -> int:
    return math.prod(out) * math.prod(ins[0][2:] if values.global_pool else values.kernel)


_CONVOLUTION = {
    "kernel": Parameter(shape), **dict.fromkeys(("stride", "dilate", "pad"), Parameter(shape, ())),
    "num_filter": Parameter(integer), "num_group": Parameter(integer, 1), "workspace": Parameter(integer, 1024),
    "no_bias": Parameter(boolean, False),
    "cudnn_tune": Parameter(words("None", "fastest", "limited_workspace", "off"), "None"),
    "cudnn_off": Parameter(boolean, False), "layout": LAYOUTS,
}
_WINDOW = {
    "kernel": Parameter(shape, ()), "pool_type": Parameter(words("max", "avg", "sum", "lp"), "max"),
    "global_pool": Parameter(boolean, False),
}
_POOLING = {
    **_WINDOW, "pooling_convention": Parameter(words("valid", "full", "same"), "valid"),
    **dict.fromkeys(("stride", "pad"), Parameter(shape, ())),
}
_WEIGHTED = ("data", "weight", "bias")

OPERATORS = [
    Operator("Convolution", _convolution, _WEIGHTED, chosen=_without_bias, optional=1, parameters=_CONVOLUTION,
             flops=_products, is_product=True, reads=INPUTS, heavy=BOTH, onnx=onnx.convolution),
    Operator("Convolution_v1", _convolution, _WEIGHTED, chosen=_without_bias, optional=1, parameters=_CONVOLUTION),
    Operator("Deconvolution", _deconvolution, _WEIGHTED, chosen=_without_bias, optional=1, parameters={
        "kernel": Parameter(shape), **dict.fromkeys(("stride", "dilate", "pad", "adj", "target_shape"),
                                                    Parameter(shape, ())),
        **_CONVOLUTION, "workspace": Parameter(integer, 512), "no_bias": Parameter(boolean, True)},
             flops=lambda values, ins, out: math.prod(ins[0]) * 2 * math.prod(ins[1][1:]), onnx=onnx.deconvolution),
    Operator("FullyConnected", _fully_connected, _WEIGHTED, chosen=_without_bias, optional=1, parameters={
        "num_hidden": Parameter(integer), "no_bias": Parameter(boolean, False), "flatten": Parameter(boolean, True)},
             flops=_products, is_product=True, reads=INPUTS, heavy=("float16",), onnx=onnx.fully_connected),
    Operator("Pooling", _pooling, parameters={
        **_WINDOW, "cudnn_off": Parameter(boolean, False), **_POOLING, "p_value": Parameter(integer_or_none, None),
        "count_include_pad": Parameter(boolean_or_none, None), "layout": LAYOUTS},
             outputs=lambda values: 2 if values.pool_type == "max" else 1, visible=lambda values: 1,
             flops=_windows, follows=BOTH, onnx=onnx.pooling),
    Operator("Pooling_v1", _pooling_v1, parameters=_POOLING),
    Operator("UpSampling", _upsampling, variadic=True, limit=1, parameters={
        "scale": Parameter(integer), "num_filter": Parameter(integer, 0), "num_args": Parameter(integer),
        "sample_type": Parameter(words("nearest", "bilinear")), "workspace": Parameter(integer, 512),
        "multi_input_mode": Parameter(words("concat", "sum"), "concat")}),
    Operator("_contrib_AdaptiveAvgPooling2D", forward(_adaptive), parameters={"output_size": Parameter(shape, ())}),
    Operator("LeakyReLU", _leaky, ("data", "gamma"), optional=1, starts={"gamma": '["Constant", {"value": 0.25}]'},
             chosen=lambda values, names: names if values.act_type == "prelu" else names[:1], parameters={
        "act_type": Parameter(words("leaky", "elu", "gelu", "prelu", "rrelu", "selu"), "leaky"),
        "slope": Parameter(float, 0.25), "lower_bound": Parameter(float, 0.125),
        "upper_bound": Parameter(float, 0.334)},
             flops=each_output(1), follows=("float16",), onnx=onnx.leaky),
    Operator("Activation", same, parameters={
        "act_type": Parameter(words("relu", "sigmoid", "softrelu", "softsign", "tanh"))},
             flops=each_output(1), follows=BOTH, onnx=onnx.activation),
    Operator("Dropout", same, parameters={
        "p": Parameter(float, 0.5), "mode": Parameter(words("training", "always"), "training"),
        "axes": Parameter(shape, ()), "cudnn_off": Parameter(boolean_or_none, False)},
             outputs=lambda values: 2, visible=lambda values: 1, flops=free, reads=0,
             follows=("float16",), onnx=onnx.same),
    Operator("SoftmaxOutput", _softmax_output, ("data", "label"), optional=1, aliases=("Softmax",), parameters={
        "grad_scale": Parameter(float, 1.0), "ignore_label": Parameter(float, -1.0),
        **dict.fromkeys(("multi_output", "use_ignore", "preserve_shape", "out_grad"), Parameter(boolean, False)),
        "normalization": Parameter(words("null", "batch", "valid"), "null"), "smooth_alpha": Parameter(float, 0.0)}),
    Operator("SoftmaxActivation", same, parameters={"mode": Parameter(words("instance", "channel"), "instance")}),
    # Winograd's convolution of the MXNet engine, which only its own pass adds to a graph.
    Operator("Custom", _winograd, ("data", "weight"), in_untrusted_files=False, reads=INPUTS, parameters={
        "op_type": Parameter(words("recognition_winograd")), "num_filter": Parameter(integer)}),
]
