# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from common import inference
from common.embedding.gallery import load_gallery, nearest
from common.evaluation.results import table
from common.inference import main
from recognition import load_backbone
from recognition.errors import UserError


@pytest.fixture
def folder(tmp_path: Path, noise: np.ndarray) -> Path:
    """Seven images in two folders, a file that is no image, one that is cut short and one of another shape."""
    place = tmp_path / "people"
    for number, image in enumerate(noise):
        path = place / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), image[:, :, ::-1])
    (place / "a" / "broken.jpg").write_bytes(b"no image")
    (place / "a" / "cut.jpg").write_bytes(bytes(cv2.imencode(".jpg", noise[0])[1])[:900])
    cv2.imwrite(str(place / "b" / "wide.png"), noise[0][:50])
    (place / "notes.txt").write_text("not looked at")
    return place


def test_a_folder_to_a_file(small_model, folder, noise, tmp_path, capsys):
    output, report = tmp_path / "out.npz", tmp_path / "out.json"
    flags = ["--model", f"{small_model},1", "--batch-size", "4"]
    assert main([*flags, "--images", str(folder), "--output", str(output), "--json", str(report)]) == 0
    said = capsys.readouterr().out
    assert "broken.jpg" in said
    assert "cut.jpg" in said
    assert "wide.png: the image is 50 x 112" in said
    assert "3 images left out" in said
    gallery = load_gallery(output)
    assert gallery.paths == [f"a/{i}.png" for i in (0, 2, 4, 6)] + [f"b/{i}.png" for i in (1, 3, 5)]
    expected = load_backbone(str(small_model), batch_size=4).embed(noise[[0, 2, 4, 6, 1, 3, 5]])
    np.testing.assert_allclose(gallery.embeddings, expected, atol=1e-6)
    found = json.loads(report.read_text())
    assert (found["images"], len(found["unusable"])) == (7, 3)


def test_one_image(small_model, folder, tmp_path, capsys):
    report = tmp_path / "one.json"
    image = folder / "a" / "0.png"
    assert main(["--model", str(small_model), "--images", str(image), "--no-flip", "--json", str(report)]) == 0
    assert "[" in capsys.readouterr().out
    embedding = json.loads(report.read_text())["embedding"]
    assert len(embedding) == 64
    assert np.linalg.norm(embedding) == pytest.approx(1, abs=1e-6)


def test_two_faces(small_model, folder, tmp_path, capsys):
    report = tmp_path / "two.json"
    pair = [str(folder / "a" / "0.png"), str(folder / "b" / "1.png")]
    flags = ["--model", str(small_model), "--threshold", "0.0001", "--json", str(report)]
    assert main([*flags, "--compare", pair[0], pair[0]]) == 0
    assert "the same person" in capsys.readouterr().out
    assert main([*flags, "--compare", *pair, "--overwrite"]) == 0
    assert "two people" in capsys.readouterr().out
    found = json.loads(report.read_text())
    assert found["distance"] == pytest.approx(2 - 2 * found["cosine"], abs=1e-6)
    assert found["same"] is False


def test_searching_a_gallery(small_model, folder, tmp_path, capsys):
    """Each image of the gallery finds itself first; a gallery in a file gives what its folder gives."""
    saved, by_folder, by_file = tmp_path / "g.npz", tmp_path / "1.json", tmp_path / "2.json"
    model = ["--model", str(small_model)]
    assert main([*model, "--images", str(folder / "a"), "--output", str(saved)]) == 0
    for gallery, report in ((folder / "a", by_folder), (saved, by_file)):
        assert main([*model, "--gallery", str(gallery), "--probes", str(folder / "a"), "--top", "2", "--json",
                     str(report)]) == 0
    results = json.loads(by_folder.read_text())["results"]
    assert [result["probe"] for result in results] == ["0.png", "2.png", "4.png", "6.png"]
    for result in results:
        assert result["found"][0]["path"] == result["probe"]
        assert result["found"][0]["distance"] < 1e-5 < result["found"][1]["distance"]
    assert results == json.loads(by_file.read_text())["results"]
    capsys.readouterr()
    assert main([*model, "--gallery", str(saved), "--probes", str(folder / "b" / "1.png"), "--threshold", "0"]) == 0
    assert "none is below the threshold" in capsys.readouterr().out


def test_nearest_against_a_loop():
    random = np.random.default_rng(0)
    probes, gallery = (random.standard_normal((n, 8)).astype(np.float32) for n in (1030, 9))
    gallery[5] = gallery[2]
    numbers, cosines = nearest(probes, gallery, 20)
    assert numbers.shape == (1030, 9)
    for place in (0, 1023, 1024, 1029):
        products = [float(np.dot(probes[place], row)) for row in gallery]
        np.testing.assert_allclose(cosines[place], sorted(products, reverse=True), rtol=1e-5, atol=1e-5)
        assert list(numbers[place]).index(2) + 1 == list(numbers[place]).index(5)


def gallery_of(path: Path, embeddings: np.ndarray) -> Path:
    np.savez(path, embeddings=embeddings, paths=np.array([f"{i}.jpg" for i in range(len(embeddings))]),
             model=np.array("m,1"), flip=np.array(True))
    return path


@pytest.mark.parametrize("row, length", [([np.nan, 0, 0], "nan"), ([1e38, 0, 0], "1e+38"), ([3e38] * 3, "5.19615e+38"),
                                         ([0, 0, 0], "0"), ([np.inf, 0, 0], "inf"), ([1.002, 0, 0], "1.002")])
def test_rows_that_are_no_directions_are_refused(row: list[float], length: str, tmp_path: Path) -> None:
    """They would be nearest to every probe, or print nan."""
    path = gallery_of(tmp_path / "g.npz", np.array([[0, 1, 0], row], np.float32))
    with pytest.raises(UserError) as error:
        load_gallery(path)
    assert str(error.value) == (f"{path}: 1 of 2 embeddings are not of length 1, such as that of 1.jpg: {length}; "
                                "expected a file that common.inference wrote")


def test_what_float16_leaves_of_unit_rows_is_of_unit_length(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((200, 512))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16).astype(np.float32)
    assert np.array_equal(load_gallery(gallery_of(tmp_path / "g.npz", rows)).embeddings, rows)


def test_names_of_strangers_are_shown_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    """Line ends and codes that a terminal obeys, and bytes that are no UTF-8."""
    inference._table([{"probe": "a\x1b[2J", "found": [{"path": "b\nc\udcff", "cosine": 1.0, "distance": 0.0}]},
                      {"probe": "\x9bx", "found": []}])
    assert capsys.readouterr().out.splitlines()[1:] == [
        "a\\x1b[2J     1   1.000    0.0000  b\\nc\\udcff",
        "\\x9bx        -       -         -  none is below the threshold"]
    assert table(["name", "n"], [["\x1b\n", "1"]]) == "name    n\n\\x1b\\n  1"


@pytest.mark.parametrize(("flags", "message"), [
    (["--images", "{people}"], "--output: not given"),
    (["--images", "{people}", "--output", "out.txt"], "--output: found out.txt, expected a name that ends in .npz"),
    (["--images", "nowhere", "--output", "o.npz"], "nowhere: not found, expected an image or a folder"),
    (["--images", "{people}/notes.txt"], "notes.txt: none of its 1 images can be used"),
    (["--gallery", "{people}"], "--probes: not given"),
    (["--gallery", "{people}", "--probes", "{people}", "--top", "0"], "--top: found 0"),
    (["--compare", "a.png"], "expected 2 arguments"),
    (["--images", "{people}", "--probes", "x"], "--probes: goes with --gallery only"),
    (["--gallery", "{people}/notes.npz", "--probes", "{people}"], "notes.npz: not a file of embeddings"),
])
def test_bad_input_is_one_line(small_model, folder, tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    (folder / "notes.npz").write_text("nothing")
    assert main(["--model", str(small_model), *(flag.format(people=folder) for flag in flags)]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not list(tmp_path.glob("o*"))


@pytest.mark.parametrize(("flags", "message"), [
    (["--images", "nowhere", "--output", "o.npz"], "nowhere: not found"),
    (["--images", "{people}"], "--output: not given"),
    (["--compare", "nowhere.png", "{people}"], "nowhere.png: not found"),
    (["--compare", "{people}/a/0.png", "{people}"], "people, expected two images"),
    (["--gallery", "nowhere.npz", "--probes", "{people}"], "nowhere.npz: cannot be read"),
    (["--help"], "Embeds aligned face images"),
])
def test_what_needs_no_network_is_said_without_mxnet(small_model, folder, tmp_path, flags, message):
    code = "import sys; from common.inference import main; main(); print('mxnet' in sys.modules)"
    flags = [flag.format(people=folder) for flag in flags]
    done = subprocess.run([sys.executable, "-c", code, "--model", str(small_model), *flags], capture_output=True,
                          text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": os.getcwd()}, check=False)
    assert message in done.stdout + done.stderr
    assert "True" not in done.stdout


def test_a_gallery_of_another_network_is_refused(small_model, folder, tmp_path, capsys):
    saved = tmp_path / "g.npz"
    assert main(["--model", str(small_model), "--images", str(folder), "--no-flip", "--output", str(saved)]) == 0
    assert main(["--model", str(small_model), "--gallery", str(saved), "--probes", str(folder)]) == 2
    assert "without mirrors, expected 64" in capsys.readouterr().err
