# SPDX-License-Identifier: Apache-2.0
"""Measures images a second through backbones: unmodified graphs, graphs after this trainer's passes, and PyTorch's.

    OMP_NUM_THREADS=2 python -m bench.networks.backbone --networks y1 r50 --batch 16 --torch ENVIRONMENT/bin/python

``unmodified`` is the legacy graph as MXNet binds it. ``passes`` is what training binds, and in inference what an
embedder binds: batch norms folded, PReLU in fast operators; ``bfloat16`` is that in bfloat16, where the processor has
it. A step of training is forward and backward. ``--torch`` names a Python that has PyTorch. It runs our PyTorch engine
(``torch_engine.py``), in bfloat16, too, where the processor has it, and for comparison the residual network of the same
depth as its users write it, channels last, in eager mode (``torch_backbone.py``): processes of their own, which take
their turns with the others.

The forms take turns; a figure is the least of all repeats, in processor time divided by the threads: on a quiet machine
that is the time on the clock, and on a busy one it is less disturbed.
"""
from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import numpy as np

from bench.networks.memonger import network
from bench.networks.prelu import THREADS, Bound
from bench.ratios import bench_parser, write_ratios
from recognition.config.devices import require_bfloat16
from recognition.config.options import Config
from recognition.engines.configured import computing_of
from recognition.engines.mxnet.embedder import inference_form
from recognition.engines.mxnet.imports import mx
from recognition.engines.mxnet.passes.choose import bound_form
from recognition.errors import UserError
from recognition.networks.graph import Graph
from recognition.networks.initialise import initialise

IMAGE = (3, 112, 112)
Step = Callable[[], float]  # returns seconds


def prepared(graph: Graph, values: dict[str, np.ndarray], states: dict[str, np.ndarray], batch: int,
             training: bool) -> Step:
    """A step of ``graph``, bound with these values and random images."""
    bound = Bound(graph, training, data=(batch, *IMAGE))
    images = np.random.default_rng(0).integers(0, 256, (batch, *IMAGE))
    bound.executor.copy_params_from({name: mx.nd.array(value) for name, value in {**values, "data": images}.items()},
                                    {name: mx.nd.array(value) for name, value in states.items()})
    return bound.step


def has_bfloat16() -> bool:
    try:
        require_bfloat16("bfloat16")
    except UserError:
        return False
    return True


def training_steps(name: str, batch: int) -> dict[str, Step]:
    symbol = network(name)
    start = initialise(symbol, IMAGE, 0)
    forms = {"unmodified": symbol, "passes": bound_form(symbol, computing_of(Config()), IMAGE)}
    if has_bfloat16():
        forms["bfloat16"] = bound_form(symbol, computing_of(Config(fp16=True)), IMAGE)
    return {form: prepared(graph, *start, batch, True) for form, graph in forms.items()}


def inference_steps(name: str, batch: int) -> dict[str, Step]:
    symbol = network(name)
    start = initialise(symbol, IMAGE, 0)
    forms = {"unmodified": (symbol, *start), "passes": inference_form(symbol, *start, IMAGE)}
    if has_bfloat16():
        forms["bfloat16"] = inference_form(symbol, *start, IMAGE, bfloat16=True)
    return {form: prepared(*bound, batch, False) for form, bound in forms.items()}


def torch_commands(python: str, name: str, batch: int, training: bool) -> dict[str, list[str]]:
    """Commands of PyTorch that do a step for every line that they read, by the name of the form."""
    flags = [str(batch), str(THREADS), "training" if training else "inference"]
    engine = [python, "-m", "bench.networks.torch_engine", name, *flags]
    commands = {"torch engine": engine}
    if has_bfloat16():
        commands["torch bfloat16"] = [*engine, "--bfloat16"]
    if name.startswith("r"):
        commands["torch plain"] = [python, str(Path(__file__).with_name("torch_backbone.py")), name[1:], *flags]
    return commands


@contextlib.contextmanager
def torch_step(command: list[str]) -> Iterator[Step]:
    """A step of a command of :func:`torch_commands`."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout

        def step() -> float:
            assert process.stdin and process.stdout
            process.stdin.write("step\n")
            process.stdin.flush()
            return float(process.stdout.readline())

        yield step
        process.stdin.close()


def race(steps: dict[str, Step], repeats: int) -> dict[str, float]:
    """The least seconds of each step, taken in turns after a step that allocates and compiles."""
    least = dict.fromkeys(steps, float("inf"))
    for step in steps.values():
        step()
    for _ in range(repeats):
        for name, step in steps.items():
            least[name] = min(least[name], step())
    return least


def compare(name: str, batch: int, repeats: int, python: str | None) -> dict[str, float]:
    """The rows of a network, and its ratios: images/s to those of the unmodified graph."""
    ratios = {}
    for training in (True, False):
        steps = (training_steps if training else inference_steps)(name, batch)
        with contextlib.ExitStack() as stack:
            for form, command in torch_commands(python, name, batch, training).items() if python else ():
                steps[form] = stack.enter_context(torch_step(command))
            seconds = race(steps, repeats)
        for form, value in seconds.items():
            what, ratio = "training" if training else "inference", seconds["unmodified"] / value
            print(f"{name:8}{what:12}{form:16}{batch / value:10.1f}{ratio:8.2f}", flush=True)
            ratios[f"{name} {what}, {form}"] = ratio
    return ratios


def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--batch", type=int, default=16, help="images a step")
    parser.add_argument("--repeats", type=int, default=5, help="turns; the least time counts")
    parser.add_argument("--networks", nargs="*", default=["y1", "r50"])
    parser.add_argument("--torch", metavar="PYTHON", help="a Python with PyTorch")
    options = parser.parse_args()
    print(f"batch {options.batch}, {THREADS} threads, MXNet {mx.__version__}\n")
    print(f"{'network':8}{'':12}{'form':16}{'images/s':>10}{'ratio':>8}")
    ratios: dict[str, float] = {}
    for name in options.networks:
        ratios.update(compare(name, options.batch, options.repeats, options.torch))
    write_ratios(options.json, ratios)


if __name__ == "__main__":
    main()
