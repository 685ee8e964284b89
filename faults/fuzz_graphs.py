# SPDX-License-Identifier: Apache-2.0
"""Graphs that pass the check of recognition.networks.symbol_file, run by MXNet: none may end the process.

    python -m faults.fuzz_graphs [--seconds 300] [--first SEED] [--record]
    python -m faults.fuzz_graphs --seed 104749        # one graph: its changes and the result

A graph is a network of the usual layers with a few random changes of attributes, operators or inputs, which follow from
its seed. Each graph that passes the check is run on images in a process of its own: shapes, output and gradients.
tests/faults/test_fuzz_graphs.py is the short form.
"""
from __future__ import annotations

import faulthandler
import json
import os
import random
import resource
import signal
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from faults.reliability import Row, report
from recognition.config.command_line import Parser
from recognition.engines.mxnet.bound import Bound
from recognition.engines.mxnet.embedder import inference_form
from recognition.engines.mxnet.imports import mx
from recognition.engines.mxnet.symbols import to_symbol
from recognition.errors import UserError, command
from recognition.networks import sym
from recognition.networks.graph import Graph
from recognition.networks.operators import OPERATORS
from recognition.networks.shapes import Shapes, all_shapes, infer_shapes
from recognition.networks.symbol_file import checked_graph

IMAGES, SHAPE = 2, (3, 32, 32)
MOST_NUMBERS, MEMORY_BYTES = 5e7, 6 << 30  # of all outputs; of a run
PATIENCE_SECONDS = 30  # of processors' time, for a run
VALUES = """0 1 2 3 5 7 -1 64 4096 16777216 0.5 1e38 inf nan None True False () (1,) (0,0) (1,1) (2,2) (3,3) (-1,0)
    (0,-1) (1,2,3) [3,3] (4096,4096) (0,0,0,0,1,1,1,1) (-1,-2,0,0) (2,0,3,1) avg max sum prelu leaky rrelu gelu elu
    channel instance spatial NHWC NCHW NCW float16 float64 int8 uint8 int64 full same valid nearest bilinear constant
    reflect edge softrelu"""
KEYS = """kernel stride pad dilate num_filter num_group num_hidden no_bias axis act_type slope pool_type global_pool eps
    momentum fix_gamma use_global_stats shape dim1 dim2 num_outputs squeeze_axis begin end step scalar dtype mode p axes
    keepdims reps repeats size scale sample_type num_args output_size transpose_a transpose_b lower_bound upper_bound
    block_size nsize knorm alpha beta a_min a_max flatten pooling_convention count_include_pad layout p_value ord adj
    multi_output target_shape workspace constant_value pad_width depth num_groups reverse exclude temperature use_length
    center"""
RAN, REFUSED = "ran", "refused"
PROMISE = "a result, our line or MXNet's own error; no crash, no endless loop"


def network() -> dict[str, Any]:
    """A graph with all types of layers that networks of images have."""
    x = (sym.Variable("data") - 127.5) * 0.0078125
    x = sym.Convolution(x, num_filter=8, kernel=(3, 3), stride=(2, 2), pad=(1, 1), no_bias=True, name="conv0")
    x = sym.LeakyReLU(sym.BatchNorm(x, fix_gamma=False, name="bn0"), act_type="prelu", name="relu0")
    x = x + sym.Convolution(x, num_filter=8, kernel=(3, 3), pad=(1, 1), num_group=4, name="conv1")
    parts = sym.SliceChannel(x, num_outputs=2, name="parts")
    x = sym.Pooling(sym.Concat(parts[0], parts[1], dim=1), kernel=(2, 2), stride=(2, 2), pool_type="avg")
    x = sym.clip(sym.transpose(sym.Activation(x, act_type="relu"), axes=(0, 1, 3, 2)), a_min=0, a_max=6)
    x = sym.Pad(sym.Dropout(x, p=0.4), mode="constant", pad_width=(0, 0, 0, 0, 1, 1, 1, 1))
    x = sym.UpSampling(x, scale=2, sample_type="nearest")
    x = sym.LRN(sym.L2Normalization(sym.broadcast_mul(x, sym.mean(x, axis=(2, 3), keepdims=True))), nsize=3)
    x = sym.Cast(sym.slice(x, begin=(0, 0, 0, 0), end=(None, None, 4, 4)), dtype="float32")
    x = sym.InstanceNorm(sym.Deconvolution(x, kernel=(2, 2), stride=(2, 2), num_filter=4, name="up"), name="norm")
    x = sym.FullyConnected(sym.Reshape(x, shape=(0, -1)), num_hidden=16, name="pre_fc1")
    graph: dict[str, Any] = json.loads(sym.BatchNorm(sym.LayerNorm(x, name="layer"), name="fc1").graph().to_json())
    return graph


def changed(graph: dict[str, Any], seed: int) -> dict[str, Any]:
    """``graph`` with one to four changes."""
    chance = random.Random(seed)
    graph = json.loads(json.dumps(graph))
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(graph["nodes"]))
        node, what = graph["nodes"][place], chance.random()
        attrs, inputs = node.setdefault("attrs", {}), node["inputs"]
        if what < 0.45:
            key = chance.choice(list(attrs)) if attrs and chance.random() < 0.7 else chance.choice(KEYS.split())
            attrs[key] = chance.choice(VALUES.split())
        elif what < 0.55 and attrs:
            attrs.pop(chance.choice(list(attrs)))
        elif what < 0.8 and node["op"] != "null":
            fitting = [op for op, known in OPERATORS.items() if known.fewest <= len(inputs) <= known.most]
            node["op"] = chance.choice(fitting or [node["op"]])
            if chance.random() < 0.5:
                attrs.clear()
        elif inputs:
            chance.choice(inputs)[0] = chance.randrange(max(1, place))
            if chance.random() < 0.2:
                inputs.append([chance.randrange(max(1, place)), 0, 0])
            elif chance.random() < 0.2:
                inputs.pop()
    return graph


def run(graph: dict[str, Any]) -> str:
    """Run a graph; returns RAN, or the place of its refusal by us or by MXNet."""
    try:
        read = Graph.from_dict(checked_graph(graph))
    except ValueError:
        return REFUSED
    try:
        shapes = infer_shapes(read, SHAPE, IMAGES)
        inner = [shape for found in all_shapes(read, (IMAGES, *SHAPE)) for shape in found]
        if not all(shape and 0 not in shape for shape in inner):
            return "shapes are not known"
        if sum(np.prod(shape, dtype=float) for shape in inner) > MOST_NUMBERS:
            return "large"
        _embed(read, shapes)
        _train(read, shapes)
    except UserError:
        return "refused by its shapes"
    except mx.MXNetError:
        return "an error of MXNet"
    return RAN


def _embed(graph: Graph, shapes: Shapes) -> None:
    """Embed images like recognition.engines.mxnet.embedder."""
    form = inference_form(graph, {name: np.ones(shape, np.float32) for name, shape in shapes.arguments.items()},
                          {name: np.ones(shape, np.float32) for name, shape in shapes.auxiliary.items()}, SHAPE)
    Bound(*form, mx.cpu(), (IMAGES, *SHAPE)).queue(np.ones((IMAGES, *SHAPE), np.uint8)).wait_to_read()


def _train(graph: Graph, shapes: Shapes) -> None:
    """Compute output and gradients."""
    arguments = {"data": mx.nd.ones((IMAGES, *SHAPE)),
                 **{name: mx.nd.ones(shape) for name, shape in shapes.arguments.items()}}
    executor = to_symbol(graph).bind(
        mx.cpu(), arguments, {name: array.zeros_like() for name, array in arguments.items()},
        aux_states={name: mx.nd.ones(shape) for name, shape in shapes.auxiliary.items()})
    output = executor.forward(is_train=True)[0]
    executor.backward(output.ones_like())
    mx.nd.waitall()


def _address_space() -> int:
    """Bytes of addresses that this process has taken, whether there is memory behind them or not."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def alone(graph: dict[str, Any]) -> str:
    """Like :func:`run`, but in a process of its own; returns the signal's name if one ended it."""
    here, there = os.pipe()
    child = os.fork()
    if not child:
        said = "an exception"
        try:
            faulthandler.disable()
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            most = _address_space() + MEMORY_BYTES
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
            signal.setitimer(signal.ITIMER_PROF, PATIENCE_SECONDS)
            signal.alarm(20 * PATIENCE_SECONDS)  # for one that waits and does not compute
            said = run(graph)
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"[:200]
        finally:
            os.write(there, said.encode())
            os._exit(0)
    os.close(there)
    with os.fdopen(here, "rb") as pipe:
        outcome = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    return f"ended by {signal.Signals(os.WTERMSIG(status)).name}" if os.WIFSIGNALED(status) else outcome


def fuzz(seconds: float, first: int, most: int = 1 << 62) -> tuple[int, Row]:
    """Run graphs of consecutive seeds. Returns the next seed, and the row about the graphs that passed the check."""
    graph, counts, faults, end = network(), Counter[str](), [], time.monotonic() + seconds
    seed = first
    while seed < first + most and time.monotonic() < end:
        outcome = alone(changed(graph, seed))
        counts[outcome] += 1
        if outcome.startswith("ended by") or ":" in outcome:
            faults.append(f"seed {seed}: {outcome}")
            print(faults[-1], flush=True)
        seed += 1
    passed = seed - first - counts.pop(REFUSED, 0)
    seen = ", ".join(f"{count:,} {outcome}" for outcome, count in counts.most_common())
    return seed, Row("a changed network that passes the check, run by MXNet", passed, PROMISE, passed - len(faults),
                     "; ".join([f"of {seed - first:,} graphs {passed:,} passed: {seen}", *faults]))


def _show(seed: int) -> None:
    before = network()
    after = changed(before, seed)
    for old, new in zip(before["nodes"], after["nodes"]):
        if {**old, "attrs": old.get("attrs", {})} != {**new, "attrs": new.get("attrs", {})}:
            print(f"- {json.dumps(old)}\n+ {json.dumps(new)}")
    print(alone(after))


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m faults.fuzz_graphs", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="of the first graph")
    parser.add_argument("--seed", type=int, help="of one graph, which is shown")
    parser.add_argument("--record", action="store_true", help="write the table of docs/records/reliability.md")
    args = parser.parse_args(argv)
    if args.seed is not None:
        _show(args.seed)
        return 0
    last, row = fuzz(args.seconds, args.first)
    print(f"seeds {args.first} to {last - 1}: {row.happened}")
    return report("graphs", f"python -m faults.fuzz_graphs --seconds {args.seconds:g} --record", [row], args.record)


if __name__ == "__main__":
    raise SystemExit(main())
