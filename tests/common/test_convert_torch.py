# SPDX-License-Identifier: Apache-2.0
"""PyTorch's weights, in files of our own writer. docs/shipping.md has figures with PyTorch itself."""
from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from common.convert_torch import main
from recognition.config.cli import find_pretrained
from recognition.errors import UserError
from recognition.evaluation.trained_backbone import load_backbone
from recognition.io.torch_file import read_tensors, write_tensors
from recognition.networks.families import fresnet
from recognition.networks.graph import Graph
from recognition.networks.shapes import infer_shapes
from recognition.networks.torch_weights.iresnet import pairs
from recognition.training.checkpoints.checkpoint import save_checkpoint
from recognition.training.checkpoints.pretrained import read_params


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    """An iresnet18 of 32 numbers with random values; variances down to where epsilon tells."""
    shapes = infer_shapes(fresnet.get_symbol(num_layers=18, emb_size=32), (3, 112, 112))
    wanted, random, found = {**shapes.arguments, **shapes.auxiliary}, np.random.default_rng(0), {}
    for theirs, ours in pairs((2, 2, 2, 2)):
        size = wanted[ours]
        if ours.endswith(("gamma", "var")):
            value = random.uniform(0.5, 1.5, size) * (0.2 if "relu" in ours else 1)
        else:
            value = random.standard_normal(size) * (np.sqrt(1 / np.prod(size[1:])) if len(size) > 1 else 0.2)
        if theirs == "layer1.0.bn3.running_var":
            value[:8] = 1e-4
        found[theirs] = value.astype(np.float32)
        if theirs.endswith("running_var"):
            found[theirs.replace("running_var", "num_batches_tracked")] = np.array(7)
    return found


def test_the_imported_network_computes_what_iresnet_does(tensors, tmp_path, noise):
    """The reference is the same graph with PyTorch's epsilon and pixels, and no fixed factor, with the values as they
    are; 1e-4 of the numbers: float32 through 18 layers in which factors have moved."""
    write_tensors(tmp_path / "backbone.pth", tensors)
    assert main([str(tmp_path / "backbone.pth"), f"{tmp_path}/imported,2"]) == 0
    text = fresnet.get_symbol(num_layers=18, emb_size=32).to_json()
    theirs = text.replace("2e-05", "1e-05").replace("0.0078125", repr(1 / 127.5)).replace(
        '"fix_gamma": "True"', '"fix_gamma": "False"')
    assert theirs.count("1e-05") == text.count("2e-05") > 0
    names, symbol = dict(pairs((2, 2, 2, 2))), Graph.from_dict(json.loads(theirs))
    values = {ours: tensors[name] for name, ours in names.items()}
    states = symbol.list_auxiliary_states()
    save_checkpoint(tmp_path / "reference", 1, symbol, {n: v for n, v in values.items() if n not in states},
                    {name: values[name] for name in states})
    expected, found = (load_backbone(f"{tmp_path}/{name}", batch_size=4).embed(noise[:4], flip=False, unit=False)
                       for name in ("reference", "imported,2"))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_there_and_back(tensors, tmp_path):
    """Values come back but for float32 roundings, and the factor of the last batch norm, which is 1 here."""
    first, second, third = tmp_path / "a.pth", tmp_path / "b.pth", tmp_path / "again"
    write_tensors(first, {f"module.{name}": value for name, value in tensors.items()})  # as of DistributedDataParallel
    assert main([str(first), f"{tmp_path}/model,1"]) == 0
    assert main([f"{tmp_path}/model,1", str(second)]) == 0
    back = read_tensors(second)
    assert list(back) == list(tensors)
    for name, value in tensors.items():
        if not name.startswith(("fc.", "features.")) and "num_batches" not in name:
            np.testing.assert_allclose(back[name], value, rtol=1e-6, atol=2e-9, err_msg=name)
    assert (back["features.weight"] == 1).all()
    assert main([str(second), f"{third},1"]) == 0
    for a, b in zip(read_params(Path(f"{tmp_path}/model-0001.params")), read_params(Path(f"{third}-0001.params"))):
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-6, atol=2e-9, err_msg=name)


def test_kinds_of_tensors_and_views(tmp_path):
    values = {"w": np.arange(12, dtype=np.float32).reshape(3, 4), "n": np.array(3),
              "empty": np.zeros((0, 2), np.float32)}
    write_tensors(tmp_path / "a.pth", values)
    found = read_tensors(tmp_path / "a.pth")
    assert list(found) == list(values)
    assert all(np.array_equal(found[name], values[name]) and found[name].shape == values[name].shape for name in values)
    assert found["n"].dtype == np.int64


def archive(path: Path, data: bytes, storage: bytes = bytes(16), method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr("a/data.pkl", data)
        file.writestr("a/data/0", storage)
    return path


class Evil:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def tensor_pickle(size: bytes, stride: bytes) -> bytes:
    return (b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\n"
            b"FloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQK\x00" + size + stride + b"\x89}tRs.")


@pytest.mark.parametrize(("data", "message"), [
    (pickle.dumps({"w": Evil()}, 2), "mkdir, which was not run"),
    (pickle.dumps({"w": Evil()}, 4), "mkdir, which was not run"),
    (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aK\x01sb.", "sets the state of a function"),
    (b"\x80\x02}r\xff\xff\xff\x7f.", "stores memo 2147483647"),
    (b"\x80\x02ios\nsystem\n.", "has the opcode INST"),
    (pickle.dumps({"w": 3}, 2), "'w' is no tensor"),
    (pickle.dumps({k * (2 ** 61 - 1): 0 for k in range(9)}, 2), "it has a number of 61 bits"),
    (pickle.dumps([], 2), "found list"),
    (b"", "expected a .pth"),
    (tensor_pickle(b"K\x64\x85", b"K\x00\x85"), "size (100,) and stride (0,) in 4 values"),
    (tensor_pickle(b"K\x02K\x02\x86", b"K\x02K\x02\x86"), "in 4 values"),
])
def test_what_a_file_says_is_not_run(tmp_path, monkeypatch, data, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        read_tensors(archive(tmp_path / "a.pth", data))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["a.pth"]


def test_files_that_are_not_such(tmp_path):
    (tmp_path / "old.pth").write_bytes(pickle.dumps(1))
    packed = archive(tmp_path / "zip.pth", tensor_pickle(b"K\x04\x85", b"K\x01\x85"), method=zipfile.ZIP_DEFLATED)
    short = archive(tmp_path / "short.pth", tensor_pickle(b"K\x04\x85", b"K\x01\x85"), storage=bytes(8))
    for path, message in ((tmp_path / "old.pth", "not a zip archive"), (packed, "data.pkl is compressed"),
                          (short, "data/0 holds 2 values, expected 4"), (tmp_path / "none.pth", "cannot be read")):
        with pytest.raises(UserError, match=message):
            read_tensors(path)
    whole = io.BytesIO(archive(tmp_path / "a.pth", tensor_pickle(b"K\x04\x85", b"K\x01\x85")).read_bytes())
    assert read_tensors(tmp_path / "a.pth")["w"].tolist() == [0, 0, 0, 0]
    (tmp_path / "a.pth").write_bytes(whole.getvalue()[:-30])
    with pytest.raises(UserError, match="not a zip archive"):
        read_tensors(tmp_path / "a.pth")


def test_other_networks_are_refused(tensors, tmp_path, small_model, capsys):
    fewer = {name: value for name, value in tensors.items() if "layer4.1" not in name}
    cases = {"three": (fewer, "[2, 2, 2, 1] blocks"),
             "bias": ({**tensors, "conv1.bias": np.zeros(64, np.float32)}, "1 left over (conv1.bias)"),
             "shape": ({**tensors, "conv1.weight": np.zeros((64, 3, 7, 7), np.float32)}, "conv1.weight is of shape")}
    for name, (values, message) in cases.items():
        write_tensors(tmp_path / f"{name}.pth", values)
        assert main([str(tmp_path / f"{name}.pth"), f"{tmp_path}/{name},1"]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / f"{name}-0001.params").exists()
    assert main([str(small_model), str(tmp_path / "x.pth")]) == 2
    assert "expected those of an iresnet" in capsys.readouterr().err
    assert main(["a.pth", "b.pth"]) == 2
    assert "expected one of the two to end in .pth" in capsys.readouterr().err
    assert not (tmp_path / "x.pth").exists()


@pytest.mark.parametrize("prefix", ["backbone.", "model.", "_orig_mod.", "module._orig_mod.", "model.backbone."])
def test_names_with_prefixes_and_a_head_beside(prefix: str, tensors, tmp_path, capsys):
    named = {f"{prefix}{name}": value for name, value in tensors.items()}
    write_tensors(tmp_path / "a.pth", {**named, "head.weight": np.zeros((5, 32), np.float32)})
    write_tensors(tmp_path / "b.pth", tensors)
    for name in "ab":
        assert main([str(tmp_path / f"{name}.pth"), f"{tmp_path}/{name},1"]) == 0
    assert "left out: 1 tensors of other parts, such as head.weight" in capsys.readouterr().out
    assert (tmp_path / "a-0001.params").read_bytes() == (tmp_path / "b-0001.params").read_bytes()


def test_two_networks_in_a_file(tensors, tmp_path, capsys):
    write_tensors(tmp_path / "a.pth", {f"{who}.{name}": value for who in ("student", "teacher")
                                       for name, value in tensors.items()})
    assert main([str(tmp_path / "a.pth"), f"{tmp_path}/a,1"]) == 2
    assert "found 2 networks, under 'student.', 'teacher.', expected one" in capsys.readouterr().err


def test_into_a_folder_and_to_a_params_name(tensors, tmp_path, capsys):
    write_tensors(tmp_path / "a.pth", tensors)
    (tmp_path / "there").mkdir()
    assert main([str(tmp_path / "a.pth"), f"{tmp_path}/there"]) == 0
    assert main([str(tmp_path / "a.pth"), f"{tmp_path}/named/r18-0012.params"]) == 0
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.params")) == [
        "named/r18-0012.params", "there/model-0001.params"]
    assert main([str(tmp_path / "a.pth"), f"{tmp_path}/r18.params"]) == 2
    assert "r18.params, expected PREFIX,EPOCH, a folder, or a name like model-0001.params" in capsys.readouterr().err


@pytest.mark.parametrize("ending", [".pt", ".ckpt", ".pth.tar"])
def test_endings_of_files_of_pytorch(ending: str, tensors, tmp_path):
    write_tensors(tmp_path / f"backbone{ending}", tensors)
    assert main([f"{tmp_path}/backbone{ending}", f"{tmp_path}/model,1"]) == 0


@pytest.mark.parametrize("name, found", [("backbone.pth", "python -m common.convert_torch FILE PREFIX,1 makes one"),
                                         ("w600k_r50.onnx", "an ONNX file cannot be read back")])
def test_what_is_no_checkpoint_is_refused_with_the_way_to_one(name: str, found: str, tmp_path):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=found):
        find_pretrained(str(tmp_path / name), 1)
