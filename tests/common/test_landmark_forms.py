# SPDX-License-Identifier: Apache-2.0
"""Landmarks as people have them: with labels, boxes and scores, and in orders that are no face."""
from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from common.build_eval_pack import main as build_eval_pack
from common.face_align import main as face_align
from common.faces.alignment import ARCFACE, FIVE, similarity
from common.faces.landmark_files import read_landmarks
from common.faces.upright import fit, likely_order, upright
from recognition.errors import UserError

FACES = 40
NAMES = [f"p{i % 7}/face {i}.jpg" for i in range(FACES)]


@pytest.fixture(scope="module")
def points() -> np.ndarray:
    """Faces from profile to profile, turned, moved, scaled and shaken: float64 (FACES, 5, 2)."""
    random = np.random.default_rng(0)
    faces = []
    for i in range(FACES):
        moved = FIVE[i % 5] @ [1, 1j] * random.uniform(0.4, 3) * np.exp(1j * random.normal(0, 0.25))
        moved += complex(*random.uniform(20, 300, 2))
        face = np.column_stack([moved.real, moved.imag])
        faces.append(face + random.normal(0, 0.04 * np.ptp(face, axis=0).max(), face.shape))
    return np.array(faces).round(2)


def lines(names: list[str], points: np.ndarray, form: str, separator: str = "\t") -> str:
    """Lines with the words of ``form``; POINTS stands for the ten numbers."""
    text = ""
    for i, (name, five) in enumerate(zip(names, points)):
        left, top = five.min(axis=0).round(2) - 20
        words = {"PATH": name, "LABEL": str(i % 7), "WORD": f"m.0{i % 7}x", "NAME": f"Ann{' B' * (i % 2)}",
                 "SCORE": f"{1.5 + i / 9:.4f}",
                 "SURE": f"0.9{i}", "BOX": f"{left}{separator}{top}{separator}120{separator}150",
                 "POINTS": separator.join(map(str, five.ravel()))}
        text += separator.join(words[word] for word in form.split()) + "\n"
    return text


@pytest.mark.parametrize("separator", ["\t", " ", ",", ", ", ";", "  "])
@pytest.mark.parametrize("form", ["PATH POINTS", "PATH LABEL POINTS", "PATH POINTS SCORE", "PATH POINTS SURE",
                                  "PATH LABEL POINTS SCORE", "PATH WORD POINTS", "PATH LABEL BOX POINTS",
                                  "PATH BOX POINTS SURE", "PATH WORD LABEL POINTS", "PATH LABEL NAME POINTS"])
def test_landmarks_are_found_wherever_they_stand(form: str, separator: str, points: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "points").write_text(lines(NAMES, points, form, separator), encoding="utf-8-sig")
    found = read_landmarks(tmp_path / "points")
    assert found.names == NAMES
    np.testing.assert_array_equal(found.points, points.astype(np.float32))


def test_a_label_before_whole_numbers_is_no_coordinate(points: np.ndarray, tmp_path: Path) -> None:
    for label in (0, 17, 123456):
        text = "".join(f"{name}\t{label}\t" + "\t".join(map(str, np.rint(five).astype(int).ravel())) + "\n"
                       for name, five in zip(NAMES, points))
        (tmp_path / "points").write_text(text)
        np.testing.assert_array_equal(read_landmarks(tmp_path / "points").points, np.rint(points))


def test_headings_quotes_and_names_without_endings(points: np.ndarray, tmp_path: Path) -> None:
    columns = ",".join(f"P{i}{axis}" for i in range(1, 6) for axis in "XY")
    names = [f"n{i:06d}/{i:04d}_01" for i in range(FACES)]
    (tmp_path / "vggface2.csv").write_text(
        f"NAME_ID,{columns}\n" + lines([f'"{name}"' for name in names], points, "PATH POINTS", ","))
    columns = ",".join(f"{part}_{axis}" for part in ("lefteye", "righteye", "nose", "leftmouth", "rightmouth")
                       for axis in "xy")
    (tmp_path / "celeba.csv").write_text(f"image_id,{columns}\n" + lines(NAMES, points, "PATH POINTS", ","))
    for file, wanted in (("vggface2.csv", names), ("celeba.csv", NAMES)):
        found = read_landmarks(tmp_path / file)
        assert found.names == wanted
        np.testing.assert_array_equal(found.points, points.astype(np.float32))


def test_files_that_mix_forms_are_refused(points: np.ndarray, tmp_path: Path) -> None:
    plain, labelled, scored = (lines(NAMES, points, form) for form in ("PATH POINTS", "PATH LABEL POINTS",
                                                                       "PATH POINTS SCORE"))
    last = labelled.splitlines()[-1] + "\n"
    cases = {"".join(plain.splitlines(True)[:-1]) + last: "found 11 numbers behind the path, and 10",
             "".join(scored.splitlines(True)[:-1]) + last: f"line {FACES}: its landmarks stand elsewhere than in most"}
    for text, said in cases.items():
        (tmp_path / "points").write_text(text)
        with pytest.raises(UserError, match=said):
            read_landmarks(tmp_path / "points")


def test_a_file_of_which_nothing_tells_the_landmarks_is_refused(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    (tmp_path / "points").write_text("".join(
        f"{name} {' '.join(map(str, random.integers(0, 300, 11)))}\n" for name in NAMES))
    with pytest.raises(UserError, match="11 numbers behind each path, and it cannot be told which ten are landmarks"):
        read_landmarks(tmp_path / "points")


ORDERS = {
    "left and right exchanged": lambda p: p[:, [1, 0, 2, 4, 3]],
    "y before x": lambda p: p[:, :, ::-1],
    "all x before all y": lambda p: p.transpose(0, 2, 1),
    "all y before all x": lambda p: p[:, :, ::-1].transpose(0, 2, 1),
    "eyes last": lambda p: p[:, [3, 4, 2, 0, 1]],
    "y before x, left and right exchanged": lambda p: p[:, [1, 0, 2, 4, 3], ::-1],
    "all x before all y, left and right exchanged": lambda p: p[:, [1, 0, 2, 4, 3]].transpose(0, 2, 1),
    "nose first": lambda p: p[:, [2, 0, 1, 3, 4]],
    "nose last": lambda p: p[:, [0, 1, 3, 4, 2]],
    "nose first, eyes last": lambda p: p[:, [2, 3, 4, 0, 1]],
    "nose last, eyes after the mouth": lambda p: p[:, [3, 4, 0, 1, 2]],
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("form", ["PATH POINTS", "PATH LABEL POINTS"])
def test_an_order_that_is_no_face_is_refused_by_its_name(order: str, form: str, points: np.ndarray,
                                                         tmp_path: Path) -> None:
    changed = ORDERS[order](points).reshape(FACES, 5, 2)
    (tmp_path / "points").write_text(lines(NAMES, changed, form))
    with pytest.raises(UserError, match=f"{FACES} lines form upright faces as they stand, 100% with {order};"):
        read_landmarks(tmp_path / "points")
    assert likely_order(changed.reshape(FACES, 10))[0] == order
    assert upright(points).all() and likely_order(points.reshape(FACES, 10)) == ("", 1.0)


def test_the_fit_is_that_of_the_alignment() -> None:
    face = ARCFACE + np.random.default_rng(1).normal(0, 2, (5, 2))
    transform = similarity(face, ARCFACE)
    moved = face @ transform[:, :2].T + transform[:, 2]
    found = fit(face[None])
    spread = np.square(ARCFACE - ARCFACE.mean(axis=0)).sum()
    assert found.residuals[0] == pytest.approx(np.square(moved - ARCFACE).sum() / spread)  # float64
    assert found.degrees[0] == pytest.approx(np.degrees(np.arctan2(transform[1, 0], transform[0, 0])))
    assert not upright(np.stack([np.full((5, 2), 7.0), np.full((5, 2), np.nan), -face])).any()


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Six images of 250 x 250 in ``photographs/a``, of which landmarks name four."""
    (tmp_path / "photographs" / "a").mkdir(parents=True)
    image = cv2.resize(np.random.RandomState(0).randint(0, 256, (9, 9, 3)).astype(np.uint8), (250, 250))
    for n in range(6):
        cv2.imwrite(str(tmp_path / "photographs" / "a" / f"{n}.png"), image)
    return tmp_path / "photographs"


FIVE_POINTS = "107 107 147 111 124 143 103 157 139 161"
EXCHANGED = "147 111 107 107 124 143 139 161 103 157"


def test_one_face_that_is_none_is_named_and_what_has_no_landmarks_is_counted(
        photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "points").write_text("".join(f"a/{n}.png 5 {FIVE_POINTS}\n" for n in range(3))
                                     + f"a/3.png 5 {EXCHANGED}\n")
    assert face_align([str(photographs), str(tmp_path / "new"), "--landmarks", str(tmp_path / "points")]) == 0
    said = capsys.readouterr().out
    assert "a/3.png: its landmarks form no upright face" in said and "3 of 4 images aligned" in said
    assert "left out: 2 images that the file of landmarks does not name" in said
    assert json.loads((tmp_path / "new.json").read_text())["without_landmarks"] == 2
    assert (tmp_path / "new.txt").read_text().splitlines()[0].split("\t")[1:3] == ["107.000", "107.000"]


@pytest.mark.parametrize("factor, shift, words", [
    (3, 0, "its landmarks lie around (372, 407), expected inside the image, which is 250 wide and 250 high"),
    (1, 130, "its landmarks lie around (124, 266), expected inside the image"),
    (0.01, 100, "its landmarks lie within 0.54 pixels, expected at least 4")])
def test_landmarks_of_another_size_of_the_image_are_named(factor: float, shift: float, words: str, photographs: Path,
                                                          tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One of three; those of a face at the border, of which some are outside, are taken."""
    five = np.array(FIVE_POINTS.split(), float).reshape(5, 2)
    faces = [five, five + np.array([0, 110]), factor * five + [0, shift]]
    (tmp_path / "points").write_text("".join(f"a/{n}.png {' '.join(map(str, face.ravel()))}\n"
                                             for n, face in enumerate(faces)))
    assert face_align([str(photographs), str(tmp_path / "new"), "--landmarks", str(tmp_path / "points")]) == 0
    said = capsys.readouterr().out
    assert f"a/2.png: {words}" in said and "2 of 3 images aligned" in said


@pytest.mark.parametrize("label", ["", "17 "])
def test_landmarks_in_parts_of_the_sides_are_refused(label: str, points: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "points").write_text("".join(f"a/{n}.png {label}{' '.join(map(str, face.ravel() / 1000))}\n"
                                             for n, face in enumerate(points)))
    with pytest.raises(UserError, match=r"most of its faces are within 0\.\d+ pixels, expected landmarks in pixels, "
                                        r"not in parts of the image's sides$"):
        read_landmarks(tmp_path / "points")


def test_verification_sets_read_labels_and_refuse_other_orders(photographs: Path, tmp_path: Path,
                                                               capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pairs").write_text("a/0.png a/1.png 1\na/2.png a/3.png 0\n")
    packs = []
    for name, middle in (("plain", ""), ("labelled", " 17")):
        (tmp_path / name).write_text("".join(f"a/{n}.png{middle} {FIVE_POINTS}\n" for n in range(4)))
        flags = ["--data-dir", str(photographs), "--pairs", str(tmp_path / "pairs"), "--landmarks",
                 str(tmp_path / name)]
        assert build_eval_pack([*flags, "--output", str(tmp_path / f"{name}.bin")]) == 0
        packs.append((tmp_path / f"{name}.bin").read_bytes())
    assert packs[0] == packs[1]
    (tmp_path / "plain").write_text("".join(f"a/{n}.png {EXCHANGED}\n" for n in range(4)))
    capsys.readouterr()
    assert build_eval_pack([*flags[:-1], str(tmp_path / "plain"), "--output", str(tmp_path / "x.bin")]) == 2
    assert "with left and right exchanged; expected left eye" in capsys.readouterr().err
    assert not (tmp_path / "x.bin").exists()


def test_names_without_endings_find_their_images(photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "points").write_text("NAME_ID," + ",".join(f"P{i}{a}" for i in range(1, 6) for a in "XY") + "\n"
                                     + "".join(f'"a/{n}",{FIVE_POINTS.replace(" ", ",")}\n' for n in range(4)))
    assert face_align([str(photographs), str(tmp_path / "new"), "--landmarks", str(tmp_path / "points")]) == 0
    assert len(list((tmp_path / "new").rglob("*.jpg"))) == 4


def test_two_images_that_would_have_one_name_are_refused_before_any_work(
        photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photographs / "a" / "3.JPG").write_bytes(b"not even an image")
    (tmp_path / "points").write_text(f"a/3.png {FIVE_POINTS}\na/3.JPG {FIVE_POINTS}\n")
    assert face_align([str(photographs), str(tmp_path / "new"), "--landmarks", str(tmp_path / "points")]) == 2
    assert "a/3.png and a/3.JPG would both become a/3.jpg: rename one of them" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photographs", "points"]


def test_names_of_windows_and_of_this_folder_are_found(tmp_path: Path) -> None:
    (tmp_path / "images" / "a").mkdir(parents=True)
    random = np.random.default_rng(0)
    for i in range(3):
        image = random.integers(0, 255, (112, 112, 3)).astype(np.uint8)
        cv2.imwrite(str(tmp_path / "images" / "a" / f"{i}.png"), image)
    numbers = " ".join(map(str, ARCFACE.ravel()))
    names = ("a\\0.png", "./a/1.png", ".\\a\\2.png")
    (tmp_path / "points").write_text("".join(f"{name} {numbers}\n" for name in names))
    assert face_align([str(tmp_path / "images"), str(tmp_path / "new"), "--landmarks", str(tmp_path / "points"),
                       "--format", "png"]) == 0
    for i in range(3):
        np.testing.assert_array_equal(cv2.imread(str(tmp_path / "new" / "a" / f"{i}.png")),
                                      cv2.imread(str(tmp_path / "images" / "a" / f"{i}.png")))
