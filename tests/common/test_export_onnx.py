# SPDX-License-Identifier: Apache-2.0
"""Export to ONNX. What needs the onnx package and onnxruntime is skipped without them; `make test` installs both."""
from __future__ import annotations

import dataclasses
import json
import runpy
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from _pytest.mark.structures import ParameterSet

from common.export_onnx import LIMITS, Agreement, main
from recognition.config.cli import parse_args
from recognition.engines.configured import build_network
from recognition.errors import UserError
from recognition.evaluation.trained_backbone import load_backbone
from recognition.networks import sym
from recognition.networks.families import fresnet
from recognition.networks.graph import Graph
from recognition.networks.onnx_graph import to_onnx
from recognition.networks.operators import OPERATORS
from recognition.networks.operators.onnx import direct
from recognition.networks.symbol_file import read_network

SAMPLE = Path(__file__).resolve().parents[2] / "sample_config.py"
PRESETS = ("r18", "r34", "r50", "r50v1", "r100", "r100fc", "d169", "d201", "y1", "y2", "m1", "m05", "mnas", "mnas05",
           "mnas025", "vargfacenet", "mbf", "mbf_large", "r200", "rx50", "rx101", "vit_t", "vit_s", "vit_b",
           "vit_l", "demo")
LARGEST = ("r2060", "vit_h")  # of the operators of r200 and vit_l; they take minutes and much memory
SMALL = {"num_layers": 18, "emb_size": 64, "bn_mom": 0.0}
VARIANTS = {
    "E": {}, "net_unit 1, SE, net_input 2, GNAP": {"net_unit": 1, "net_se": 1, "net_input": 2, "net_output": "GNAP"},
    "net_unit 2, tanh, GAP": {"net_unit": 2, "net_act": "tanh", "net_output": "GAP"}, "SFC": {"net_output": "SFC"},
    "Z": {"emb_size": 25088, "net_output": "Z"},
}
QUICK = ("y1", "demo", "vit_t", "E", "docs")  # of each kind; the others take a minute or two together
GLUON = {
    "docs": "",  # the network of docs/models.md
    **{name: f"vision.{name}(classes=emb_size)"
       for name in ("mobilenet0_25", "mobilenet_v2_0_25", "resnet18_v1", "resnet18_v2")},
}


def each(names: Iterable[str]) -> list[ParameterSet]:
    return [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in names]


def preset(folder: Path, name: str, more: str = "") -> Graph:
    """The network of a preset of the sample, its moving statistics those of the last batch."""
    (folder / "config.py").write_text(f"{SAMPLE.read_text()}\nconfig.bn_mom = 0.0\n{more}")
    return build_network(parse_args("train_parall", ["--network", name, "--config", str(folder / "config.py")]))


def export(model: Path, output: Path, *flags: str) -> int:
    return main(["--model", str(model), "--output", str(output), *flags])


def check(folder: Path, model: Path, capsys: pytest.CaptureFixture[str], real: Path | None = None) -> None:
    """Run the export's own check, which fails beyond 1e-4 in cosine and difference; the cosine is nearer."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    report, flags = folder / "report.json", ["--check-images", str(real)] if real else []
    assert export(model, folder / "model.onnx", "--json", str(report), *flags) == 0, capsys.readouterr().err
    found = json.loads(report.read_text())["checked"]
    assert [checked["number"] for checked in found] == [9, 10][: len(found)] and len(found) == 1 + bool(real)
    for checked in found:
        assert checked["cosine"] < 1e-5
        assert checked["absolute"] < 1e-4 * max(1, checked["rms"])


@pytest.mark.parametrize("name", each(PRESETS))
def test_a_preset_in_onnxruntime(name, tmp_path, save_network, shared, capsys):
    """Random images and photographs of faces."""
    check(tmp_path, save_network(tmp_path, preset(tmp_path, name)), capsys, shared / "data" / "wild")


@pytest.mark.parametrize("name", each(VARIANTS))
def test_options_of_a_network_in_onnxruntime(name, tmp_path, save_network, capsys):
    check(tmp_path, save_network(tmp_path, fresnet.get_symbol(**{**SMALL, **VARIANTS[name]})), capsys)


@pytest.mark.parametrize("name", each(GLUON))
def test_a_network_of_ones_own_in_onnxruntime(name, tmp_path, save_network, capsys):
    (tmp_path / "mine.py").write_text(documented() if name == "docs" else GLUON_FILE.format(GLUON[name]))
    symbol = preset(tmp_path, "mine", 'network.mine = edict(net_name="mine", emb_size=64)\n')
    check(tmp_path, save_network(tmp_path, symbol), capsys)


def documented() -> str:
    """The network that docs/models.md shows."""
    text = (SAMPLE.parent / "docs" / "models.md").read_text()
    return text.split("```python\n# my_net.py\n")[1].split("```")[0]


GLUON_FILE = """
from mxnet.gluon import nn
from mxnet.gluon.model_zoo import vision


class Scaled(nn.HybridBlock):
    def __init__(self, emb_size):
        super().__init__()
        with self.name_scope():
            self.body = {}

    def hybrid_forward(self, F, x):
        return self.body((x - 127.5) / 128)


def get_symbol(emb_size):
    return Scaled(emb_size)
"""


def test_every_preset_of_the_sample_is_exported_here():
    sample = runpy.run_path(str(SAMPLE))
    assert sorted([*PRESETS, *LARGEST]) == sorted(sample["network"])


def test_real_faces_folded_unfolded_and_in_float16(tmp_path, small_model, faces, shared, capsys):
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    nodes, sizes = [], []
    for flags in ([], ["--no-fold"], ["--float16"]):
        report, output = tmp_path / "report.json", tmp_path / "model.onnx"
        assert export(small_model, output, "--check-images", str(shared / "data" / "wild"), "--json", str(report),
                      "--overwrite", *flags) == 0
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
    wrong = dataclasses.replace(OPERATORS["LeakyReLU"], onnx=lambda graph, node, inputs: direct("Relu")(
        graph, node, inputs[:1]))
    monkeypatch.setitem(OPERATORS, "LeakyReLU", wrong)
    assert export(small_model, tmp_path / "model.onnx") == 2
    assert "not written: for random images the graph is off the engine's embeddings" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_operators_that_are_not_covered_are_named(small_model):
    pytest.importorskip("onnx")
    symbol = sym.Flatten(sym.softsign(sym.Variable("data"), name="odd"), name="fc1").graph()
    with pytest.raises(UserError, match="layer odd: the operator softsign cannot be exported, expected one of Act"):
        to_onnx(symbol, {}, {})


def test_without_the_package_a_line_says_what_to_install(tmp_path, small_model, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert export(small_model, tmp_path / "model.onnx") == 2
    said = capsys.readouterr().err
    assert "pip install -e '.[onnx]'" in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_every_operator_of_every_network_is_covered(tmp_path):
    for name in PRESETS:
        found = {node.operator for node in preset(tmp_path, name).nodes if not node.is_variable}
        assert all(operator.onnx for operator in found), name
    for options in VARIANTS.values():
        found = {node.operator for node in fresnet.get_symbol(**{**SMALL, **options}).nodes if not node.is_variable}
        assert all(operator.onnx for operator in found), options


def test_the_flops_of_every_operator_here_are_counted():
    assert all(operator.flops for operator in OPERATORS.values() if operator.onnx)


def test_the_limits():
    assert LIMITS[False] == (1e-4, 1e-4)
    assert Agreement("", 1, 1e-4, 1e-4, 0.1).holds(False)
    assert not Agreement("", 1, 1e-4, 2e-4, 0.1).holds(False)
    assert Agreement("", 1, 1e-4, 2e-4, 2.5).holds(False)
    assert not Agreement("", 1, 2e-4, 0, 1).holds(False)
    assert not Agreement("", 1, np.nan, 0, 1).holds(False)


def test_folded_networks_in_mxnet(tmp_path, small_model, noise):
    """The folded graph by MXNet itself, so without the onnx package: 1e-5, roundings."""
    from recognition.networks.fold import fold_batch_norms
    from recognition.training.checkpoints.checkpoint import save_checkpoint
    from recognition.training.checkpoints.pretrained import read_params

    symbol, values = read_network(Path(f"{small_model}-symbol.json")), read_params(Path(f"{small_model}-0001.params"))
    folded = fold_batch_norms(symbol, *values)
    save_checkpoint(tmp_path / "folded", 1, *folded)
    assert not folded[2]  # no batch norm is left
    np.testing.assert_allclose(load_backbone(str(tmp_path / "folded")).embed(noise),
                               load_backbone(str(small_model)).embed(noise), atol=1e-5)
