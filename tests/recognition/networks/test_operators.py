# SPDX-License-Identifier: Apache-2.0
"""The table of operators against MXNet 1.9.1: names, inputs, outputs, and the shapes of every operator."""
from __future__ import annotations

import json
import random

import pytest

from recognition.engines.mxnet.imports import mx
from recognition.errors import UserError
from recognition.networks.graph import Graph
from recognition.networks.operators import OPERATORS
from recognition.networks.shapes import all_shapes

NAMES = sorted({operator.name for operator in OPERATORS.values() if operator.in_untrusted_files})
SIDES = (1, 2, 3, 4, 6, 8, 12)


def two(low=1, high=3):
    return lambda draw: f"({draw.randint(low, high)}, {draw.randint(low, high)})"


def one_of(*values):
    return lambda draw: str(draw.choice(values))


def number(low, high):
    return lambda draw: str(draw.randint(low, high))


def numbers(low, high, least=1, most=4):
    def make(draw):
        return str(tuple(draw.randint(low, high) for _ in range(draw.randint(least, most))))

    return make


WINDOW = {"kernel": two(1, 4), "stride": two(1, 3), "pad": two(0, 2)}
CONVOLUTION = {**WINDOW, "dilate": two(1, 2), "num_filter": one_of(2, 4, 6), "num_group": one_of(1, 1, 2, 3),
               "no_bias": one_of("True", "False")}
POOLING = {**WINDOW, "global_pool": one_of("False", "False", "True"), "pool_type": one_of("max", "avg")}
REDUCTION = {"axis": one_of("None", "1", "(1,)", "(2, 3)", "-1", "()", "(0, 2)"), "keepdims": one_of("True", "False"),
             "exclude": one_of("True", "False", "False")}
PLACE = {"axis": one_of("None", 0, 1, -1, 2), "keepdims": one_of("True", "False")}
MATRICES = {"transpose_a": one_of("True", "False"), "transpose_b": one_of("True", "False")}
MOMENTS = {"output_mean_var": one_of("True", "False")}
DTYPE = {"dtype": one_of("float32", "float16")}
SCALAR = {"scalar": one_of(2.0, 0.5)}
# How attributes are drawn; an attribute that is not listed keeps its default, and of optional ones some are left out.
DRAWN = {
    "Convolution": {**CONVOLUTION, "layout": one_of("None", "NCHW")}, "Convolution_v1": CONVOLUTION,
    "Deconvolution": {**CONVOLUTION, "adj": two(0, 1), "target_shape": one_of("()", "(8, 8)", "(0, 0)", "(5, 5)")},
    "FullyConnected": {"num_hidden": number(1, 5), "flatten": one_of("True", "False"),
                       "no_bias": one_of("True", "False")},
    "Pooling": {**POOLING, "pool_type": one_of("max", "avg", "sum", "lp"), "p_value": one_of(2),
                "pooling_convention": one_of("valid", "full", "same")},
    "Pooling_v1": {**POOLING, "pooling_convention": one_of("valid", "full")},
    "BatchNorm": {"axis": one_of(1, 1, -1, 0, 3), **MOMENTS}, "BatchNorm_v1": MOMENTS,
    "_contrib_SyncBatchNorm": {"key": one_of("a"), **MOMENTS},
    "LayerNorm": {"axis": one_of(-1, 1, 2), **MOMENTS}, "GroupNorm": {"num_groups": one_of(1, 2, 3), **MOMENTS},
    "LeakyReLU": {"act_type": one_of("leaky", "prelu", "elu", "gelu", "selu")},
    "Activation": {"act_type": one_of("relu", "softsign")}, "Dropout": {"p": one_of(0.5)},
    "L2Normalization": {"mode": one_of("instance", "channel", "spatial")}, "LRN": {"nsize": one_of(3)},
    "SoftmaxOutput": {"multi_output": one_of("True", "False"), "preserve_shape": one_of("True", "False")},
    "Cast": DTYPE, "amp_cast": DTYPE, "amp_multicast": {"num_outputs": one_of(2)},
    "clip": {"a_min": one_of(0.0), "a_max": one_of(6.0)}, "dot": MATRICES, "batch_dot": MATRICES,
    **dict.fromkeys(("sum", "mean", "max", "min", "prod"), REDUCTION),
    "norm": {"axis": one_of("None", "1", "(2, 3)"), "keepdims": one_of("True", "False")},
    "argmax": PLACE, "argmin": PLACE,
    "Reshape": {"shape": one_of("(0, -1)", "(-1,)", "(0, 0, -1)", "(-2,)", "(0, -3, -2)", "(0, -4, -1, 2, -2)",
                                "(-3, -3)", "(2, 3)", "(0, -4, 3, -1, 0, 0)", "(-1, 0)", "(0, 0, 0, 0, 0)",
                                "(0, 0, 1, -1)"),
                "reverse": one_of("False", "False", "True")},
    "transpose": {"axes": one_of("(0, 2, 3, 1)", "()", "(1, 0)", "(0, 2, 1)", "(0, 1, 1, 2)")},
    "SwapAxis": {"dim1": number(0, 3), "dim2": number(0, 3)},
    "SliceChannel": {"num_outputs": one_of(2, 3), "axis": one_of(1, 2, -1), "squeeze_axis": one_of("True", "False")},
    "expand_dims": {"axis": number(-2, 4)}, "squeeze": {"axis": one_of("None", "1", "(1, 2)", "-1")},
    "tile": {"reps": numbers(1, 3)}, "repeat": {"repeats": number(1, 3), "axis": one_of("None", 0, -1, 2)},
    "reverse": {"axis": one_of("0", "(1, 2)")},
    "Pad": {"mode": one_of("constant", "edge", "reflect"),
            "pad_width": one_of("(0, 0, 0, 0, 1, 1, 2, 1)", "(0, 0, 0, 0, 0, 0, 3, 3)", "(1, 1, 0, 0, 1, 1, 1, 1)")},
    "depth_to_space": {"block_size": one_of(1, 2)}, "space_to_depth": {"block_size": one_of(2, 3)},
    "Concat": {"dim": one_of(1, 0, -1, 2)}, "stack": {"axis": number(-2, 3)},
    "slice": {"begin": one_of("(0,)", "(0, 1)", "(None, None, 1)", "(-1,)", "(0, -2)"),
              "end": one_of("(2,)", "(None, 3)", "(None, None, 2)", "(None,)", "(1, None)"),
              "step": one_of("()", "(1,)", "(1, 2)", "(1, -1)", "(-1,)")},
    "slice_axis": {"axis": one_of(1, 2, -1), "begin": number(-2, 2), "end": one_of("None", 1, 2, 3, -1)},
    "take": {"axis": one_of(0, 1, -1), "mode": one_of("clip", "wrap")},
    "slice_like": {"axes": one_of("()", "(1,)", "(2, 3)", "(-1,)")},
    "reshape_like": {"lhs_begin": one_of("None", 1), "lhs_end": one_of("None", 2, -1), "rhs_begin": one_of("None", 1),
                     "rhs_end": one_of("None", 2, -1)},
    "broadcast_axis": {"axis": one_of("1", "(2, 3)", "(1, 2)"), "size": one_of("4", "(2, 3)")},
    "broadcast_to": {"shape": one_of("(0, 4, 0, 4)", "(4, 4, 0, 0)", "(4, 4, 4, 4)", "(3, 0)")},
    "broadcast_like": {"lhs_axes": one_of("None", "(1,)", "(2, 3)"), "rhs_axes": one_of("None", "(1,)", "(-2, -1)")},
    "UpSampling": {"scale": number(1, 3), "sample_type": one_of("nearest")},
    "_contrib_AdaptiveAvgPooling2D": {"output_size": one_of("()", "3", "(2, 3)")},
    **{name: SCALAR for name in NAMES if name.endswith("_scalar")},
}
NEEDED = {"kernel", "num_filter", "num_hidden", "act_type", "nsize", "dtype", "num_outputs", "a_min", "a_max", "mode",
          "pad_width", "shape", "axis", "reps", "repeats", "block_size", "begin", "end", "scale", "sample_type", "key",
          "size"}

# What MXNet takes though it means nothing: another number of numbers, a kernel larger than the map, an axis that is not
# there or there twice, maps of other than two sides, inputs of several shapes.
STRICTER = {"Convolution_v1", "Reshape", "reverse", "transpose", "_contrib_AdaptiveAvgPooling2D", "stack"}


def drawn(name, draw):
    """A graph of one operator in JSON, and the shapes of its inputs; the further inputs' are mostly left open."""
    operator = OPERATORS[name]
    attrs = {key: make(draw) for key, make in DRAWN.get(name, {}).items() if key in NEEDED or draw.random() < 0.7}
    inputs = draw.randint(1, 3) if operator.variadic else len(operator.input_names(operator.values(attrs)))
    if name == "UpSampling":
        inputs, attrs["num_args"] = 1, "1"
    elif operator.variadic and "num_args" in operator.parameters:
        attrs["num_args"] = str(inputs)
    elif name == "amp_multicast":
        inputs = 2
    rank = draw.choice((4, 4, 4, 4, 3, 2, 5))
    sides = (1, 1, 1, 4) if name in ("broadcast_axis", "broadcast_to") else SIDES
    data = tuple(draw.choice(sides) for _ in range(rank))
    known = {"data": data}
    parameters = len(operator.inputs) > 1 and operator.inputs[1] in ("weight", "gamma", "label")
    for number_ in range(1, inputs):
        other = tuple(size if draw.random() < 0.8 else draw.choice((1, size, 2)) for size in data)
        if not parameters:
            known[f"v{number_}"] = other[draw.choice((0, 0, 0, 1)):] if "dot" in name or "broadcast" in name else other
    nodes = [{"op": "null", "name": "data", "inputs": []}]
    for number_ in range(1, inputs):
        shape = known.get(f"v{number_}") if draw.random() < 0.9 or name in ("Concat", "stack", "reshape_like") else None
        nodes.append({"op": "null", "name": f"v{number_}", "inputs": [],
                      **({"attrs": {"__shape__": str(shape)}} if shape else {})})
    nodes.append({"op": name, "name": "n", "attrs": attrs, "inputs": [[place, 0, 0] for place in range(inputs)]})
    return json.dumps({"nodes": nodes, "arg_nodes": list(range(inputs)), "heads": [[inputs, 0, 0]],
                       "attrs": {"mxnet_version": ["int", 10901]}}), data


def mxnet_shapes(text, data):
    try:
        symbol = mx.sym.load_json(text).get_internals()
        return dict(zip(symbol.list_outputs(), symbol.infer_shape_partial(data=data)[1]))
    except mx.MXNetError as error:
        return str(error).splitlines()[0]


def our_shapes(text, data):
    try:
        graph = Graph.from_dict(json.loads(text))
        shapes = all_shapes(graph, data)
        return {name: shapes[entry.node][entry.output] for name, entry in graph.internals.items()}
    except (UserError, ValueError) as error:
        return str(error)


def test_every_name_is_one_of_mxnets() -> None:
    assert {name for name, operator in OPERATORS.items() if operator.in_untrusted_files} <= set(
        mx.operator.get_all_registered_operators()) | {f"_{name}Scalar" for name in (
            "Plus", "Minus", "RMinus", "Mul", "Div", "RDiv", "Power", "RPower", "Maximum", "Minimum", "Mod", "Equal",
            "Greater", "Lesser")}


@pytest.mark.parametrize("name", NAMES)
def test_shapes_are_those_of_mxnet(name: str) -> None:
    """For 40 drawn nodes of an operator. Where MXNet refuses one, so do we."""
    draw, compared = random.Random(name), 0
    for _ in range(40):
        text, data = drawn(name, draw)
        expected, found = mxnet_shapes(text, data), our_shapes(text, data)
        if isinstance(expected, str):
            assert isinstance(found, str), (text, data, expected, found)
        elif isinstance(found, str):
            empty = any(min(shape) < 1 for shape in expected.values())
            assert empty or name in STRICTER, (text, data, expected, found)
        else:
            assert found == expected, (text, data)
            compared += 1
    assert compared >= 3
