# SPDX-License-Identifier: Apache-2.0
"""Exported networks and the runtimes that are fed from ONNX: OpenVINO runs them; TensorRT's list of operators has all
that they are made of. OpenVINO is no dependency: where it is not installed, its tests are skipped."""
from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.export.int8 import TAKEN
from common.export_onnx import main as export
from recognition.config.cli import parse_args
from recognition.engines.configured import build_network
from recognition.networks import sym
from recognition.networks.families import fresnet
from recognition.networks.graph import Graph
from recognition.networks.onnx_graph import INPUT, OPSET, OUTPUT, OnnxGraph
from recognition.networks.operators.onnx import BATCH
from recognition.networks.shapes import all_shapes

SAMPLE = Path(__file__).resolve().parents[2] / "sample_config.py"
SIDE = 112
FAMILIES = ("r50", "r50v1", "r100fc", "d169", "y1", "m1", "mnas", "vargfacenet", "mbf", "rx50", "vit_t", "demo")
VARIANTS = ({"net_unit": 1, "net_se": 1, "net_input": 2, "net_output": "GNAP"},
            {"net_unit": 2, "net_act": "tanh", "net_output": "GAP"}, {"net_output": "SFC"})
FRESNET = {"num_layers": 18, "emb_size": 64, "bn_mom": 0.0}

# TensorRT's operators that exported networks are made of, as docs/operators.md of the repository onnx/onnx-tensorrt has
# them for TensorRT 10.1 ("Supported: Y"), with what the list demands of their uses.
TENSORRT = frozenset((
    "Abs", "Add", "AveragePool", "BatchNormalization", "Cast", "Clip", "Concat", "ConstantOfShape", "Conv", "Div",
    "Elu", "Exp", "Flatten", "Gemm", "GlobalAveragePool", "GlobalMaxPool", "Greater", "LeakyRelu", "Less", "MatMul",
    "Max", "MaxPool", "Min", "Mul", "Neg", "PRelu", "Pow", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "Relu", "Reshape", "Shape", "Sigmoid", "Slice", "Softmax", "Softplus", "Softsign", "Split", "Sqrt",
    "Sub", "Tanh", "Tile", "Transpose"))
TENSORRT_OPSETS = range(9, 21)  # of 10.1; 11 reads up to opset 25
FIXED_INPUTS = {"ReduceSum": (1,), "Slice": (3,), "Reshape": (1,), "Tile": (1,)}  # the list's "must be an initializer"
NO_DILATIONS = ("AveragePool", "MaxPool")


def preset(folder: Path, name: str) -> Graph:
    (folder / "config.py").write_text(f"{SAMPLE.read_text()}\nconfig.bn_mom = 0.0\n")
    return build_network(parse_args("train_parall", ["--network", name, "--config", str(folder / "config.py")]))


def nodes_of(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], set[str]]:
    """The nodes of a network's ONNX graph and the names of its constants; its parameters are zeros."""
    with monkeypatch.context() as patched:
        patched.setattr(OnnxGraph, "_finish", lambda self: (self.nodes, set(self._values)))  # without their copies
        shapes = all_shapes(graph, (BATCH, 3, SIDE, SIDE))
        values = {node.name: np.zeros(shapes[number][0], np.float32) for number, node in enumerate(graph.nodes)
                  if node.is_variable and node.name != INPUT}
        return OnnxGraph(graph, values, (3, SIDE, SIDE), False).model()


def unlike_tensorrt(nodes: list[Any], constants: set[str]) -> list[str]:
    """A line about each node that TensorRT's list does not allow."""
    wrong = [f"{node.op_type} {node.name}" for node in nodes if node.op_type not in TENSORRT]
    wrong += [f"{node.op_type} {node.name}: input {place} is computed" for node in nodes
              for place in FIXED_INPUTS.get(node.op_type, ()) if node.input[place] not in constants]
    return wrong + [f"{node.op_type} {node.name}: dilations" for node in nodes if node.op_type in NO_DILATIONS
                    and any(attribute.name == "dilations" for attribute in node.attribute)]


@pytest.mark.parametrize("name", FAMILIES)
def test_tensorrt_lists_every_operator_of_a_network(name: str, tmp_path: Path, monkeypatch) -> None:
    """One preset of each kind of layers; their batch norms are not folded, so that these are there, too."""
    pytest.importorskip("onnx")
    assert unlike_tensorrt(*nodes_of(preset(tmp_path, name), monkeypatch)) == []


@pytest.mark.parametrize("name", ["r50", "vit_t"])
def test_no_constant_has_a_name_that_quantisation_gives(name: str, tmp_path: Path, monkeypatch) -> None:
    """onnxruntime adds <tensor>_scale and <tensor>_zero_point, and takes a constant of that name for its own."""
    pytest.importorskip("onnx")
    nodes, constants = nodes_of(preset(tmp_path, name), monkeypatch)
    assert not constants.intersection(f"{output}{end}" for node in nodes for output in node.output for end in TAKEN)


@pytest.mark.parametrize("options", VARIANTS, ids=lambda options: options["net_output"])
def test_tensorrt_lists_every_operator_of_the_options_of_a_network(options: dict[str, Any], monkeypatch) -> None:
    pytest.importorskip("onnx")
    assert unlike_tensorrt(*nodes_of(fresnet.get_symbol(**{**FRESNET, **options}), monkeypatch)) == []


def test_tensorrt_reads_the_opset() -> None:
    assert OPSET in TENSORRT_OPSETS


def test_what_tensorrt_does_not_list_is_seen(monkeypatch) -> None:
    pytest.importorskip("onnx")
    graph = sym.Flatten(sym.exp(sym.Variable("data"), name="grown"), name="fc1").graph()
    nodes, constants = nodes_of(graph, monkeypatch)
    assert unlike_tensorrt(nodes, constants) == []
    nodes[0].op_type = "Det"
    assert unlike_tensorrt(nodes, constants) == ["Det grown"]
    nodes[0].op_type = "ReduceSum"
    nodes[0].input.append("computed")
    assert unlike_tensorrt(nodes, constants) == ["ReduceSum grown: input 1 is computed"]


@pytest.fixture
def openvino() -> Any:
    return pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install openvino brings it")


@pytest.fixture
def exported(tmp_path: Path, save_network: Callable[..., Path]) -> Callable[..., Path]:
    """``exported(graph, *flags)``: the ONNX file that the command writes for the network."""

    def write(graph: Graph, *flags: str) -> Path:
        pytest.importorskip("onnx")
        path = tmp_path / "network.onnx"
        assert export(["--model", str(save_network(tmp_path, graph)), "--output", str(path), *flags]) == 0
        return path

    return write


@pytest.mark.parametrize("name", ["y1", "small r18", pytest.param("mbf", marks=pytest.mark.slow),
                                  pytest.param("vit_t", marks=pytest.mark.slow)])
def test_openvino_gives_onnxruntimes_embeddings(name: str, openvino: Any, exported, tmp_path: Path) -> None:
    """One compiled network takes batches of any size. To 1e-4 of the embeddings' root mean square: 30 to 50 layers of
    float32, whose sums both add up in other orders; measured: 2e-5."""
    onnxruntime = pytest.importorskip("onnxruntime")
    graph = fresnet.get_symbol(**FRESNET) if name == "small r18" else preset(tmp_path, name)
    path = exported(graph)
    network = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert INPUT in network.input(0).get_names() and OUTPUT in network.output(0).get_names()
    assert network.input(0).get_partial_shape().to_string() == f"[?,3,{SIDE},{SIDE}]"
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for count in (1, 3):
        pixels = np.random.RandomState(count).randint(0, 256, (count, 3, SIDE, SIDE)).astype(np.float32)
        (expected,) = session.run([OUTPUT], {INPUT: pixels})
        found = network({INPUT: pixels})[OUTPUT]
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= 1e-4 * np.sqrt(np.square(expected, dtype=np.float64).mean())


def test_the_commands_of_the_guide_are_those_of_this_openvino(openvino: Any) -> None:
    assert importlib.util.find_spec("openvino.tools.ovc") and importlib.util.find_spec("openvino.tools.benchmark")
