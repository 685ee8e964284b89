# SPDX-License-Identifier: Apache-2.0
"""Aligning folders: by landmarks in files of every form, and by YuNet in OpenCV with a network of the test's own."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Callable

import cv2
import numpy as np
import pytest

from common.face_align import align, estimate_norm, main, norm_crop
from common.faces.alignment import ARCFACE
from common.faces.face_detector import FaceDetector, Found, choose_face
from common.faces.landmark_files import read_landmarks, write_landmarks
from recognition.errors import UserError


def save(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))


def load(path: Path) -> np.ndarray:
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)


def test_detected_faces_come_out_as_they_went_in(
        yunet: Path, marked: Callable[..., np.ndarray], faces: np.ndarray, tmp_path: Path,
        capsys: pytest.CaptureFixture[str]) -> None:
    """The network's landmarks are the template's, moved by whole pixels: rounding leaves 1 of 255 at most."""
    photographs = tmp_path / "photographs"
    save(photographs / "a" / "one.png", marked([faces[0]], [(40, 48)], (300, 400)))
    save(photographs / "a" / "aside.png", marked(faces[1:3], [(0, 8), (240, 160)], (400, 600)))  # the central one
    save(photographs / "b" / "none.png", marked([], [], (300, 400)))
    (photographs / "b" / "broken.jpg").write_bytes(b"\xff\xd8 no more")
    assert main([str(photographs), str(tmp_path / "new"), "--detector", str(yunet), "--format", "png"]) == 0
    found = sorted(str(path.relative_to(tmp_path / "new")) for path in (tmp_path / "new").rglob("*.png"))
    assert found == ["a/aside.png", "a/one.png"]
    for name, face in (("one", faces[0]), ("aside", faces[2])):
        assert np.abs(load(tmp_path / "new" / "a" / f"{name}.png").astype(int) - face).max() <= 1
    report = json.loads((tmp_path / "new.json").read_text())
    assert (report["images"], report["aligned"]) == (4, 2)
    assert [line.split(": ")[1] for line in report["left_out"]] == [
        "its 10 bytes are not an image that OpenCV can decode", "no face found"]
    said = capsys.readouterr().out
    assert "2 of 4 images aligned" in said and "none.png: no face found" in said
    sheet = cv2.imread(str(tmp_path / "new.png"))
    assert sheet is not None and sheet.shape[1] > 8 * 112
    # What was found can be used again without a detector, and gives the same.
    assert main([str(photographs), str(tmp_path / "again"), "--landmarks", str(tmp_path / "new.txt"), "--format",
                 "png"]) == 0
    for name in ("one", "aside"):
        again, first = (load(tmp_path / folder / "a" / f"{name}.png").astype(int) for folder in ("again", "new"))
        assert np.abs(again - first).max() <= 1  # landmarks are written to a thousandth of a pixel


def test_large_images_are_looked_at_in_a_smaller_size(
        yunet: Path, marked: Callable[..., np.ndarray], faces: np.ndarray) -> None:
    picture = marked([faces[3]], [(160, 96)], (480, 640))
    large = cv2.resize(picture, (1280, 960), interpolation=cv2.INTER_NEAREST)
    found, half = FaceDetector(yunet, longest_side=640)(large), FaceDetector(yunet)(picture)
    assert len(found.scores) == len(half.scores) == 1
    np.testing.assert_allclose(found.landmarks, 2 * half.landmarks, rtol=1e-6)
    np.testing.assert_allclose(found.boxes, 2 * half.boxes, rtol=1e-6)
    np.testing.assert_allclose(half.landmarks[0], ARCFACE + np.array([160, 96]), atol=1e-3)
    raw = cv2.FaceDetectorYN.create(str(yunet), "", (640, 480), 0.6).detect(picture[..., ::-1].copy())[1]
    np.testing.assert_array_equal(half.landmarks.ravel(), raw[0, 4:14])


def test_which_face() -> None:
    boxes = np.array([[0, 0, 80, 80], [90, 90, 40, 40], [150, 10, 30, 30]], np.float32)
    found = Found(boxes, np.zeros((3, 5, 2), np.float32), np.array([0.7, 0.8, 0.9], np.float32))
    assert [choose_face(found, 200, 220, rule) for rule in ("main", "largest", "surest")] == [1, 0, 2]
    assert choose_face(Found(boxes[:0], found.landmarks[:0], found.scores[:0]), 200, 220) is None


@pytest.mark.parametrize("content, line", [
    (None, "not found, expected a YuNet model"),
    (b"no network", "Failed to parse ONNX model"),
    (b"", "expected a YuNet model"),
    (b"another network", "expected a YuNet model"),
], ids=["absent", "broken", "empty", "another"])
def test_a_model_that_is_none(content: bytes | None, line: str, yunet: Path, tmp_path: Path,
                              capfd: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "model.onnx"
    if content == b"another network":
        content = yunet.read_bytes().replace(b"kps_32", b"kps_99")
    if content is not None:
        model.write_bytes(content)
    (tmp_path / "in").mkdir()
    assert main([str(tmp_path / "in"), str(tmp_path / "out"), "--detector", str(model)]) == 2
    said = capfd.readouterr().err.splitlines()
    assert said[-1].startswith(f"error: {model}: ") and line in said[-1]
    assert not [text for text in said if "Traceback" in text] and not (tmp_path / "out").exists()


def test_the_forms_of_landmark_files(tmp_path: Path) -> None:
    points = np.random.default_rng(0).uniform(0, 300, (3, 5, 2)).round(2)
    names = ["a/1.jpg", "b/2.jpg", "b/3.jpg"]
    rows = [" ".join(map(str, five.ravel())) for five in points]
    forms = {
        "spaces": [f"{name} {row}" for name, row in zip(names, rows)],
        "tabs": [f"{name}\t" + row.replace(" ", "\t") for name, row in zip(names, rows)],
        "ijb": [f"{name} {row} 0.98" for name, row in zip(names, rows)],
        "commas": [f"{name}," + row.replace(" ", ",") for name, row in zip(names, rows)],
        "celeba": ["3", "lefteye_x lefteye_y righteye_x righteye_y nose_x nose_y leftmouth_x leftmouth_y rightmouth_x "
                   "rightmouth_y", *(f"{name}  {row}" for name, row in zip(names, rows))],
        "lst": ["\t".join(["0", name, "7", "10", "20", "110", "120", *map(str, five[:, 0]), *map(str, five[:, 1])])
                for name, five in zip(names, points)],
    }
    for form, lines in forms.items():
        (tmp_path / form).write_text("\n".join(lines) + "\n")
        found = read_landmarks(tmp_path / form)
        assert found.names == names, form
        np.testing.assert_array_equal(found.points, points.astype(np.float32), form)
    write_landmarks(tmp_path / "written", ["my face 3.jpg"], points[:1])
    again = read_landmarks(tmp_path / "written")
    assert again.names == ["my face 3.jpg"]
    np.testing.assert_allclose(again.points, points[:1], atol=5e-4)


@pytest.mark.parametrize("line", ["a.jpg 1 2 3", "a.jpg 1 2 3 4 5 6 7 8 9 nan", "a.jpg 1 2 3 4 5 6 7 8 9 ten",
                                  "0\ta.jpg\t1"])
def test_lines_that_are_no_landmarks(line: str, tmp_path: Path) -> None:
    (tmp_path / "points").write_text(f"x.jpg 1 2 3 4 5 6 7 8 9 10\n{line}\n")
    with pytest.raises(UserError, match="points: line 2: found"):
        read_landmarks(tmp_path / "points")
    (tmp_path / "points").write_text("x.jpg 1 2 3 4 5 6 7 8 9 10\n" * 2)
    with pytest.raises(UserError, match=r"line 2: x\.jpg is in line 1 already"):
        read_landmarks(tmp_path / "points")


def test_bad_input_leaves_nothing(tmp_path: Path, faces: np.ndarray, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "in" / "face.png", faces[0])
    save(tmp_path / "in" / "face.jpg", faces[0])
    row = " ".join(map(str, ARCFACE.ravel()))
    cases = {
        f"face.png {row}\nface.jpg {row}\n": "face.png and face.jpg would both become face.jpg",
        f"../face.png {row}\n": "'../face.png', expected a path inside",
        "face.png " + " ".join(["5"] * 10) + "\n": "points: most of its faces are within 0 pixels",
        f"other.png {row}\n": "none of its 1 images could be aligned",
    }
    for text, line in cases.items():
        (tmp_path / "points").write_text(text)
        assert main([str(tmp_path / "in"), str(tmp_path / "out"), "--landmarks", str(tmp_path / "points")]) == 2
        assert line in capsys.readouterr().err
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "points"]
    assert main([str(tmp_path / "in"), str(tmp_path / "out")]) == 2
    assert "--landmarks or --detector: found neither" in capsys.readouterr().err


def test_names_that_people_know(faces: np.ndarray) -> None:
    points = ARCFACE * 0.9 + 4
    np.testing.assert_array_equal(norm_crop(faces[0], points, image_size=224), align(faces[0], points, 224))
    transform, number = estimate_norm(points, 112, mode="five")
    assert transform.shape == (2, 3) and number == 2
