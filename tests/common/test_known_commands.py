# SPDX-License-Identifier: Apache-2.0
"""Command lines of the public recipes and of arcface_torch, as people type them."""
from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from common import build_eval_pack, export_onnx, gen_megaface, ijb, ijb_11, rec2shufrec, verification
from recognition.data.verification_set import save_bin

ROOT = Path(__file__).resolve().parents[2]
PLACES = ("verification", "inference", "drop", "rec2shufrec", "build_eval_pack", "ijb_11", "ijb_onnx", "gen_megaface")


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    """A folder with near.bin: 20 pairs of plain colours."""
    folder = tmp_path / "sets"
    folder.mkdir()
    random = np.random.default_rng(0)
    colours = random.uniform(0, 255, (40, 3))
    colours[1::4] = np.clip(colours[::4] + random.normal(0, 15, (10, 3)), 0, 255)
    images = [cv2.imencode(".png", np.full((112, 112, 3), colour, np.uint8))[1].tobytes() for colour in colours]
    save_bin(folder / "near.bin", images, np.arange(20) % 2 == 0)
    return folder


@pytest.fixture
def prefix(model: str, tmp_path: Path) -> Path:
    """Three checkpoints, all of one network."""
    for number in (1, 2, 3):
        shutil.copy(f"{model}-0001.params", tmp_path / f"model-000{number}.params")
    shutil.copy(f"{model}-symbol.json", tmp_path / "model-symbol.json")
    return tmp_path / "model"


def test_all_lie_at_their_old_place_or_in_common() -> None:
    assert [name for name in PLACES if not (ROOT / "common" / f"{name}.py").is_file()] == []


def test_a_command_runs_from_its_file(prefix: Path, sets: Path) -> None:
    words = f"--data-dir {sets} --model {prefix},1 --target near --nfolds 5 --gpu -1 --batch-size 8".split()
    done = subprocess.run([sys.executable, "common/verification.py", *words], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert re.search(r"^\[near\]Accuracy-Flip: [01]\.\d{5}\+-[01]\.\d{5}$", done.stdout, re.M)


def test_all_epochs_of_a_prefix_and_the_best(prefix: Path, sets: Path, capsys) -> None:
    words = ["--data-dir", str(sets), "--model", str(prefix), "--target", "near", "--nfolds", "5", "--gpu", "-1"]
    assert verification.main(words) == 0
    out = capsys.readouterr().out
    assert re.findall(r"^.*/model-(\d+)\.params:$", out, re.M) == ["0003", "0002", "0001"]
    accuracies = [float(found) for found in re.findall(r"Accuracy-Flip: ([\d.]+)\+-", out)]
    assert f"Max of [near] is {max(accuracies):1.5f}\nbest of [near]: {prefix}-0003.params\n" in out
    for more, numbers in ((["--max", "1,2"], ["0002"]), (["--mode", "1"], ["0003"]),
                          (["--max", "0,9"], ["0003", "0002", "0001"])):
        shutil.rmtree(prefix.parent / "out", ignore_errors=True)
        assert verification.main([*words, *more, "--output", str(prefix.parent / "out")]) == 0
        out = capsys.readouterr().out
        assert re.findall(r"^.*/model-(\d+)\.params:$", out, re.M) == (numbers if len(numbers) > 1 else [])
        written = [json.loads(path.read_text())["model"] for path in (prefix.parent / "out").rglob("results.json")]
        assert sorted(written) == sorted(f"{prefix}-{number}.params" for number in numbers)


@pytest.mark.parametrize("more, message", [
    (["--gpu", "0", "--devices", "cpu"], "--gpu: goes without --devices"),
    (["--mode", "3"], "argument --mode: invalid choice: 3"),
    (["--max", "three"], "argument --max: found 'three', expected two numbers"),
    (["--max", "2,1"], "argument --max: found '2,1', expected two numbers"),
])
def test_what_is_not_known_of_them_is_one_line(prefix, sets, more, message, capsys) -> None:
    assert verification.main(["--data", str(sets), "--model", f"{prefix},1", *more]) == 2
    assert message in capsys.readouterr().err


def test_the_third_mode_leaves_the_embeddings_of_the_first_set(prefix: Path, sets: Path, capsys) -> None:
    """A set that is not there is left out with a line, as the recipes' default of four names needs it."""
    words = f"--data-dir {sets} --model {prefix} --target none,near --nfolds 5 --gpu -1 --mode 2"
    assert verification.main([*words.split(), "--output", str(sets / "out")]) == 0
    assert f"{sets}: no none.bin there: left out\n" in capsys.readouterr().out
    with open(sets / "out" / "temp.bin", "rb") as file:
        embeddings, issame = pickle.load(file)
    assert embeddings.shape == (40, 12) and issame == [pair % 2 == 0 for pair in range(20)]
    assert np.linalg.norm(embeddings, axis=1) == pytest.approx(1, abs=1e-6)  # float32
    distances = np.square(embeddings[0::2].astype(np.float64) - embeddings[1::2]).sum(axis=1)
    best = max(np.mean((distances < threshold) == issame) for threshold in np.arange(0, 4, 0.01))
    scored = json.loads((sets / "out" / "results.json").read_text())["targets"]["near"]
    assert scored["accuracy"] <= best and scored["auc"] > 0.5


def test_dropping_at_its_old_place(capfd) -> None:
    """Beside train_parall.py; the help is that of common.drop."""
    done = subprocess.run([sys.executable, "drop.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "usage: python -m common.drop" in done.stdout


def test_features_of_megaface_by_the_recipes_words(prefix: Path, tmp_path, monkeypatch, capsys) -> None:
    """Its run.sh names neither images nor lists: they lie in data."""
    monkeypatch.chdir(tmp_path)
    for name, place in (("facescrub", "a/b.png"), ("megaface", "c/d/e.png")):
        path = tmp_path / "data" / f"{name}_images" / place
        path.parent.mkdir(parents=True)
        cv2.imwrite(str(path), np.full((112, 112, 3), 200, np.uint8))
        cv2.imwrite(str(path.with_name("unlisted.png")), np.full((112, 112, 3), 100, np.uint8))
        (tmp_path / "data" / f"{name}_lst").write_text(place + "\n")
    words = ["--gpu", "-1", "--algo", "x", "--model", f"{prefix},1"]
    assert gen_megaface.main([*words, "--batch_size", "8", "--image_size", "3,112,112"]) == 0
    made = {str(path.relative_to(tmp_path / "feature_out")) for path in (tmp_path / "feature_out").rglob("*.bin")}
    assert made == {"facescrub/a/b.png_x.bin", "megaface/c/d/e.png_x.bin"}
    assert gen_megaface.main([*words, "--image_size", "3,112,96"]) == 2
    assert "argument --image_size: found '3,112,96', expected 3,112,112 or 3,224,224" in capsys.readouterr().err


def test_shuffling_by_input_and_output(write_set, tmp_path, capsys) -> None:
    images = [cv2.imencode(".png", np.full((112, 112, 3), shade, np.uint8))[1].tobytes() for shade in range(6)]
    training_set = write_set([0, 0, 1, 1, 2, 2], images, 3)
    assert rec2shufrec.main([str(training_set), str(tmp_path / "a")]) == 0
    assert rec2shufrec.main(["--input", str(training_set), "--output", str(tmp_path / "b"), "--copy-vers"]) == 0
    assert (tmp_path / "a" / "train.rec").read_bytes() == (tmp_path / "b" / "train.rec").read_bytes()
    for words in ([], [str(training_set)], [str(training_set), "--output", "x"], ["--input", str(training_set)]):
        assert rec2shufrec.main(words) == 2
        assert "expected a training set and a new folder, or --input and --output" in capsys.readouterr().err


def test_a_detector_by_its_old_flag(tmp_path, capsys) -> None:
    words = ["--data-dir", str(tmp_path), "--output", str(tmp_path / "x.bin"), "--image-size", "112", "--gpu", "0"]
    assert build_eval_pack.main([*words, "--det-prefix", "./model/R50"]) == 2
    assert "--det-prefix: found './model/R50', expected a YuNet model, FILE.onnx" in capsys.readouterr().err
    (tmp_path / "pairs_label.txt").write_text("a.jpg b.jpg 1\n")
    for flag in ("--det-prefix", "--detector"):
        assert build_eval_pack.main([*words, flag, str(tmp_path / "none.onnx")]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == second


def test_ijb_by_its_old_flags(monkeypatch, tmp_path) -> None:
    given = []
    monkeypatch.setattr(ijb, "main", lambda words: given.append(words) or 0)
    words = "--model-prefix models/r100/model --model-epoch 3 --gpu 0 --target IJBB --job x"
    assert ijb_11.main(words.split(" ")) == 0
    assert ijb_11.main(["--model-prefix", "a.pth", "--network", "r50", "--image-path", "there/IJBC"]) == 0
    assert ijb_11.main(["--model-file", "nets/a.onnx", "--image-path", "IJBC", "--result-dir", "out"]) == 0
    assert given.pop() == ["--model", "nets/a.onnx", "--data", "IJBC", "--output", "out/IJBC_result", "--save-scores",
                           "out/IJBC_result/a.onnx.npy", "--batch-size", "32"]
    assert given == [
        ["--model", "models/r100/model,3", "--data", "IJBB", "--output", "IJBB_result", "--save-scores",
         "IJBB_result/x.npy", "--batch-size", "32", "--gpu", "0"],
        ["--model", "a.pth", "--data", "there/IJBC", "--output", "IJBC_result", "--save-scores",
         "IJBC_result/insightface.npy", "--batch-size", "32"]]


def test_an_onnx_file_is_a_model_for_verification(small_model, sets, tmp_path) -> None:
    """The same accuracies as the checkpoint that it came from, whose embeddings it gives to float32."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    assert export_onnx.main(["--model", f"{small_model},1", "--output", str(tmp_path / "small.onnx")]) == 0
    found = []
    for model in (f"{small_model},1", str(tmp_path / "small.onnx")):
        output = tmp_path / f"out{len(found)}"
        assert verification.main(["--model", model, "--data", str(sets), "--output", str(output), "--folds", "5"]) == 0
        found.append(json.loads((output / "results.json").read_text())["targets"]["near"])
    assert found[0]["accuracies"] == found[1]["accuracies"]
    assert found[1]["xnorm"] == pytest.approx(found[0]["xnorm"], rel=1e-5)


def test_a_file_that_is_no_network(tmp_path, sets, capsys) -> None:
    pytest.importorskip("onnxruntime")
    (tmp_path / "x.onnx").write_bytes(b"no network")
    assert verification.main(["--model", str(tmp_path / "x.onnx"), "--data", str(sets)]) == 2
    assert "x.onnx: not a network in ONNX" in capsys.readouterr().err
    assert verification.main(["--model", str(tmp_path / "y.onnx"), "--data", str(sets)]) == 2
    assert "--model: found no file" in capsys.readouterr().err
