# SPDX-License-Identifier: Apache-2.0
"""Checkpoints with a head and a loss in their symbol, and those trained in float16: embedded, exported, made slim."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest

from common.export_onnx import main as export_onnx
from common.model_slim import main as model_slim
from recognition.engines.mxnet.embedder import Embedder
from recognition.engines.mxnet.imports import mx
from recognition.errors import UserError
from recognition.networks.symbol_file import read_network
from recognition.training.checkpoints.pretrained import read_params, take_over

CPU = (("cpu", 0),)
CLASSES, DIM, SCALE = 5, 16, 64.0
IMAGES = np.random.RandomState(0).randint(0, 256, (3, 3, 112, 112)).astype(np.uint8)


def backbone(float16: bool = False) -> Any:
    x = mx.sym.Variable("data")
    x = (mx.sym.Cast(x, dtype="float16") if float16 else x) - 127.5
    x = mx.sym.Convolution(x * 0.0078125, num_filter=8, kernel=(3, 3), stride=(8, 8), no_bias=True, name="conv0")
    x = mx.sym.LeakyReLU(mx.sym.BatchNorm(x, fix_gamma=False, eps=2e-5, name="bn0"), act_type="prelu", name="relu0")
    x = mx.sym.FullyConnected(mx.sym.Cast(x, dtype="float32") if float16 else x, num_hidden=DIM, name="pre_fc1")
    return mx.sym.BatchNorm(x, fix_gamma=True, eps=2e-5, name="fc1")


def unit(x: Any, name: str | None = None) -> Any:
    return mx.sym.L2Normalization(x, mode="instance", name=name)


def cosface(embedding: Any, label: Any, w: Any) -> Any:
    cosine = mx.sym.FullyConnected(unit(embedding) * SCALE, unit(w), no_bias=True, num_hidden=CLASSES, name="fc7")
    logits = cosine - mx.sym.one_hot(label, depth=CLASSES, on_value=SCALE * 0.35, off_value=0)
    return mx.sym.Group([mx.sym.BlockGrad(embedding), mx.sym.SoftmaxOutput(logits, label, name="softmax")])


def arcface(embedding: Any, label: Any, w: Any) -> Any:
    """The recipes' head: pick, arccos, where, one_hot, broadcast_mul, and MakeLoss of the cross-entropy."""
    cosine = mx.sym.FullyConnected(unit(embedding, "fc1n"), unit(w), no_bias=True, num_hidden=CLASSES, name="fc7")
    zy = mx.sym.pick(cosine, label, axis=1)
    moved = mx.sym.cos(mx.sym.arccos(zy) + 0.5)
    moved = mx.sym.where(mx.sym.Activation(zy, act_type="relu"), moved, zy - 0.2)
    hot = mx.sym.one_hot(label, depth=CLASSES, on_value=1.0, off_value=0.0)
    logits = cosine + mx.sym.broadcast_mul(hot, mx.sym.expand_dims(moved - zy, 1))
    body = mx.sym.log(mx.sym.SoftmaxActivation(logits * SCALE, name="fc1n") + 1e-10)  # the second of its name
    return mx.sym.Group([mx.sym.BlockGrad(embedding), mx.sym.MakeLoss(mx.sym.sum(hot * body), name="loss")])


def center_loss(embedding: Any, label: Any, w: Any) -> Any:
    rows = mx.sym.Embedding(label, weight=w, input_dim=CLASSES, output_dim=DIM, name="centers")
    loss = mx.sym.MakeLoss(mx.sym.mean(mx.sym.square(embedding - rows)), grad_scale=0.01)
    return mx.sym.Group([loss, mx.sym.BlockGrad(embedding)])


def save(prefix: Path, head: Callable[..., Any] | None, float16: bool = False) -> Any:
    """Save a checkpoint by plain MXNet; returns its arrays."""
    prefix.parent.mkdir(exist_ok=True)
    label, w = mx.sym.Variable("softmax_label"), mx.sym.Variable("fc7_weight", shape=(CLASSES, DIM))
    graph = head(backbone(float16), label, w) if head else backbone(float16)
    given = {"data": (1, 3, 112, 112), **({"softmax_label": (1,)} if head else {})}
    shapes, _, states = graph.infer_shape(**given)
    types = graph.infer_type(**dict.fromkeys(given, "float32"))[0] if float16 else ["float32"] * len(shapes)
    random = np.random.RandomState(1)
    arguments = {name: mx.nd.array(random.normal(0, 0.1, shape)).astype(kind)
                 for name, shape, kind in zip(graph.list_arguments(), shapes, types) if name not in given}
    auxiliary = {name: mx.nd.array(random.uniform(0.5, 1.5, shape))
                 for name, shape in zip(graph.list_auxiliary_states(), states)}
    mx.model.save_checkpoint(str(prefix), 1, graph, arguments, auxiliary)
    return arguments, auxiliary


def by_mxnet(prefix: Path, number: int, cast: bool = False) -> np.ndarray:
    """The embeddings by plain MXNet's Module; with ``cast`` by the backbone in float32."""
    graph, arguments, auxiliary = mx.model.load_checkpoint(str(prefix), number)
    graph = backbone() if cast else graph.get_internals()["fc1_output"]
    module = mx.mod.Module(graph, label_names=None)
    module.bind([("data", IMAGES.shape)], for_training=False)
    module.set_params({name: value.astype("float32") for name, value in arguments.items()}, auxiliary,
                      allow_extra=True)
    module.forward(mx.io.DataBatch([mx.nd.array(IMAGES)]), is_train=False)
    return module.get_outputs()[0].asnumpy()


@pytest.mark.parametrize("head", [cosface, arcface, center_loss])
def test_what_counts_is_what_the_embedding_needs(head: Callable[..., Any], tmp_path: Path) -> None:
    prefix = tmp_path / "m" / "model"
    save(prefix, head)
    found = Embedder(str(prefix), 1, CPU, 3, IMAGES.shape[1:])(IMAGES)
    np.testing.assert_allclose(found, by_mxnet(prefix, 1), rtol=1e-4, atol=1e-4)  # batch norms are folded
    assert export_onnx(["--model", f"{prefix},1", "--output", str(tmp_path / "x.onnx")]) == 0


def test_slim_is_what_plain_mxnet_loads_without_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prefix = tmp_path / "m" / "model"
    save(prefix, arcface)
    assert model_slim(["--model", f"{prefix},1"]) == 0
    slim = tmp_path / "m" / "models"
    graph, arguments, _ = mx.model.load_checkpoint(str(slim), 0)
    assert graph.list_outputs() == ["fc1_output"] and "softmax_label" not in graph.list_arguments()
    assert sorted(arguments) == sorted(name for name in backbone().list_arguments() if name != "data")
    np.testing.assert_array_equal(by_mxnet(slim, 0), by_mxnet(prefix, 1))
    assert model_slim(["--model", f"{prefix},1"]) == 2
    assert "exists already, expected a new name; --overwrite" in capsys.readouterr().err
    assert model_slim(["--model", f"{prefix},1", "--output", f"{tmp_path}/new/net,7"]) == 0
    assert (tmp_path / "new" / "net-0007.params").is_file()
    assert model_slim(["--model", f"{tmp_path}/new/net,7", "--output", f"{prefix},1", "--overwrite"]) == 0


def test_float16_is_embedded_exported_and_taken_over_in_float32(tmp_path: Path) -> None:
    """As trained with the recipes' fp16: the images are cast to float16, weights are float16, the features cast back.
    The reference is the same network without casts."""
    prefix = tmp_path / "m" / "model"
    save(prefix, cosface, float16=True)
    file = mx.nd.load(f"{prefix}-0001.params")
    assert file["arg:conv0_weight"].dtype == np.float16
    want = by_mxnet(prefix, 1, cast=True)
    found = Embedder(str(prefix), 1, CPU, 3, IMAGES.shape[1:])(IMAGES)
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-4)
    assert export_onnx(["--model", f"{prefix},1", "--output", str(tmp_path / "x.onnx")]) == 0
    arguments, auxiliary = read_params(Path(f"{prefix}-0001.params"))
    assert {value.dtype for value in (*arguments.values(), *auxiliary.values())} == {np.dtype(np.float32)}
    wanted = ({name: np.zeros(value.shape, np.float32) for name, value in arguments.items() if name != "fc7_weight"},
              {name: np.zeros(value.shape, np.float32) for name, value in auxiliary.items()})
    take_over(Path("x"), (arguments, auxiliary), wanted, lambda shapes: "")
    np.testing.assert_array_equal(wanted[0]["conv0_weight"], file["arg:conv0_weight"].astype("float32").asnumpy())
    assert model_slim(["--model", f"{prefix},1"]) == 0
    np.testing.assert_allclose(by_mxnet(tmp_path / "m" / "models", 0), want, rtol=1e-6, atol=1e-6)


def test_a_cast_that_is_the_embedding_stays_an_output_of_its_name(tmp_path: Path) -> None:
    x = mx.sym.FullyConnected(mx.sym.Cast(mx.sym.Variable("data"), dtype="float16"), num_hidden=2, name="pre")
    mx.sym.Cast(x, dtype="float32", name="fc1").save(str(tmp_path / "model-symbol.json"))
    graph = read_network(tmp_path / "model-symbol.json")
    assert graph.list_outputs() == ["fc1_output"] and "Cast" not in {node.op for node in graph.nodes}


def test_two_layers_of_one_name(tmp_path: Path) -> None:
    """Of operators that the embedding needs, plain MXNet takes two of a name; which of two embeddings is meant nobody
    knows."""
    path = tmp_path / "model-symbol.json"
    x = mx.sym.Activation(mx.sym.Variable("data"), act_type="relu", name="twice")
    x = mx.sym.Activation(mx.sym.FullyConnected(x, num_hidden=4, name="pre"), act_type="relu", name="twice")
    mx.sym.FullyConnected(x, num_hidden=2, name="fc1").save(str(path))
    assert [node.name for node in read_network(path).nodes if node.op == "Activation"] == ["twice", "twice_2"]
    source = json.loads(path.read_text())
    for node in source["nodes"]:
        node["name"] = "fc1" if node["name"] == "twice" else node["name"]
    path.write_text(json.dumps(source))
    with pytest.raises(UserError, match="found 3 layers named 'fc1', expected one"):
        read_network(path)


def test_what_the_embedding_needs_is_judged_as_before(tmp_path: Path) -> None:
    path = tmp_path / "model-symbol.json"
    mx.sym.FullyConnected(mx.sym.arccos(mx.sym.Variable("data")), num_hidden=2, name="fc1").save(str(path))
    with pytest.raises(UserError, match="the operator 'arccos', expected one of those"):
        read_network(path)
