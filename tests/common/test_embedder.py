# SPDX-License-Identifier: Apache-2.0
"""Embedding with a checkpoint by each engine: the golden output of the legacy code, plain MXNet, and bad files."""
from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Callable

import numpy as np
import pytest

from recognition.config.devices import require_bfloat16
from recognition.config.options import Config
from recognition.data.verification_set import load_bin
from recognition.engines.choose import choose_engine
from recognition.engines.interface import Embedder
from recognition.engines.mxnet.imports import mx
from recognition.errors import UserError
from recognition.networks import build_symbol, first_weights, sym
from recognition.networks.initialise import initialise
from recognition.networks.symbol_file import read_network
from recognition.training.checkpoints.checkpoint import save_checkpoint

CPU, TWO = (("cpu", 0),), (("cpu", 0), ("cpu", 1))
SIZE = (3, 112, 112)


Open = Callable[..., Embedder]


@pytest.fixture
def embedder(engine: str) -> Open:
    """``embedder(prefix, number, devices, batch_size, image_shape, bfloat16=False)`` of each engine."""
    return lambda prefix, number, *rest: choose_engine(engine).embedder((prefix, number), *rest)


@pytest.fixture
def legacy(shared: Path) -> str:
    return str(shared / "legacy" / "checkpoint" / "y1-softmax-emore" / "model")


def test_the_golden_output_of_a_legacy_checkpoint(embedder: Open, legacy: str) -> None:
    """Tolerance 1e-4 of the largest: 60 layers of float32 in another order of sums."""
    number = int(next(Path(legacy).parent.glob("model-*.params")).stem[-4:])
    images = np.random.RandomState(0).randint(0, 256, (2, 3, 112, 112)).astype("float32")
    expected = np.load(Path(legacy).parent / "expected.npz")["fc1"]
    found = embedder(legacy, number, CPU, 2, SIZE)(images.astype(np.uint8))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_bfloat16_changes_cosines_by_less_than_a_thousandth(embedder: Open, legacy: str, shared: Path) -> None:
    """Real faces through y1 of random weights. 50 layers that round to 8 bits, each by up to 2**-9."""
    require_or_skip_bfloat16()
    images = load_bin(shared / "data" / "wild" / "lfw_sample.bin", (112, 112)).images[:8]
    exact, low = (embedder(legacy, 1, CPU, 4, SIZE, bfloat16)(images) for bfloat16 in (False, True))
    exact, low = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (exact, low))
    assert (low != exact).any()
    np.testing.assert_allclose((low * exact).sum(axis=1), 1, atol=1e-3)
    np.testing.assert_allclose(low @ low.T, exact @ exact.T, atol=1e-3)


def require_or_skip_bfloat16() -> None:
    try:
        require_bfloat16("this test")
    except UserError as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("activation, output", [("relu", "GDC"), ("prelu", "E")])
def test_any_number_of_images_as_plain_mxnet_embeds_them(embedder: Open, activation: str, output: str,
                                                         tmp_path: Path) -> None:
    """Seven images on two devices of three: the last batch is filled up; batches after the first must not fail.

    Tolerance 1e-4 of the largest: PReLU is written in other operators here.
    """
    config = Config(net_name="fmobilefacenet", net_output=output, emb_size=16, net_multiplier=0.25, net_act=activation)
    symbol = build_symbol(config)
    parameters, auxiliary = initialise(symbol, SIZE, 1, first_weights(config.net_name))
    save_checkpoint(tmp_path / "model", 1, symbol, parameters, auxiliary)
    images = np.random.RandomState(1).randint(0, 256, (7, *SIZE)).astype(np.uint8)
    plain = mx.mod.Module(mx.sym.load(f"{tmp_path}/model-symbol.json"), label_names=None)
    plain.bind([("data", images.shape)])
    plain.set_params(*mx.model.load_checkpoint(f"{tmp_path}/model", 1)[1:])
    plain.forward(mx.io.DataBatch([mx.nd.array(images.astype(np.float32))]), is_train=False)
    expected = plain.get_outputs()[0].asnumpy()
    embed = embedder(str(tmp_path / "model"), 1, TWO, 3, SIZE)
    for _ in range(2):
        found = embed(images)
        assert found.shape == (7, 16) and embed.dim == 16
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert embed(images[:0]).shape == (0, 16)


def small(folder: Path, output: Callable[..., sym.Symbol] | None = None) -> str:
    """A checkpoint of a linear network, or of what ``output`` makes of its ``data``."""
    data = sym.Variable("data")
    last = output(data) if output else sym.FullyConnected(data, num_hidden=2, name="fc1", no_bias=True)
    symbol = last.graph()
    folder.mkdir()
    save_checkpoint(folder / "model", 1, symbol, {"fc1_weight": np.ones((2, 12), np.float32)}, {})
    return str(folder / "model")


def test_layers_behind_the_embedding_are_left_out(embedder: Open, tmp_path: Path) -> None:
    prefix = small(tmp_path / "a", lambda data: sym.FullyConnected(
        sym.FullyConnected(data, num_hidden=2, name="fc1", no_bias=True), num_hidden=9, name="fc7"))
    assert embedder(prefix, 1, CPU, 1, (3, 2, 2))(np.ones((1, 3, 2, 2), np.uint8)).tolist() == [[12, 12]]


def test_files_that_are_no_checkpoint(embedder: Open, tmp_path: Path) -> None:
    good = small(tmp_path / "good")
    for name, content, words in [("json", "{}", "not a symbol that MXNet can be given"),
                                 ("text", "hello", "not a symbol"), ("binary", "\udcff", "not a symbol")]:
        shutil.copytree(Path(good).parent, tmp_path / name)
        (tmp_path / name / "model-symbol.json").write_bytes(content.encode(errors="surrogateescape"))
        with pytest.raises(UserError, match=r"model-symbol\.json: damaged: found sha256"):
            embedder(str(tmp_path / name / "model"), 1, CPU, 1, (3, 2, 2))
        (tmp_path / name / "model-symbol.json.sha256").unlink()
        with pytest.raises(UserError, match=f"model-symbol.json: {words}") as caught:
            embedder(str(tmp_path / name / "model"), 1, CPU, 1, (3, 2, 2))
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"absent-symbol.json: cannot be read: No such file"):
        embedder(str(tmp_path / "absent"), 1, CPU, 1, (3, 2, 2))
    with pytest.raises(UserError, match=r"found no output 'fc1_output' \(the last layer is 'other_output'\)"):
        read_network(Path(small(tmp_path / "other", lambda d: sym.identity(d, name="other")) + "-symbol.json"))
    graph = json.loads(Path(good + "-symbol.json").read_text())
    graph["nodes"][0]["name"] = "image"
    (tmp_path / "image.json").write_text(json.dumps(graph))
    with pytest.raises(UserError, match="found no input 'data'"):
        read_network(tmp_path / "image.json")
    with pytest.raises(UserError, match=r"fc1_weight is of shape \(2, 12\), expected \(2, 27\): not a checkpoint of"):
        embedder(good, 1, CPU, 1, (3, 3, 3))
    (tmp_path / "good" / "model-0002.params").write_bytes((tmp_path / "good" / "model-0001.params").read_bytes()[:-9])
    with pytest.raises(UserError, match=r"model-0002.params: not a file of MXNet's arrays"):
        embedder(good, 2, CPU, 1, (3, 2, 2))
    mx.nd.save(str(tmp_path / "good" / "model-0003.params"), {"arg:bias": mx.nd.zeros(1)})
    with pytest.raises(UserError, match="fc1_weight is missing"):
        embedder(good, 3, CPU, 1, (3, 2, 2))
    with pytest.raises(UserError, match=r"fc1_output is of shape \(1, 3, 2, 2\) for 1 images"):
        embedder(small(tmp_path / "maps", lambda d: sym.identity(d, name="fc1")), 1, CPU, 1, (3, 2, 2))


def test_a_network_that_mxnet_refuses_to_run_is_named(tmp_path: Path) -> None:
    """Its types are found out when it is bound: a sum of whole numbers and of float32."""
    prefix = small(tmp_path / "a", lambda data: sym.FullyConnected(
        sym.Cast(data, dtype="int32") + data, num_hidden=2, name="fc1", no_bias=True))
    with pytest.raises(UserError, match=rf"^{prefix}-symbol\.json: MXNet cannot run this network: ") as caught:
        choose_engine("mxnet").embedder((prefix, 1), CPU, 2, (3, 2, 2))(np.zeros((2, 3, 2, 2), np.uint8))
    assert "\n" not in str(caught.value)
