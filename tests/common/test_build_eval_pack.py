# SPDX-License-Identifier: Apache-2.0
"""Verification sets from lists of pairs: read back by pickle, as the recipes do, and by the project's own reader."""
from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any, Callable

import cv2
import numpy as np
import pytest

from common.build_eval_pack import main
from common.gen_megaface import main as gen_megaface
from common.inference import main as inference
from common.pack_folder import main as pack_folder
from common.rec_builder import main as rec_builder
from common.sets.bin_checks import check_bin
from common.sets.pair_lists import read_pairs
from recognition.data.verification_set import load_bin
from recognition.errors import UserError


def write(path: Path, image: np.ndarray) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    return path.read_bytes()


def run(folder: Path, *flags: Any) -> int:
    return main(["--data-dir", str(folder), "--output", str(folder / "out" / "mine.bin"), *map(str, flags)])


def test_aligned_images_stay_as_they_are(tmp_path: Path, noise: np.ndarray, capsys: pytest.CaptureFixture[str]) -> None:
    stored = [write(tmp_path / f"{i}.jpg", noise[i]) for i in range(4)]
    (tmp_path / "pairs_label.txt").write_text("0.jpg 1.jpg 1\n2.jpg 0.jpg 0\n0.jpg 3.jpg 0\n")
    assert run(tmp_path) == 0
    with open(tmp_path / "out" / "mine.bin", "rb") as file:
        images, issame = pickle.load(file, encoding="bytes")
    assert images == [stored[i] for i in (0, 1, 2, 0, 0, 3)] and issame == [True, False, False]
    assert (tmp_path / "out" / "mine.bin").stat().st_size < sum(map(len, stored)) + 1000  # each image once
    found = load_bin(tmp_path / "out" / "mine.bin")
    want = cv2.cvtColor(cv2.imdecode(np.frombuffer(stored[2], np.uint8), 1), cv2.COLOR_BGR2RGB)
    np.testing.assert_array_equal(found.images[2].transpose(1, 2, 0), want)
    report = json.loads((tmp_path / "out" / "mine.json").read_text())
    assert (report["pairs"], report["pairs_of_one_identity"], report["images"]) == (3, 1, 4)
    assert cv2.imread(str(tmp_path / "out" / "mine.png")) is not None
    assert "mine.bin      3" in capsys.readouterr().out


def test_a_detector_aligns(yunet: Path, marked: Callable[..., np.ndarray], faces: np.ndarray, tmp_path: Path,
                           capsys: pytest.CaptureFixture[str]) -> None:
    """Two JPEGs of one face: mean difference 3 of 255, maximum that of JPEG at its quality on these photographs."""
    for i in range(4):
        write(tmp_path / f"{i}.png", marked([faces[i]], [(80, 64)], (300, 400)))
    write(tmp_path / "none.png", marked([], [], (64, 64)))
    (tmp_path / "list.txt").write_text("0.png\t1.png\ttrue\n0.png\tnone.png\t1\n2.png\t3.png\tfalse\n")
    flags = ("--pairs", tmp_path / "list.txt", "--detector", yunet)
    assert run(tmp_path, *flags) == 2
    assert "none.png: no face found" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert run(tmp_path, *flags, "--skip-broken") == 0
    said = capsys.readouterr().out
    assert "left out: " in said and "none.png: no face found" in said and "mind: 2 pairs" in said
    found = load_bin(tmp_path / "out" / "mine.bin")
    assert found.issame.tolist() == [True, False]
    difference = np.abs(found.images.transpose(0, 2, 3, 1).astype(int) - faces[:4])
    assert difference.mean() < 3
    # against the same pixels, encoded as they are
    direct = cv2.imdecode(cv2.imencode(".jpg", faces[0][..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1], 1)[..., ::-1]
    assert np.abs(found.images[0].transpose(1, 2, 0).astype(int) - direct).mean() < 0.5


def test_pairs_of_lfw(tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_text("2\t1\nAnn_Bee\t1\t12\nCee\t3\tAnn_Bee\t4\nCee\t1\t2\nAnn_Bee\t2\tCee\t2\n")
    pairs = read_pairs(tmp_path / "pairs.txt")
    assert pairs.issame.tolist() == [True, False, True, False]
    assert pairs.first == ["Ann_Bee/Ann_Bee_0001.jpg", "Cee/Cee_0003.jpg", "Cee/Cee_0001.jpg",
                           "Ann_Bee/Ann_Bee_0002.jpg"]
    assert pairs.second[0] == "Ann_Bee/Ann_Bee_0012.jpg" and pairs.second[1] == "Ann_Bee/Ann_Bee_0004.jpg"


@pytest.mark.parametrize("text, line", [
    ("", "no pairs there"), ("a.jpg b.jpg\n", "line 1: found 'a.jpg b.jpg'"), ("a b 1\na b 2\n", "line 2"),
    ("10 300\nname 1\n", "line 2: found 'name 1'"), ("10 300\nname " + "9" * 5000 + " 1\n", "line 2: found 'name 99"),
    ("a\0.jpg b.jpg 1\n", "line 1"),
    ("a.jpg ../../b.jpg 1\n", "line 1: found '../../b.jpg'"), ("/etc/a.jpg b.jpg 1\n", "line 1")])
def test_lists_that_are_none(tmp_path: Path, text: str, line: str) -> None:
    (tmp_path / "list").write_text(text)
    with pytest.raises(UserError, match=line):
        read_pairs(tmp_path / "list")


def test_bad_flags_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path) == 2
    assert "pairs_label.txt: cannot be read" in capsys.readouterr().err
    (tmp_path / "pairs_label.txt").write_text("a.jpg b.jpg 1\n")
    assert run(tmp_path) == 2
    assert "a.jpg: cannot be read" in capsys.readouterr().err
    assert run(tmp_path, "--skip-broken") == 2
    assert "none of the 1 pairs can be used" in capsys.readouterr().err
    assert run(tmp_path, "--landmarks", tmp_path / "pairs_label.txt", "--align-mode", "six") == 2
    assert "--align-mode: found 'six'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("count, mixed, folds", [(60, False, 10), (60, True, 0), (20, False, 0)])
def test_a_list_with_one_kind_of_pairs_after_the_other_is_told(
        count: int, mixed: bool, folds: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its folds have one kind each, so each threshold is chosen on the other kind for the most part."""
    for i in range(2):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((112, 112, 3), 90 * i, np.uint8))
    kinds = [i % 2 if mixed else int(i < count // 2) for i in range(count)]
    (tmp_path / "list").write_text("".join(f"0.png {kind}.png {1 - kind}\n" for kind in kinds))
    assert main(["--data-dir", str(tmp_path), "--pairs", str(tmp_path / "list"), "--output",
                 str(tmp_path / "pack.bin")]) == 0
    said = capsys.readouterr().out
    assert ("hold pairs of one kind only" in said) == bool(folds)
    assert f"mind: {folds} of the protocol's 10 folds" in said or not folds
    found = check_bin(tmp_path / "pack.bin", None, (112, 112))[1]
    assert [finding.level for finding in found] == (["warning"] if folds else [])


def test_whole_photographs_are_told_from_aligned_faces(tmp_path: Path, colour_model: Callable[..., str],
                                                       capsys: pytest.CaptureFixture[str]) -> None:
    model = colour_model()
    for i, side in enumerate((112, 250)):
        (tmp_path / "people" / f"p{i}").mkdir(parents=True)
        for k in range(2):
            cv2.imwrite(str(tmp_path / "people" / f"p{i}" / f"{k}.jpg"), np.full((side, side, 3), 90 * k, np.uint8))
    (tmp_path / "list").write_text("p0/0.jpg p0/1.jpg 1\np0/0.jpg p1/0.jpg 0\np1/1.jpg p0/1.jpg 0\n")
    line = "mind: 2 images are not 112 x 112, such as {}/p1/0.jpg, and were scaled: if they are not aligned faces, "
    for command, words in ((main, ["--data-dir", "DIR", "--pairs", str(tmp_path / "list"), "--output", "NEW.bin"]),
                           (pack_folder, ["DIR", "NEW1"]), (rec_builder, ["DIR", "NEW2"]),
                           (inference, ["--model", model, "--images", "DIR", "--output", "NEW.npz"]),
                           (gen_megaface, ["--model", model, "--facescrub-root", "DIR", "--output", "NEW3"])):
        assert command([word.replace("DIR", f"{tmp_path}/people").replace("NEW", f"{tmp_path}/new")
                        for word in words]) == 0
        assert line.format(tmp_path / "people") in capsys.readouterr().out
