# SPDX-License-Identifier: Apache-2.0
"""Export to ONNX. What needs the onnx package and onnxruntime is skipped without them: pip install -e '.[onnx]'."""
from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from common.backbone import load_backbone
from common.export_onnx import LIMITS, Agreement, main
from common.onnx_operators import OPERATORS, to_onnx
from recognition.errors import UserError
from recognition.mxnet_compat import mx
from recognition.symbol import fdensenet, fmnasnet, fmobilefacenet, fmobilenet, fresnet, vargfacenet

SMALL = {"num_layers": 18, "emb_size": 64, "bn_mom": 0.0}
NETWORKS = {
    "r18": lambda: fresnet.get_symbol(**SMALL),
    "r18, net_unit 1, SE, net_input 2, GNAP": lambda: fresnet.get_symbol(
        **SMALL, net_unit=1, net_se=1, net_input=2, net_output="GNAP"),
    "r18, net_unit 2, tanh, GAP": lambda: fresnet.get_symbol(**SMALL, net_unit=2, net_act="tanh", net_output="GAP"),
    "r18, SFC": lambda: fresnet.get_symbol(**SMALL, net_output="SFC"),
    "r18, Z": lambda: fresnet.get_symbol(**{**SMALL, "emb_size": 25088}, net_output="Z"),
    "y1": lambda: fmobilefacenet.get_symbol(emb_size=128, net_output="GDC", bn_mom=0.0),
    "m05": lambda: fmobilenet.get_symbol(emb_size=64, net_output="GDC", net_multiplier=0.5, bn_mom=0.0),
    "mnas025": lambda: fmnasnet.get_symbol(emb_size=64, net_output="GDC", net_multiplier=0.25, bn_mom=0.0),
    "vargfacenet": lambda: vargfacenet.get_symbol(emb_size=64, net_output="J", net_multiplier=0.5, bn_mom=0.0),
    "d169": lambda: fdensenet.get_symbol(num_layers=169, emb_size=64, bn_mom=0.0),
}
HEAVY = ("d169", "r18, Z")


def export(model: Path, output: Path, *flags: str) -> int:
    return main(["--model", str(model), "--output", str(output), *flags])


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] if name in HEAVY else [])
                                  for name in NETWORKS])
def test_a_network_in_onnxruntime(name, tmp_path, save_network, capsys):
    """The export's own check, which fails beyond 1e-4 in cosine and difference; the figures are tighter."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    model, report = save_network(tmp_path, NETWORKS[name]()), tmp_path / "report.json"
    assert export(model, tmp_path / "model.onnx", "--json", str(report)) == 0, capsys.readouterr().err
    (checked,) = json.loads(report.read_text())["checked"]
    assert checked["number"] == 9
    assert checked["cosine"] < 1e-5
    assert checked["absolute"] < 1e-4 * max(1, checked["rms"])


def test_real_faces_folded_unfolded_and_in_float16(tmp_path, small_model, faces, shared, capsys):
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    nodes, sizes = [], []
    for flags in ([], ["--no-fold"], ["--float16"]):
        report, output = tmp_path / "report.json", tmp_path / "model.onnx"
        assert export(small_model, output, "--check-images", str(shared / "data" / "wild"), "--json", str(report),
                      *flags) == 0
        random, real = json.loads(report.read_text())["checked"]
        assert (random["number"], real["number"]) == (9, len(faces))
        assert real["cosine"] < (1e-3 if flags == ["--float16"] else 1e-5)
        model = onnx.load(str(output))
        nodes.append([node.op_type for node in model.graph.node].count("BatchNormalization"))
        sizes.append(output.stat().st_size)
        assert model.opset_import[0].version == 13
        assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert nodes[0] == nodes[2] == 0 < nodes[1]
    assert sizes[2] < 0.6 * sizes[0]


def test_a_file_that_fails_the_check_is_not_written(tmp_path, small_model, capsys, monkeypatch):
    """A wrong slope of a PReLU stands for any mistake of ours."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    monkeypatch.setitem(OPERATORS, "LeakyReLU", lambda graph, node, inputs: graph.add("Relu", node["name"], inputs[:1]))
    assert export(small_model, tmp_path / "model.onnx") == 2
    assert "not written: for random images the graph is off MXNet's embeddings" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_operators_that_are_not_covered_are_named(small_model):
    pytest.importorskip("onnx")
    symbol = mx.sym.Flatten(mx.sym.erf(mx.sym.var("data"), name="odd"), name="fc1")
    with pytest.raises(UserError, match="layer odd: the operator erf cannot be exported, expected one of Activation"):
        to_onnx(symbol, {}, {})


def test_without_the_package_a_line_says_what_to_install(tmp_path, small_model, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert export(small_model, tmp_path / "model.onnx") == 2
    said = capsys.readouterr().err
    assert "pip install -e '.[onnx]'" in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_every_operator_of_every_network_is_covered():
    for name, make in NETWORKS.items():
        found = {node["op"] for node in json.loads(make().tojson())["nodes"]} - {"null"}
        assert found <= set(OPERATORS), name


def test_the_limits():
    assert LIMITS[False] == (1e-4, 1e-4)
    assert Agreement("", 1, 1e-4, 1e-4, 0.1).holds(False)
    assert not Agreement("", 1, 1e-4, 2e-4, 0.1).holds(False)
    assert Agreement("", 1, 1e-4, 2e-4, 2.5).holds(False)
    assert not Agreement("", 1, 2e-4, 0, 1).holds(False)
    assert not Agreement("", 1, np.nan, 0, 1).holds(False)


def test_folded_networks_in_mxnet(tmp_path, small_model, noise):
    """The folded graph by MXNet itself, so without the onnx package: 1e-5, roundings."""
    from common.embedder import read_network
    from recognition.symbol.fold import fold_batch_norms
    from recognition.training.checkpoint import save_checkpoint
    from recognition.training.pretrained import read_params

    symbol, values = read_network(Path(f"{small_model}-symbol.json")), read_params(Path(f"{small_model}-0001.params"))
    folded = fold_batch_norms(symbol, *values)
    save_checkpoint(tmp_path / "folded", 1, *folded)
    assert not folded[2]  # no batch norm is left
    np.testing.assert_allclose(load_backbone(str(tmp_path / "folded")).embed(noise),
                               load_backbone(str(small_model)).embed(noise), atol=1e-5)
