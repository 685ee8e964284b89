# SPDX-License-Identifier: Apache-2.0
"""Measures PReLU's cost in training: MXNet's operator and other forms, at map sizes of y1 and r50; then whole steps.

    OMP_NUM_THREADS=2 python -m bench.networks.prelu --batch 32 --repeats 5 --networks y1 r50

The first table has the milliseconds that PReLU adds to a forward and backward pass of 1 x 1 convolution, batch norm,
PReLU and depthwise 3 x 3 convolution. A form that leaves oneDNN's layout pays there for the conversion to and fro.
The second has a step of a whole network, forward and backward, with and without the graph pass. The forms take turns,
and each figure is the least of all repeats, in processor time divided by the threads: on a quiet machine that is the
time on the clock, and on a busy one it is less disturbed.
"""
from __future__ import annotations

import os
import time
from typing import Callable

from bench.ratios import bench_parser, write_ratios
from recognition.engines.mxnet.imports import mx
from recognition.engines.mxnet.passes.prelu import fast_prelu
from recognition.engines.mxnet.symbols import from_symbol, to_symbol
from recognition.networks.families import fmobilefacenet, fresnet
from recognition.networks.graph import Graph
from recognition.networks.initialise import initialise

THREADS = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
MAPS = ((64, 112), (64, 56), (128, 28), (256, 14), (512, 7))
NETWORKS: dict[str, Callable[[], Graph]] = {
    "y1": fmobilefacenet.get_symbol,
    "r50": lambda: fresnet.get_symbol(num_layers=50),
}


def relu(data: mx.sym.Symbol) -> mx.sym.Symbol:
    return mx.sym.Activation(data, act_type="relu")


def times(data: mx.sym.Symbol, factors: mx.sym.Symbol, channels: int) -> mx.sym.Symbol:
    return mx.sym.Convolution(data, weight=factors, kernel=(1, 1), num_filter=channels, num_group=channels,
                              no_bias=True)


def slopes(gamma: mx.sym.Symbol, channels: int) -> mx.sym.Symbol:
    return mx.sym.reshape(gamma, shape=(channels, 1, 1, 1))


def operator(x: mx.sym.Symbol, gamma: mx.sym.Symbol, channels: int) -> mx.sym.Symbol:
    return mx.sym.LeakyReLU(x, gamma=gamma, act_type="prelu")


def broadcast(x: mx.sym.Symbol, gamma: mx.sym.Symbol, channels: int) -> mx.sym.Symbol:
    positive = relu(x)
    return positive - mx.sym.broadcast_mul(positive - x, mx.sym.reshape(gamma, shape=(1, channels, 1, 1)))


def where(x: mx.sym.Symbol, gamma: mx.sym.Symbol, channels: int) -> mx.sym.Symbol:
    return mx.sym.where(x > 0, x, times(x, slopes(gamma, channels), channels))


def subtractions(x: mx.sym.Symbol, gamma: mx.sym.Symbol, channels: int) -> mx.sym.Symbol:
    positive = relu(x)
    return positive - times(positive - x, slopes(gamma, channels), channels)


def two_products(x: mx.sym.Symbol, gamma: mx.sym.Symbol, channels: int) -> mx.sym.Symbol:
    """PReLU by two products. It is inexact: gamma x + (1 - gamma) x differs from x in the last bit."""
    gamma = slopes(gamma, channels)
    return times(x, gamma, channels) + times(relu(x), 1 - gamma, channels)


FORMS: dict[str, Callable[[mx.sym.Symbol, mx.sym.Symbol, int], mx.sym.Symbol]] = {
    "no activation": lambda x, gamma, channels: mx.sym.identity(x),
    "LeakyReLU": operator,
    "relu(x) - broadcast_mul": broadcast,
    "where(x > 0, x, depthwise)": where,
    "relu(x) - depthwise, subtractions": subtractions,
    "depthwise + depthwise (inexact)": two_products,
}


class Bound:
    """A network bound on the CPU, with random parameters and inputs."""

    def __init__(self, graph: Graph, training: bool = True, **shapes: tuple[int, ...]) -> None:
        self.training = training
        self.executor = to_symbol(graph).simple_bind(mx.cpu(), grad_req="write", **shapes)
        for array in self.executor.arg_arrays:
            array[:] = mx.nd.random.normal(scale=0.3, shape=array.shape)
        self.seconds = float("inf")

    def step(self) -> float:
        """Do one forward pass, and in training a backward pass; returns its seconds and keeps the least."""
        mx.nd.waitall()
        start = time.process_time()
        outputs = self.executor.forward(is_train=self.training)
        if self.training:
            self.executor.backward(outputs)
        mx.nd.waitall()
        seconds = (time.process_time() - start) / THREADS
        self.seconds = min(self.seconds, seconds)
        return seconds


def in_context(form: Callable[[mx.sym.Symbol, mx.sym.Symbol, int], mx.sym.Symbol], channels: int) -> Graph:
    data = mx.sym.Convolution(mx.sym.var("data"), num_filter=channels, kernel=(1, 1), no_bias=True)
    data = mx.sym.BatchNorm(data, fix_gamma=False)
    data = form(data, mx.sym.var("slope", shape=(channels,)), channels)
    return from_symbol(mx.sym.Convolution(data, num_filter=channels, num_group=channels, kernel=(3, 3), pad=(1, 1),
                                          no_bias=True))


def compare_forms(batch: int, repeats: int) -> dict[str, float]:
    """Print the table of forms; returns the ratio of the times that MXNet's operator and the pass add over all maps."""
    columns = []
    for channels, size in MAPS:
        graphs = {name: in_context(form, channels) for name, form in FORMS.items()}
        graphs["the pass"] = fast_prelu(graphs["LeakyReLU"], (channels, size, size))
        bound = {name: Bound(graph, data=(batch, channels, size, size)) for name, graph in graphs.items()}
        for _ in range(repeats):
            for item in bound.values():
                item.step()
        bare = bound.pop("no activation").seconds
        columns.append({name: 1e3 * (item.seconds - bare) for name, item in bound.items()})
    print(f"{'ms that PReLU adds':36}" + "".join(f"{f'{c} x {s} x {s}':>16}" for c, s in MAPS))
    for name in columns[0]:
        print(f"{name:36}" + "".join(f"{column[name]:16.1f}" for column in columns))
    before, after = (sum(column[name] for column in columns) for name in ("LeakyReLU", "the pass"))
    return {"all maps": before / after}


def compare_networks(names: list[str], batch: int, repeats: int) -> dict[str, float]:
    ratios = {}
    print(f"\n{'images/s in training':20}{'LeakyReLU':>12}{'the pass':>12}{'ratio':>8}")
    for name in names:
        symbol = NETWORKS[name]()
        values, _ = initialise(symbol, (3, 112, 112), 0)
        before, after = (Bound(graph, data=(batch, 3, 112, 112)) for graph in (symbol, fast_prelu(symbol)))
        for item in (before, after):
            item.executor.copy_params_from({key: mx.nd.array(value) for key, value in values.items()})
        for _ in range(repeats):
            before.step()
            after.step()
        speeds = batch / before.seconds, batch / after.seconds
        print(f"{name:20}{speeds[0]:12.1f}{speeds[1]:12.1f}{speeds[1] / speeds[0]:8.2f}", flush=True)
        ratios[name] = speeds[1] / speeds[0]
    return ratios


def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--batch", type=int, default=32, help="images a step")
    parser.add_argument("--repeats", type=int, default=5, help="turns; the least time counts")
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    options = parser.parse_args()
    print(f"batch {options.batch}, {THREADS} threads, MXNet {mx.__version__}\n")
    ratios = compare_forms(options.batch, options.repeats)
    ratios.update(compare_networks(options.networks, options.batch, options.repeats))
    write_ratios(options.json, ratios)


if __name__ == "__main__":
    main()
