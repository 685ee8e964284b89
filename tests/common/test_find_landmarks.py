# SPDX-License-Identifier: Apache-2.0
"""Landmarks of a training set: found in real faces by YuNet, carried from photographs on; masks that follow them."""
from __future__ import annotations

import shutil
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest

from common import face_align, find_landmarks, pack_folder
from common.faces.landmark_files import read_landmarks, write_landmarks
from common.sets.training_set import write_training_set
from recognition.data import degrade
from recognition.data.augment import Augmentation
from recognition.data.loader import BatchLoader
from recognition.data.sets.dataset import open_dataset
from recognition.data.sets.image_set import ImageSet
from recognition.data.sets.landmarks import landmarks_of
from recognition.data.sets.open_set import Opening, open_set, open_sets
from recognition.errors import UserError


@pytest.fixture(scope="session")
def detector(shared: Path) -> Path:
    """YuNet's own model file."""
    return next((shared / "data" / "yunet").glob("*.onnx"))


@pytest.fixture
def records(shared: Path, tmp_path: Path) -> Path:
    """A set of ten aligned photographs of five people, and a picture without a face."""
    images = [path.read_bytes() for path in sorted((shared / "data" / "wild").glob("*.jpg"))]
    folder = tmp_path / "records"
    folder.mkdir()
    grey = cv2.imencode(".png", np.full((112, 112, 3), 120, np.uint8))[1].tobytes()
    write_training_set(folder, [2] * 5 + [1], [*images, grey])
    return folder


def masked(dataset: ImageSet, landmarks: np.ndarray | None, threads: int = 1, batch: int = 5, seed: int = 0,
           mirror: bool = False) -> dict[int, np.ndarray]:
    """The images of an epoch by key, each with a mask."""
    augmentation = Augmentation(mirror=mirror, mask=1, landmarks=landmarks)
    with BatchLoader(dataset, dataset.order(seed), augmentation, batch, threads=threads) as loader:
        return {int(key): image for found in islice(loader, len(dataset) // batch)
                for key, image in zip(found.records, found.images)}


def hidden(image: np.ndarray, point: np.ndarray, plain: np.ndarray) -> bool:
    """Whether the picture (3, H, W) has changed at a point."""
    x, y = np.rint(point).astype(int)
    return bool((image[:, y, x] != plain[:, y, x]).any())


def test_masks_follow_the_landmarks_that_yunet_finds(records: Path, detector: Path, capsys) -> None:
    """Nose and mouth of each real face are hidden and the eyes seen; other masks than those of the template."""
    assert find_landmarks.main([str(records), "--detector", str(detector)]) == 0
    assert f"{records}/landmarks.npz: landmarks of 10 of 11 images\n" in capsys.readouterr().out
    dataset = open_dataset(records)
    points, about = landmarks_of(dataset)
    assert points is not None and points.shape == (12, 5, 2) and "the landmarks of 10 of 11 images" in about
    plain = {key: image.transpose(2, 0, 1) for _, image, key in map(dataset.load, range(11))}
    by_file, by_template = masked(dataset, points), masked(dataset, None)
    for key, image in by_file.items():
        if key == 11:  # without a face
            assert np.array_equal(image, by_template[key])
            continue
        assert [hidden(image, point, plain[key]) for point in points[key]] == [False, False, True, True, True]
        assert not np.array_equal(image, by_template[key])
    for threads, batch in ((3, 5), (2, 2)):  # a function of the seed and of the place
        again = masked(dataset, points, threads, batch)
        assert all(np.array_equal(again[key], image) for key, image in by_file.items() if key in again)
    assert any(not np.array_equal(image, by_file[key]) for key, image in masked(dataset, points, seed=1).items()
               if key in by_file)


def test_masks_of_mirrored_images(records: Path, detector: Path) -> None:
    """They lie on the mirrored landmarks, so mouth and nose are hidden there, too."""
    assert find_landmarks.main([str(records), "--detector", str(detector)]) == 0
    dataset = open_dataset(records)
    points, _ = landmarks_of(dataset)
    plain = {key: image.transpose(2, 0, 1) for _, image, key in map(dataset.load, range(11))}
    flipped = 0
    for key, image in masked(dataset, points, mirror=True).items():
        if key != 11 and np.array_equal(image[:, :30], plain[key][:, :30, ::-1]):  # above all masks
            flipped += 1
            seen = [hidden(image, point, plain[key][:, :, ::-1]) for point in degrade.mirrored(points[key], 112)]
            assert seen == [False, False, True, True, True]
    assert 0 < flipped < 10


def test_landmarks_of_photographs_come_along(records: Path, detector: Path, shared: Path, tmp_path: Path,
                                             capsys) -> None:
    """Landmarks go from a photograph to the aligned picture, from its folder to records; each says the same. Detecting
    again in the aligned picture gives the same to 2 pixels on the average: the detector's own error."""
    photographs = tmp_path / "photographs"
    for number, path in enumerate(sorted((shared / "data" / "wild").glob("*.jpg"))):
        (photographs / f"p{number % 3}").mkdir(parents=True, exist_ok=True)
        large = cv2.resize(cv2.imread(str(path)), (300, 300), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(photographs / f"p{number % 3}" / f"{number}.png"), cv2.copyMakeBorder(
            large, 40, 90, 10, 60, cv2.BORDER_CONSTANT))
    aligned = tmp_path / "aligned"
    assert face_align.main([str(photographs), str(aligned), "--detector", str(detector)]) == 0
    carried = read_landmarks(tmp_path / "aligned.landmarks.txt").by_name()
    assert len(carried) == 10 and all((aligned / name).is_file() for name in carried)

    assert find_landmarks.main([str(aligned), "--landmarks", str(tmp_path / "aligned.landmarks.txt")]) == 0
    folder = open_set(str(aligned), Opening(writes=False))
    in_place, _ = landmarks_of(folder)
    assert pack_folder.main([str(aligned), str(tmp_path / "packed")]) == 0
    assert "10 images of 3 people to train on; landmarks of 10 of them\n" in capsys.readouterr().out
    packed, _ = landmarks_of(open_dataset(tmp_path / "packed"))
    assert in_place is not None and packed is not None and np.array_equal(in_place, packed[1:])
    for key, five in enumerate(in_place):
        name = str(folder.listing.path(key).relative_to(aligned))  # type: ignore[attr-defined]
        assert np.abs(five - carried[name]).max() < 0.05  # float16
    found = find_landmarks.find_landmarks(folder, find_landmarks.by_detector(
        folder, find_landmarks.FaceDetector(detector), "main"))
    assert np.nanmean(np.abs(found - in_place)) < 2

    several = open_sets([str(records), str(aligned)], (), Opening(writes=False))
    both, about = landmarks_of(several)  # of the first there are none
    assert both is not None and len(both) == 21 and np.isnan(both[:11]).all() and np.array_equal(both[11:], in_place)
    assert about.splitlines()[0] == (f"{records}: no landmarks beside it, masks lie as on a face that fits the "
                                     "template")


def test_what_is_wrong_with_them_is_one_line(records: Path, detector: Path, tmp_path: Path, capsys) -> None:
    assert find_landmarks.main([str(records), "--detector", str(detector)]) == 0
    assert find_landmarks.main([str(records), "--detector", str(detector)]) == 2
    assert "landmarks.npz: exists already" in capsys.readouterr().err
    shutil.copytree(records, tmp_path / "other")
    write_training_set(tmp_path / "other", [1] * 3, [b"x"] * 3)
    with pytest.raises(UserError, match="found landmarks of another state of the set"):
        landmarks_of(open_dataset(tmp_path / "other"))
    (tmp_path / "other" / "landmarks.npz").write_bytes(b"PK no more")
    with pytest.raises(UserError, match=r"not a zip archive that can be read.*expected landmarks as"):
        landmarks_of(open_dataset(tmp_path / "other"))
    write_landmarks(tmp_path / "points.txt", ["a/b.jpg"], [degrade.ARCFACE])
    for words, line in (([str(records)], "expected one of them, a file of landmarks or a YuNet model"),
                        ([str(records), "--landmarks", str(tmp_path / "points.txt"), "--overwrite"],
                         "holds records, which have no names, expected --detector"),
                        (["synthetic:5", "--detector", str(detector)], "found no images of people")):
        assert find_landmarks.main(words) == 2
        said = capsys.readouterr().err
        assert line in said and said.count("\n") == 1
