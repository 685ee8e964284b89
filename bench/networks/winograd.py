# SPDX-License-Identifier: Apache-2.0
"""Compares 3 x 3 convolutions by Winograd's algorithm with MXNet's: layers alone, between batch norms, and in steps.

    OMP_NUM_THREADS=1 python -m bench.networks.winograd --batch 16 --repeats 5 --networks r18 r50

The first table has the milliseconds of a forward and backward pass of a layer by itself, then of the layer between two
batch norms, which keep maps in oneDNN's own layout: there our code pays for the conversion to and fro. The second has a
step of a whole network, with the PReLU pass on in both. MXNet and our code take turns, and each figure is the least of
all repeats, in processor time divided by the threads. A run takes Winograd's where that is faster alone (AMD with
AVX-512); this bench takes it on any processor. On a busy machine one thread is the better measure, since threads
that wait for each other spin.
"""
from __future__ import annotations

import time

from bench.networks.prelu import THREADS, Bound
from bench.ratios import bench_parser, write_ratios
from recognition.engines.mxnet.imports import mx
from recognition.engines.mxnet.passes.prelu import fast_prelu
from recognition.engines.mxnet.passes.winograd import winograd
from recognition.networks import sym
from recognition.networks.families import fresnet
from recognition.networks.graph import Graph
from recognition.networks.initialise import initialise

# Channels in and out, height and width, and their number in r50; three more layers have twice as many channels out.
LAYERS = ((64, 64, 112, 1), (64, 64, 56, 4), (128, 128, 28, 6), (256, 256, 14, 26), (512, 512, 7, 4))
NETWORKS = {"r18": 18, "r50": 50}  # depths


class Halves(Bound):
    """A network bound for training, with the least seconds of each pass."""

    forward = backward = float("inf")

    def step(self) -> float:
        """Do one forward and backward pass; returns its seconds."""
        mx.nd.waitall()
        start = time.process_time()
        outputs = self.executor.forward(is_train=True)
        mx.nd.waitall()
        middle = time.process_time()
        self.executor.backward(outputs)
        mx.nd.waitall()
        halves = (middle - start) / THREADS, (time.process_time() - middle) / THREADS
        self.forward, self.backward = map(min, (self.forward, self.backward), halves)
        self.seconds = self.forward + self.backward
        return sum(halves)


def layer(channels: int, normed: bool) -> Graph:
    data = sym.Variable("data")
    if normed:
        data = sym.BatchNorm(data, fix_gamma=False)
    data = sym.Convolution(data, kernel=(3, 3), pad=(1, 1), num_filter=channels, no_bias=True)
    return (sym.BatchNorm(data, fix_gamma=False) if normed else data).graph()


def race(graphs: tuple[Graph, ...], shape: tuple[int, ...], repeats: int) -> list[Halves]:
    bound = [Halves(graph, data=shape) for graph in graphs]
    for _ in range(repeats + 1):  # the first pass allocates memory
        for item in bound:
            item.step()
    return bound


def compare_layers(batch: int, repeats: int) -> dict[str, float]:
    """Print the first table; returns the ratios of all layers together."""
    ratios = {}
    print(f"{'ms, forward + backward':24}{'MXNet':>16}{'Winograd':>16}{'ratio':>8}")
    for normed in (False, True):
        totals = [0.0, 0.0]
        for channels, filters, size, count in LAYERS:
            plain = layer(filters, normed)
            shape = (channels, size, size)
            found = race((plain, winograd(plain, shape)), (batch, *shape), repeats)
            totals = [total + count * item.seconds for total, item in zip(totals, found)]
            row(f"{channels} x {size} x {size}{', normed' if normed else ''}",
                [f"{1e3 * item.forward:.1f} + {1e3 * item.backward:.1f}" for item in found],
                found[0].seconds / found[1].seconds)
        row("as often as in r50", [f"{1e3 * total:.0f}" for total in totals], totals[0] / totals[1])
        ratios["layers, normed" if normed else "layers"] = totals[0] / totals[1]
    return ratios


def row(name: str, columns: list[str], ratio: float) -> None:
    print(f"{name:24}" + "".join(f"{column:>16}" for column in columns) + f"{ratio:8.2f}", flush=True)


def compare_networks(names: list[str], batch: int, repeats: int) -> dict[str, float]:
    ratios = {}
    print(f"\n{'images/s in training':24}{'MXNet':>16}{'Winograd':>16}{'ratio':>8}")
    for name in names:
        plain = fast_prelu(fresnet.get_symbol(num_layers=NETWORKS[name]))
        values, states = initialise(plain, (3, 112, 112), 0)
        bound = [Halves(symbol, data=(batch, 3, 112, 112)) for symbol in (plain, winograd(plain))]
        for item in bound:
            item.executor.copy_params_from({key: mx.nd.array(value) for key, value in values.items()},
                                           {key: mx.nd.array(value) for key, value in states.items()})
        for _ in range(repeats + 1):
            for item in bound:
                item.step()
        ratios[name] = bound[0].seconds / bound[1].seconds
        row(name, [f"{batch / item.seconds:.2f}" for item in bound], ratios[name])
    return ratios


def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--batch", type=int, default=16, help="images a step")
    parser.add_argument("--repeats", type=int, default=5, help="turns; the least time counts")
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    options = parser.parse_args()
    print(f"batch {options.batch}, {THREADS} threads, MXNet {mx.__version__}\n")
    ratios = compare_layers(options.batch, options.repeats)
    write_ratios(options.json, {**ratios, **compare_networks(options.networks, options.batch, options.repeats)})


if __name__ == "__main__":
    main()
