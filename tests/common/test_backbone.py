# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import doctest
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from recognition import load_backbone
from recognition.engines.mxnet.imports import mx
from recognition.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def plain(prefix: Path, images: np.ndarray) -> np.ndarray:
    """The reference: plain MXNet, as a user of the checkpoint would run it."""
    network = mx.gluon.SymbolBlock.imports(f"{prefix}-symbol.json", ["data"], f"{prefix}-0001.params")
    return network(mx.nd.array(images.transpose(0, 3, 1, 2))).asnumpy()


@pytest.mark.parametrize("count", [0, 1, 3, 4, 7])
def test_plain_embeddings_are_those_of_plain_mxnet(small_model, noise, count):
    """Whole batches, rests done one by one and rests filled up. 1e-5 of sums in another order."""
    found = load_backbone(f"{small_model},1", batch_size=4).embed(noise[:count], flip=False, unit=False)
    assert found.dtype == np.float32
    assert found.shape == (count, 64)
    if count:
        np.testing.assert_allclose(found, plain(small_model, noise[:count]), rtol=1e-4, atol=1e-5)


def test_the_golden_checkpoint(shared):
    """1e-5 of the largest number: float32 sums in another order."""
    folder = shared / "legacy" / "checkpoint" / "y1-softmax-emore"
    images = np.random.RandomState(0).randint(0, 256, (2, 3, 112, 112)).astype(np.uint8)
    expected = np.load(folder / "expected.npz")["fc1"]
    found = load_backbone(str(folder)).embed(images.transpose(0, 2, 3, 1), flip=False, unit=False)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_flip_adds_the_mirror_and_unit_divides_by_the_norm(small_model, noise):
    backbone = load_backbone(str(small_model), batch_size=4)
    both = plain(small_model, noise) + plain(small_model, noise[:, :, ::-1])
    np.testing.assert_allclose(backbone.embed(list(noise), unit=False), both, rtol=1e-4, atol=5e-5)
    unit = both / np.linalg.norm(both, axis=1, keepdims=True)
    np.testing.assert_allclose(backbone.embed(noise), unit, rtol=1e-4, atol=1e-6)


def test_two_devices_give_what_one_gives(small_model, noise):
    one, two = (load_backbone(str(small_model), devices, 2).embed(noise) for devices in ("cpu", "cpu:2"))
    np.testing.assert_allclose(two, one, atol=1e-6)


def test_wrong_images_and_names(small_model, noise, tmp_path):
    backbone = load_backbone(str(small_model))
    with pytest.raises(ValueError, match=r"image 1: found uint8 of shape \(112, 112\)"):
        backbone.embed([noise[0], noise[1, :, :, 0]])
    with pytest.raises(ValueError, match="image 0: found float32"):
        backbone.embed(noise.astype(np.float32))
    with pytest.raises(UserError, match=r"model: found no .*none-0001\.params"):
        load_backbone(str(tmp_path / "none"))
    with pytest.raises(UserError, match="devices: found 'tpu'"):
        load_backbone(str(small_model), "tpu")
    with pytest.raises(UserError, match="batch_size: found 0"):
        load_backbone(str(small_model), batch_size=0)


def test_importing_recognition_is_light():
    code = ("import sys, recognition; assert not {'mxnet', 'cv2', 'numpy'} & set(sys.modules); "
            "assert not hasattr(recognition, 'load_everything')")
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_documented_examples(small_model, tmp_path, monkeypatch, noise):
    folder = tmp_path / "models" / "demo"
    folder.mkdir(parents=True)
    for end in ("-symbol.json", "-0001.params"):
        (folder / f"model{end}").write_bytes(Path(f"{small_model}{end}").read_bytes())
    (tmp_path / "faces").mkdir()
    for name, image in zip(("ann", "bob"), noise):
        cv2.imwrite(str(tmp_path / "faces" / f"{name}.png"), image)
    monkeypatch.chdir(tmp_path)
    failed, tried = doctest.testfile(str(ROOT / "docs" / "api.md"), module_relative=False)
    assert tried > 8
    assert failed == 0
