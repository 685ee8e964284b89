# SPDX-License-Identifier: Apache-2.0
"""Measures images a second of exported networks in float32 and in INT8, by onnxruntime and, where it is installed, by
OpenVINO.

    python -m bench.networks.int8 --networks y1 r18 --batch 8
    python -m bench.networks.int8 --files r50.onnx r50-int8.onnx

The INT8 files are those of common.quantize_onnx. Each runs in one thread. The forms take turns; a figure is the least
of all repeats, in processor time: on a quiet machine that is the time on the clock, and on a busy one it is less
disturbed. Networks have their first values: time does not depend on them. Ratios are to float32 by onnxruntime.
"""
from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
from pathlib import Path
from typing import Any, Callable

import numpy as np

from bench.networks.backbone import IMAGE, Step, race
from bench.networks.memonger import network
from bench.ratios import bench_parser, write_ratios
from common.embedding.foreign_models import OnnxNetwork
from common.export.int8 import quantise
from recognition.config.devices import CPU
from recognition.networks.initialise import initialise
from recognition.networks.onnx_graph import to_onnx


def files_of(name: str, folder: Path) -> tuple[Path, Path]:
    """Export a network with its first values, and quantise it on eight random images."""
    plain, small = folder / f"{name}.onnx", folder / f"{name}-int8.onnx"
    graph = network(name)
    plain.write_bytes(to_onnx(graph, *initialise(graph, IMAGE, 0), IMAGE).SerializeToString())
    images = np.random.default_rng(0).integers(0, 256, (8, *IMAGE), np.uint8)
    quantise(plain, OnnxNetwork(plain, CPU, IMAGE), images, small)
    return plain, small


def steps_of(plain: Path, small: Path, batch: int) -> dict[str, Step]:
    """A step of each form of a network: ``batch`` images."""
    pixels = np.random.default_rng(1).integers(0, 256, (batch, *IMAGE)).astype(np.float32)
    runs: dict[str, Callable[[], Any]] = {}
    for kind, path in (("float32", plain), ("INT8", small)):
        runs[f"onnxruntime {kind}"] = of_onnxruntime(path, pixels)
        if importlib.util.find_spec("openvino"):
            runs[f"OpenVINO {kind}"] = of_openvino(path, pixels)
    return {name: timed(run) for name, run in runs.items()}


def of_onnxruntime(path: Path, pixels: np.ndarray) -> Callable[[], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {session.get_inputs()[0].name: pixels})


def of_openvino(path: Path, pixels: np.ndarray) -> Callable[[], Any]:
    import openvino

    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32",
                                                               "INFERENCE_NUM_THREADS": 1})
    return lambda: compiled([pixels])


def timed(run: Callable[[], Any]) -> Step:
    def step() -> float:
        start = time.process_time()
        run()
        return time.process_time() - start

    return step


def compare(name: str, files: tuple[Path, Path], options: argparse.Namespace) -> dict[str, float]:
    seconds = race(steps_of(*files, options.batch), options.repeats)
    megabytes = {kind: path.stat().st_size / 1e6 for kind, path in zip(("float32", "INT8"), files)}
    ratios = {form: seconds["onnxruntime float32"] / value for form, value in seconds.items()}
    for form, value in seconds.items():
        print(f"{name:12}{form:22}{megabytes[form.split()[1]]:8.2f}{options.batch / value:10.1f}{ratios[form]:8.2f}",
              flush=True)
    return {f"{name}, {form}": ratio for form, ratio in ratios.items()}


def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--batch", type=int, default=8, help="images a step")
    parser.add_argument("--repeats", type=int, default=7, help="turns; the least time counts")
    parser.add_argument("--networks", nargs="*", default=["y1", "r18"])
    parser.add_argument("--files", nargs=2, type=Path, metavar="FILE.onnx", help="instead: files of float32 and INT8")
    options = parser.parse_args()
    print(f"batch {options.batch}, one thread\n\n{'network':12}{'':22}{'MB':>8}{'images/s':>10}{'ratio':>8}")
    if options.files:
        ratios = compare(options.files[0].stem, tuple(options.files), options)
    else:
        ratios = {}
        with tempfile.TemporaryDirectory() as folder:
            for name in options.networks:
                ratios.update(compare(name, files_of(name, Path(folder)), options))
    write_ratios(options.json, ratios)


if __name__ == "__main__":
    main()
