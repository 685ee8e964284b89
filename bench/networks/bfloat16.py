# SPDX-License-Identifier: Apache-2.0
"""Compares a training step in bfloat16 with one in float32: its time, and the error of its gradients.

    OMP_NUM_THREADS=2 python -m bench.networks.bfloat16 --batch 8 --repeats 4 --networks y1 r18 r50

Forward and backward with the same parameters and images, both with the PReLU pass. Times are the least of the repeats,
taken in turns, in processor time divided by the threads. The error is that of all gradients as one vector, relative to
its norm. It says little about training by itself: batch norm behind a random network makes the gradient of a few
images a small difference of large numbers.
"""
from __future__ import annotations

import numpy as np

from bench.networks.memonger import network
from bench.networks.prelu import THREADS, Bound
from bench.ratios import bench_parser, write_ratios
from recognition.engines.mxnet.imports import mx
from recognition.engines.mxnet.passes.prelu import fast_prelu
from recognition.networks.initialise import initialise
from recognition.networks.low_precision import low_precision


def gradient(bound: Bound) -> np.ndarray:
    """All gradients except the images', in one vector."""
    arrays = bound.executor.grad_dict.items()
    return np.concatenate([array.asnumpy().ravel() for name, array in arrays if name != "data"])


def compare(name: str, batch: int, repeats: int) -> float:
    """Print a row of the table and return its ratio."""
    wide = fast_prelu(network(name))
    values, statistics = initialise(wide, (3, 112, 112), 0)
    parameters = {key: mx.nd.array(value) for key, value in values.items()}
    parameters["data"] = mx.nd.array(np.random.default_rng(0).integers(0, 256, (batch, 3, 112, 112)))
    pair = [Bound(symbol, data=(batch, 3, 112, 112)) for symbol in (wide, low_precision(wide, "bfloat16"))]
    for bound in pair:
        bound.executor.copy_params_from(parameters, {key: mx.nd.array(value) for key, value in statistics.items()})
    for _ in range(repeats):
        for bound in pair:
            mx.random.seed(0)
            bound.step()
    reference, found = map(gradient, pair)
    error = np.linalg.norm(found - reference) / np.linalg.norm(reference)
    speeds = [batch / bound.seconds for bound in pair]
    print(f"{name:10}{speeds[0]:12.1f}{speeds[1]:12.1f}{speeds[1] / speeds[0]:8.2f}{error:10.3f}", flush=True)
    return speeds[1] / speeds[0]


def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--batch", type=int, default=8, help="images a step")
    parser.add_argument("--repeats", type=int, default=4, help="turns; the least time counts")
    parser.add_argument("--networks", nargs="*", default=["y1", "r18", "r50"])
    options = parser.parse_args()
    print(f"batch {options.batch}, {THREADS} threads, MXNet {mx.__version__}\n")
    print(f"{'images/s':10}{'float32':>12}{'bfloat16':>12}{'ratio':>8}{'error':>10}")
    write_ratios(options.json, {name: compare(name, options.batch, options.repeats) for name in options.networks})


if __name__ == "__main__":
    main()
