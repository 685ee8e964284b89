# SPDX-License-Identifier: Apache-2.0
"""common.embed_set: its rows against the embeddings of each image by itself, and bad input in a line."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Callable

import cv2
import numpy as np
import pytest

from common.embed_set import main
from recognition import load_backbone
from recognition.data.images.image import decode_rgb
from recognition.data.sets.dataset import open_dataset
from recognition.io.embeddings import StoredEmbeddings
from tests.common.conftest import smooth_noise

LABELS = [0, 0, 1, 1, 2, 2, 2]


@pytest.fixture
def data(write_set: Callable[..., Path], noise: np.ndarray) -> Path:
    """Seven images of three people."""
    return write_set(LABELS, [bytes(cv2.imencode(".png", image)[1]) for image in noise], 3)


def run(data: Path, model: str, output: Path, *flags: str) -> int:
    return main(["--data", str(data), "--model", model, "--output", str(output), "--devices", "cpu", *flags])


@pytest.mark.parametrize("flip", [True, False], ids=["with mirrors", "without"])
def test_rows_are_the_embeddings_of_the_images(engine: str, data: Path, small_model: Path, tmp_path: Path, flip: bool,
                                               capsys: pytest.CaptureFixture[str]) -> None:
    """They are load_backbone's, image by image; to float16, half of 2^-10 of the largest number of a unit vector."""
    flags = ["--engine", engine, "--batch-size", "3", *([] if flip else ["--no-flip"])]
    assert run(data, f"{small_model},1", tmp_path / "rows", *flags) == 0
    assert f"{tmp_path / 'rows'}: embeddings of 7 images, 64 numbers each" in capsys.readouterr().out
    dataset, stored = open_dataset(data), StoredEmbeddings(tmp_path / "rows")
    images = np.stack([decode_rgb(dataset.read(i)[1]) for i in range(7)])
    wanted = load_backbone(f"{small_model},1", engine=engine).embed(images, flip=flip)
    assert np.load(tmp_path / "rows" / "embeddings.npy").dtype == np.float16 and stored.dim == 64
    np.testing.assert_allclose(stored.of(dataset.keys[::-1]), wanted[::-1], rtol=0, atol=5e-4)
    assert json.loads((tmp_path / "rows" / "embeddings.json").read_text()) == {
        "data": str(data), "digest": dataset.digest(), "model": f"{small_model}-0001.params", "flip": flip}


def test_several_sets_and_folders_of_images_are_embedded_as_one(data: Path, small_model: Path, tmp_path: Path) -> None:
    people = tmp_path / "people"
    for number, image in enumerate(smooth_noise(2, seed=5)):
        (people / f"p{number}").mkdir(parents=True)
        cv2.imwrite(str(people / f"p{number}" / "a.png"), image)
    assert main(["--data", str(data), str(people), "--model", f"{small_model},1", "--output", str(tmp_path / "rows"),
                 "--devices", "cpu"]) == 0
    assert StoredEmbeddings(tmp_path / "rows").keys.tolist() == list(range(9))


def test_an_image_that_cannot_be_used_gets_zeros(write_set: Callable[..., Path], noise: np.ndarray, small_model: Path,
                                                 tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bodies = [bytes(cv2.imencode(".png", image)[1]) for image in noise]
    data = write_set(LABELS, [*bodies[:4], b"no image", *bodies[5:]], 3)
    assert run(data, f"{small_model},1", tmp_path / "rows") == 0
    rows = np.load(tmp_path / "rows" / "embeddings.npy").astype(np.float32)
    lengths = np.linalg.norm(rows, axis=1)
    assert lengths[4] == 0 and np.allclose(np.delete(lengths, 4), 1, atol=1e-3)
    assert "7 images, 64 numbers each; " in capsys.readouterr().out


def test_bad_input_is_a_line(data: Path, small_model: Path, colour_model: Callable[..., str], tmp_path: Path,
                             capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    zeros = colour_model("zeros", fc1_weight=np.zeros((3, 3), np.float32), fc1_bias=np.zeros(3, np.float32))
    for model, output, flags, line in [
            (f"{small_model},2", "rows", [], "--model: found no "),
            (f"{small_model},1", "there", [], "exists already, expected a new folder"),
            (f"{small_model},1", "rows", ["--decode-threads", "0"], "--decode-threads: found 0"),
            (f"{zeros},1", "rows", [], "record 1: its embedding is zero or not finite")]:
        assert run(data, model, tmp_path / output, *flags) == 2
        error = capsys.readouterr().err
        assert line in error and error.count("\n") == 1
    assert run(tmp_path / "there", f"{small_model},1", tmp_path / "rows") == 2
    assert "no train.rec there" in capsys.readouterr().err and not (tmp_path / "rows").exists()
