# SPDX-License-Identifier: Apache-2.0
"""Networks in INT8 made by onnxruntime: what is in the file, what it loses, and who takes it."""
from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from common import verification
from common.embedding.foreign_models import OnnxNetwork
from common.export.int8 import calibration_images
from common.export_onnx import main as export
from common.quantize_onnx import main as quantize
from recognition.config.devices import CPU
from recognition.data.verification_set import load_bin, save_bin
from recognition.evaluation.trained_backbone import unit_rows

SHAPE = (3, 112, 112)
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def network(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small network as an ONNX file."""
    path = tmp_path_factory.mktemp("float") / "small.onnx"
    assert export(["--model", f"{small_model},1", "--output", str(path)]) == 0
    return path


@pytest.fixture
def photographs(shared: Path, tmp_path: Path) -> Path:
    """orl.bin: 20 pairs of photographs of 10 people."""
    people = [[(shared / "data" / "orl" / f"s{i}" / f"{j}.pgm").read_bytes() for j in (1, 2)] for i in range(1, 11)]
    squares = [[cv2.imencode(".png", cv2.resize(cv2.imdecode(np.frombuffer(one, np.uint8), 1), SHAPE[1:]))[1].tobytes()
                for one in two] for two in people]
    images = [image for i, (a, b) in enumerate(squares) for image in (a, b, a, squares[i - 1][1])]
    (tmp_path / "sets").mkdir()
    save_bin(tmp_path / "sets" / "orl.bin", images, [True, False] * 10)
    return tmp_path / "sets" / "orl.bin"


def test_size_and_accuracy_of_both_files(network: Path, photographs: Path, tmp_path: Path, capsys) -> None:
    """The accuracies are those that common.verification gives of the same files. Embeddings move by 1 - cosine 0.25 at
    most: 30 layers of 7 bits with random values, which roundings disturb more than trained ones. Measured: 0.11."""
    output, report = tmp_path / "int8.onnx", tmp_path / "report.json"
    assert quantize([*words(model=network, calibrate=photographs, images=16, output=output, verify=photographs,
                            json=report), "--reduce-range"]) == 0
    said, found = capsys.readouterr().out, json.loads(report.read_text())
    assert re.findall(r"^(float32|int8): [\d.]+ MB, \[orl\]Accuracy-Flip: [01]\.\d{5}\+-[01]\.\d{5}$", said, re.M) == [
        "float32", "int8"]
    assert found["calibration_images"] == 16 and found["moved"]["images"] == 40
    assert output.stat().st_size == found["int8"]["bytes"] < found["float32"]["bytes"] == network.stat().st_size
    assert 0 < found["moved"]["mean"] <= found["moved"]["largest"] < 0.25
    for name, path in (("float32", network), ("int8", output)):
        assert verification.main(["--model", str(path), "--data", str(photographs.parent), "--output",
                                  str(tmp_path / name)]) == 0
        of_it = json.loads((tmp_path / name / "results.json").read_text())["targets"]["orl"]
        assert of_it["accuracy"] == found[name]["accuracy"]


def test_what_tensorrt_demands_of_the_file(network: Path, photographs: Path, tmp_path: Path) -> None:
    """docs/operators.md of onnx/onnx-tensorrt: INT8 alone, and zero points of 0; so no biases in int32."""
    output = tmp_path / "int8.onnx"
    assert quantize(["--model", str(network), "--calibrate", str(photographs), "--images", "8", "--output",
                     str(output)]) == 0
    graph = onnx.load(str(output)).graph
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    pairs = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    products = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    assert pairs and all(values[node.input[2]].dtype == np.int8 and not values[node.input[2]].any() for node in pairs)
    assert {values[node.input[0]].dtype for node in pairs if node.input[0] in values} == {np.dtype(np.int8)}
    of_channels = [values[node.input[1]].size for node in pairs if node.input[0] in values]
    assert len(of_channels) == len(products) and min(of_channels) > 1  # a scale a channel
    assert all(name not in values or values[name].dtype == np.float32 for node in products for name in node.input)


def test_pixels_are_scaled_once_where_weights_come_first_in_the_file(network: Path, photographs: Path,
                                                                     tmp_path: Path) -> None:
    """Whether a file scales pixels shows in its first nodes, before which quantisation puts those of the weights."""
    output = tmp_path / "int8.onnx"
    assert quantize(["--model", str(network), "--calibrate", str(photographs), "--images", "8", "--output",
                     str(output)]) == 0
    model = onnx.load(str(output))
    nodes = sorted(model.graph.node, key=lambda node: node.op_type != "DequantizeLinear" or not any(
        node.input[0] == tensor.name for tensor in model.graph.initializer))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    assert {node.op_type for node in nodes[:8]} == {"DequantizeLinear"}
    onnx.save(model, str(tmp_path / "moved.onnx"))
    images = load_bin(photographs, SHAPE[1:]).images[:4]
    here, moved, plain = (OnnxNetwork(path, CPU, SHAPE)(images) for path in (output, tmp_path / "moved.onnx", network))
    np.testing.assert_array_equal(here, moved)
    assert np.einsum("nd,nd->n", unit_rows(here), unit_rows(plain)).min() > 0.7


def test_images_of_a_set_of_records_a_folder_and_pairs(write_set, tmp_path: Path) -> None:
    """Each gives the same pixels: the first, the last, and what lies evenly between."""
    shades = [np.full((112, 112, 3), shade, np.uint8) for shade in range(6)]
    encoded = [cv2.imencode(".png", shade)[1].tobytes() for shade in shades]
    records = write_set([0, 0, 1, 1, 2, 2], encoded, 3)
    (tmp_path / "folder" / "a").mkdir(parents=True)
    for number, image in enumerate(encoded):
        (tmp_path / "folder" / "a" / f"{number}.png").write_bytes(image)
    save_bin(tmp_path / "pairs.bin", encoded, [True, False, True])
    for place in (records, tmp_path / "folder", tmp_path / "pairs.bin"):
        assert calibration_images(place, 256, 112)[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]
        assert calibration_images(place, 3, 112)[:, 0, 0, 0].tolist() == [0, 2, 5]
        assert calibration_images(place, 1, 112).shape == (1, 3, 112, 112)


def words(**given: Any) -> list[str]:
    return [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]


@pytest.mark.parametrize("change, message", [
    ({"model": "none.onnx"}, "--model: found no file"),
    ({"calibrate": "none"}, "none: not found, expected an image or a folder of images"),
    ({"images": 0}, "--images: found 0, expected at least 1"),
    ({"verify": "none.bin"}, "none.bin: cannot be read"),
    ({"image_size": 224}, "expected one of (N, 3, 224, 224) and one"),
    ({"output": "SELF"}, "expected"),
])
def test_bad_input_is_one_line_and_nothing_is_written(change, message, network, photographs, tmp_path, monkeypatch,
                                                      capsys) -> None:
    monkeypatch.chdir(tmp_path)
    given = {"model": network, "calibrate": photographs, "output": "int8.onnx", **change}
    assert quantize(words(**{key: network if value == "SELF" else value for key, value in given.items()})) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not list(tmp_path.glob("int8*"))


def test_networks_that_cannot_be_quantised(network, photographs, small_model, tmp_path, capsys) -> None:
    half, clash = tmp_path / "half.onnx", tmp_path / "clash.onnx"
    assert export(["--model", f"{small_model},1", "--output", str(half), "--float16"]) == 0
    assert quantize(words(model=network, calibrate=photographs, images=4, output=tmp_path / "int8.onnx")) == 0
    model = onnx.load(str(network))
    model.graph.initializer.add().CopyFrom(onnx.numpy_helper.from_array(np.zeros(1, np.float32), "fc1_scale"))
    onnx.save(model, str(clash))
    for path, message in ((half, "found parameters in float16"), (tmp_path / "int8.onnx", "that is quantised already"),
                          (clash, "found a constant fc1_scale, a name that quantisation gives")):
        assert quantize(words(model=path, calibrate=photographs, output=tmp_path / "new.onnx")) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "new.onnx").exists()


def test_openvino_takes_the_file(network: Path, photographs: Path, tmp_path: Path) -> None:
    """It computes the convolutions in INT8. It fuses layers in another way, so that other values are rounded: 1 -
    cosine to onnxruntime's embeddings is at most 0.25, as of INT8 to float32."""
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install openvino brings it")
    output = tmp_path / "int8.onnx"
    assert quantize(words(model=network, calibrate=photographs, images=16, output=output)) == 0
    images = load_bin(photographs, SHAPE[1:]).images[:8]
    compiled = openvino.Core().compile_model(str(output), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    layers = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    kinds = [str(layer["runtimePrecision"].value) for layer in layers if "Conv" in str(layer["layerType"].value)]
    assert kinds and all(kind in ("i8", "u8") for kind in kinds)
    found, expected = compiled({"data": images.astype(np.float32)})["fc1"], OnnxNetwork(output, CPU, SHAPE)(images)
    assert np.einsum("nd,nd->n", unit_rows(found), unit_rows(expected)).min() > 0.75
