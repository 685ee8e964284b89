# SPDX-License-Identifier: Apache-2.0
"""Operators that normalise: batch norm and its relatives."""
from __future__ import annotations

from typing import Any

from recognition.networks.operators import onnx
from recognition.networks.operators.batch_norm import EPSILON
from recognition.networks.operators.operator import (
    INPUTS,
    OUTPUT,
    Operator,
    Parameter,
    Rule,
    Shape,
    ShapeError,
    Shapes,
    Values,
    boolean,
    each_output,
    integer,
    merged,
    place_of,
    real_or_none,
    same,
    words,
)


def _channels(axis_of: Any) -> Rule:
    """Rule: factors, offsets and statistics have one number a channel; further outputs are the batch's statistics."""

    def infer(values: Values, ins: Shapes, outs: Shapes) -> None:
        if not ins[0]:
            return
        channels = ins[0][place_of(axis_of(values), len(ins[0]))]
        for place in range(1, len(ins)):
            ins[place] = merged(ins[place], (channels,))
        outs[:] = [merged(outs[0], ins[0]), *(merged(out, (channels,)) for out in outs[1:])]

    return infer


def _layer_norm(values: Values, ins: Shapes, outs: Shapes) -> None:
    if ins[0]:
        axis = place_of(values.axis, len(ins[0]))
        ins[1:] = [merged(found, ins[0][axis : axis + 1]) for found in ins[1:]]
        moments = (*ins[0][:axis], 1, *ins[0][axis + 1 :])
        outs[:] = [merged(outs[0], ins[0]), *(merged(out, moments) for out in outs[1:])]


def _group_norm(values: Values, ins: Shapes, outs: Shapes) -> None:
    if not ins[0]:
        return
    if len(ins[0]) < 3 or values.num_groups < 1 or ins[0][1] % values.num_groups:
        raise ShapeError(f"found an input {ins[0]} and {values.num_groups} groups, expected maps (N, C, ...) whose "
                         "channels come in groups of as many each")
    ins[1:] = [merged(found, (values.num_groups,)) for found in ins[1:]]
    outs[:] = [merged(outs[0], ins[0]), *(merged(out, (ins[0][0], values.num_groups)) for out in outs[1:])]


def _instance_norm(values: Values, ins: Shapes, outs: Shapes) -> None:
    if ins[0]:
        if len(ins[0]) < 2:
            raise ShapeError(f"found an input {ins[0]}, expected maps (N, C, ...)")
        ins[1:] = [merged(found, ins[0][1:2]) for found in ins[1:]]
        outs[:] = [merged(outs[0], ins[0]), *(merged(out, ins[0][:2]) for out in outs[1:])]


def _l2(values: Values, ins: Shapes, outs: Shapes) -> None:
    if ins[0]:
        batch, *rest = data = ins[0]
        if values.mode != "instance" and len(data) < 3:
            raise ShapeError(f"found an input {data}, expected maps (N, C, ...)")
        norms: dict[str, Shape] = {"instance": (batch,), "channel": (batch, *rest[1:]), "spatial": (batch, *rest[:1])}
        outs[:] = [merged(outs[0], data), norms[values.mode]]


_FACTORS = ("data", "gamma", "beta")
_MOMENTS = ("output", "mean", "var")
_STATES = ("moving_mean", "moving_var")
_STARTS = {"moving_mean": '["zero", {}]', "moving_var": '["one", {}]'}
_BATCH_NORM = {
    "eps": Parameter(float, EPSILON), "momentum": Parameter(float, 0.9), "fix_gamma": Parameter(boolean, True),
    "use_global_stats": Parameter(boolean, False), "output_mean_var": Parameter(boolean, False),
}
_CALIBRATION = Parameter(real_or_none, None)


def _three(values: Values) -> int:
    return 3


def _shown(values: Values) -> int:
    return 3 if values.output_mean_var else 1


OPERATORS = [
    Operator("BatchNorm", _channels(lambda values: values.axis), _FACTORS, _STATES, parameters={
        **_BATCH_NORM, "axis": Parameter(integer, 1), "cudnn_off": Parameter(boolean, False),
        "min_calib_range": _CALIBRATION, "max_calib_range": _CALIBRATION},
             outputs=_three, visible=_shown, output_names=_MOMENTS, own_inputs=True, starts=_STARTS,
             flops=each_output(2), reads=INPUTS,
             follows=("bfloat16", "float16"), onnx=onnx.batch_norm),
    Operator("BatchNorm_v1", _channels(lambda values: 1), _FACTORS, _STATES, parameters=_BATCH_NORM, outputs=_three,
             visible=_shown, output_names=_MOMENTS, own_inputs=True),
    Operator("_contrib_SyncBatchNorm", _channels(lambda values: 1), _FACTORS, _STATES, parameters={
        **_BATCH_NORM, "ndev": Parameter(integer, 1), "key": Parameter(str)},
             outputs=_three, visible=_shown, output_names=_MOMENTS, own_inputs=True, starts=_STARTS),
    Operator("LayerNorm", _layer_norm, _FACTORS, parameters={
        "axis": Parameter(integer, -1), "eps": Parameter(float, 1e-5), "output_mean_var": Parameter(boolean, False)},
             outputs=_three, visible=_shown, output_names=("output", "mean", "std"), flops=each_output(8), reads=INPUTS,
             onnx=onnx.layer_norm),
    Operator("GroupNorm", _group_norm, _FACTORS, parameters={
        "num_groups": Parameter(integer, 1), "eps": Parameter(float, 1e-5),
        "output_mean_var": Parameter(boolean, False)},
             outputs=_three, visible=_shown, output_names=("output", "mean", "std"), own_inputs=True),
    Operator("InstanceNorm", _instance_norm, _FACTORS, parameters={"eps": Parameter(float, 1e-3)}, outputs=_three,
             visible=lambda values: 1, own_inputs=True, reads=INPUTS),
    Operator("L2Normalization", _l2, parameters={
        "eps": Parameter(float, 1e-10), "mode": Parameter(words("instance", "channel", "spatial"), "instance")},
             outputs=lambda values: 2, visible=lambda values: 1, reads=OUTPUT),
    Operator("LRN", same, parameters={
        "alpha": Parameter(float, 1e-4), "beta": Parameter(float, 0.75), "knorm": Parameter(float, 2.0),
        "nsize": Parameter(integer)}, outputs=lambda values: 2, visible=lambda values: 1),
]
