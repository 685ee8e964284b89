# SPDX-License-Identifier: Apache-2.0
"""The command on drawn and on real verification sets with a real network, and its PCA against an SVD written out."""
from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from sklearn.model_selection import KFold

from common.evaluation.results import table
from common.evaluation.verification_pca import evaluate_pca
from common.evaluation.verification_pictures import worst_pairs
from common.sets.pairs import draw_pairs
from common.verification import main
from recognition.data.verification_set import load_bin, save_bin
from recognition.errors import UserError
from recognition.evaluation.roc import tar_at_far
from recognition.evaluation.verification import THRESHOLDS, evaluate

PAIRS = 40


def patches(colours) -> list[bytes]:
    return [cv2.imencode(".png", np.full((112, 112, 3), colour[::-1], np.uint8))[1].tobytes()
            for colour in np.rint(colours)]


@pytest.fixture
def data(tmp_path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for name, noise in (("near", 15), ("far", 60)):
        random = np.random.default_rng(noise)
        colours = random.uniform(0, 255, (2 * PAIRS, 3))
        colours[1::4] = np.clip(colours[::4] + random.normal(0, noise, (PAIRS // 2, 3)), 0, 255)
        save_bin(folder / f"{name}.bin", patches(colours), np.arange(PAIRS) % 2 == 0)
    return folder


def by_hand(path: Path) -> np.ndarray:
    """Embeddings of images and their mirrors, without a network."""
    quarters = views(path)
    return (quarters + quarters[..., ::-1]).reshape(len(quarters), -1)


def views(path: Path) -> np.ndarray:
    """Mean colours of the quarters, less grey: float64 ``(n, 3, 2, 2)``."""
    images = load_bin(path).images.astype(np.float64)
    return images.reshape(len(images), 3, 2, 56, 2, 56).mean(axis=(3, 5)) - 127.5


def run(model, data, *flags) -> int:
    return main(["--model", f"{model},1", "--data", str(data), "--batch-size", "7", *map(str, flags)])


def test_table_json_and_pictures(model, data, tmp_path, capsys):
    output = tmp_path / "out"
    assert run(model, data, "--targets", "near,far", "--output", output, "--far", "0.05,0.2") == 0
    written = json.loads((output / "results.json").read_text())
    assert list(written["targets"]) == ["near", "far"] and written["model"] == f"{model}-0001.params"
    printed = capsys.readouterr().out
    for name, part in written["targets"].items():
        expected = evaluate(by_hand(data / f"{name}.bin"), np.arange(PAIRS) % 2 == 0)
        assert (part["accuracy"], part["std"]) == (expected.mean, expected.std)
        assert part["accuracies"] == expected.accuracies.tolist()
        assert part["auc"] == pytest.approx(expected.auc)
        rates = tar_at_far(expected.distances, expected.issame, (0.05, 0.2))
        assert [rate["tar"] for rate in part["tar_at_far"]] == rates.tolist()
        assert [rate["false_accepts_allowed"] for rate in part["tar_at_far"]] == [1, 4]
        norms = np.linalg.norm(views(data / f"{name}.bin").reshape(-1, 12), axis=1)
        assert part["xnorm"] == pytest.approx(norms.mean(), rel=1e-5)
        assert f"[{name}]Accuracy-Flip: {expected.mean:1.5f}+-{expected.std:1.5f}\n" in printed
        assert f"{100 * expected.mean:.2f}" in printed.splitlines()[-2 if name == "far" else -3]
    assert not list(output.glob(".*"))
    for picture in ("roc.png", "scores.png", "worst-near.png", "worst-far.png"):
        image = cv2.imread(str(output / picture)).astype(int)
        assert (image.max(axis=2) - image.min(axis=2) > 60).sum() > 1000  # curves, bars or faces in colour


def test_worst_pairs_are_those_a_sort_finds_and_lie_on_the_sheet(model, data, tmp_path):
    assert run(model, data, "--targets", "far", "--output", tmp_path) == 0
    chosen = load_bin(data / "far.bin")
    result = evaluate(by_hand(data / "far.bin"), chosen.issame)
    same, different = worst_pairs(result)
    order = sorted(range(PAIRS), key=lambda pair: result.distances[pair])
    assert [pair for pair in order[::-1] if pair % 2 == 0][:24] == same.tolist()
    assert [pair for pair in order if pair % 2][:24] == different.tolist()
    sheet = cv2.imread(str(tmp_path / "worst-far.png"))
    for i in (0, 1):  # the first tile pair, below a title of 30 pixels
        expected = chosen.images[2 * same[0] + i, ::-1, 0, 0]
        np.testing.assert_array_equal(sheet[30 + 56, 6 + 112 * i + 56], expected)


def test_by_default_all_sets_of_the_folder_beside_the_checkpoint(model, data, tmp_path, capsys):
    prefix = tmp_path / "copy" / "model"
    prefix.parent.mkdir()
    for end in ("-symbol.json", "-0001.params"):
        shutil.copy(f"{model}{end}", f"{prefix}{end}")
    assert run(prefix, data) == 0
    assert "TAR % at 0.001" in (printed := capsys.readouterr().out) and "*: fewer pairs" in printed
    written = json.loads((prefix.parent / "model-0001-verification" / "results.json").read_text())
    assert list(written["targets"]) == ["far", "near"]


def test_a_set_that_cannot_be_scored_does_not_cost_the_others(model, data, tmp_path, capsys):
    save_bin(data / "one.bin", patches(np.full((20, 3), 90.0)), [True] * 10)
    save_bin(data / "few.bin", patches(np.full((8, 3), 90.0)), [True, False] * 2)
    assert run(model, data, "--targets", "one,few,near", "--output", tmp_path / "out") == 2
    said = capsys.readouterr()
    assert said.err.splitlines() == [
        "error: one: all 10 pairs are of the same identity, expected pairs of both kinds",
        "error: few: found 4 pairs, expected at least one for each of 10 folds"]
    assert "[near]Accuracy-Flip" in said.out
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (list(written["targets"]), written["refused"]) == (["near"], ["one", "few"])
    assert run(model, data, "--targets", "one", "--output", tmp_path / "none") == 2
    assert not (tmp_path / "none").exists()


def test_equal_distances_are_accepted_together(model, tmp_path):
    colours = np.tile([[200.0, 90, 90], [90, 200, 90]], (PAIRS, 1))  # every pair the same two colours
    save_bin(tmp_path / "ties.bin", patches(colours), np.arange(PAIRS) % 2 == 0)
    assert run(model, tmp_path, "--output", tmp_path / "out") == 0
    part = json.loads((tmp_path / "out" / "results.json").read_text())["targets"]["ties"]
    assert (part["auc"], part["accuracy"]) == (0.5, 0.5)
    assert [rate["tar"] for rate in part["tar_at_far"]] == [0, 0]


def test_real_faces(model, shared, tmp_path):
    people = [[cv2.imread(str(shared / "data" / "orl" / f"s{i}" / f"{j}.pgm")) for j in range(1, 5)] for i in (1, 2, 3)]
    faces = [cv2.imencode(".png", cv2.resize(face, (112, 112)))[1].tobytes() for person in people for face in person]
    drawn = draw_pairs([4, 4, 4], folds=2)
    save_bin(tmp_path / "orl.bin", [faces[i] for i in drawn.images.ravel()], drawn.issame)
    assert run(model, tmp_path, "--targets", "orl", "--folds", "2", "--output", tmp_path / "out") == 0
    part = json.loads((tmp_path / "out" / "results.json").read_text())["targets"]["orl"]
    expected = evaluate(by_hand(tmp_path / "orl.bin"), drawn.issame, 2)
    assert part["accuracy"] == expected.mean and part["auc"] == pytest.approx(expected.auc)


def test_the_set_of_one_class_that_is_found_in_the_wild(model, shared, tmp_path, capsys):
    assert run(model, shared / "data" / "wild", "--targets", "lfw_sample", "--folds", "2", "--output", tmp_path) == 2
    assert capsys.readouterr().err.startswith("error: lfw_sample: all 10 pairs are of the same identity")


@pytest.mark.parametrize("flags, line", [
    (("--targets", "lfw"), "found no lfw.bin, expected verification sets; there are: far, near"),
    (("--data", "nowhere"), "--data: found no folder nowhere, expected one of verification sets"),
    (("--folds", "1"), "--folds: found 1, expected at least 2"),
    (("--far", "0.1,2"), "found '0.1,2', expected rates between 0 and 1"),
    (("--batch-size", "0"), "--batch-size: found 0"),
    (("--devices", "tpu"), "--devices: found 'tpu'"),
    (("--model", "nothing,1"), "--model: found no nothing-0001.params"),
    (("--pca", "13", "--targets", "near"), "near: found --pca 13, expected 1 to 12"),
])
def test_bad_flags_are_one_line(model, data, tmp_path, capsys, flags, line):
    assert run(model, data, "--output", tmp_path / "out", *flags) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and line in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("components", [1, 3, 8])
def test_pca_against_an_svd_written_out(components):
    random = np.random.default_rng(components)
    issame = random.random(57) < 0.5
    embeddings = random.normal(size=(114, 8)) * [5, 3, 2, 1, 1, 1, 1, 1]
    embeddings[1::2][issame] = embeddings[::2][issame] + 0.8 * random.normal(size=(issame.sum(), 8))
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    accuracies, held_out = [], np.empty(57)
    for others, fold in KFold(10).split(issame):
        seen = np.concatenate([unit[0::2][others], unit[1::2][others]])
        axes = np.linalg.svd(seen - seen.mean(axis=0), full_matrices=False)[2][:components]
        projected = (unit - seen.mean(axis=0)) @ axes.T
        projected /= np.linalg.norm(projected, axis=1, keepdims=True)
        distances = ((projected[::2] - projected[1::2]) ** 2).sum(axis=1)
        scores = [np.mean((distances[others] < threshold) == issame[others]) for threshold in THRESHOLDS]
        accuracies.append(np.mean((distances[fold] < THRESHOLDS[np.argmax(scores)]) == issame[fold]))
        held_out[fold] = distances[fold]
    result = evaluate_pca(embeddings, issame, components)
    np.testing.assert_array_equal(result.accuracies, accuracies)
    np.testing.assert_allclose(result.distances, held_out, atol=1e-12)  # two routes to the same axes, float64


def test_pca_of_more_numbers_than_there_are():
    with pytest.raises(UserError, match=r"^lfw: found --pca 5, expected 1 to 4"):
        evaluate_pca(np.random.default_rng(0).normal(size=(40, 4)), [True, False] * 10, 5, name="lfw")


def test_columns_of_a_table_are_aligned():
    assert table(["a", "bb"], [["long", "1"], ["x", "333"]]) == "a      bb\nlong    1\nx     333"


def test_several_checkpoints_as_the_recipes_script_takes_them(model, data, tmp_path, capsys):
    for kind in ("params", "params.sha256"):
        if Path(f"{model}-0001.{kind}").exists():
            shutil.copy(f"{model}-0001.{kind}", f"{model}-0002.{kind}")
    flags = ["--data", str(data), "--batch-size", "7", "--targets", "near"]
    assert main(["--model", f"{model},1|3", *flags, "--output", str(tmp_path / "none")]) == 2
    assert "found no" in capsys.readouterr().err and not (tmp_path / "none").exists()  # before the first is scored
    assert main(["--model", f"{model},1|2", *flags, "--output", str(tmp_path / "out")]) == 0
    found = [json.loads((tmp_path / "out" / number / "results.json").read_text()) for number in ("0001", "0002")]
    assert found[0]["targets"] == found[1]["targets"] and found[1]["model"].endswith("-0002.params")
    assert main(["--model", f"{model},1|2", *flags]) == 0
    assert Path(f"{model}-0002-verification/results.json").is_file()
