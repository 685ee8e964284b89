# SPDX-License-Identifier: Apache-2.0
"""What commands leave out of folders is counted and named by its kind."""
from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from common.pack_folder import main as pack_folder
from common.rec_builder import main as rec_builder
from common.sets.image_sources import find_images, read_identities
from recognition.data.images.folder_walk import EXTENSIONS
from recognition.data.sets.dataset import open_dataset


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.RandomState(seed).randint(0, 256, (112, 112, 3)).astype(np.uint8)
    path.write_bytes(cv2.imencode(".jpg", image)[1].tobytes())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    names = ("ann/0.jpg", "ann/1.jfif", "bob/0.JPE", "bob/deep/1.jpeg", "cy/0.jfif", "dee/0.gif", "loose.jpg",
             "ann/._0.jpg", "bob/.thumbs/2.jpg", ".hidden/1.jpg")
    for seed, name in enumerate(names):
        picture(tmp_path / "people" / name, seed)
    (tmp_path / "people" / "ann" / "notes.txt").write_text("x")
    (tmp_path / "people" / "README").write_text("x")
    (tmp_path / "people" / "cy" / "more").symlink_to(tmp_path / "people" / "ann")
    return tmp_path / "people"


EXPECTED = ("1 hidden folders, ", "1 images beside the folders of people", "1 files that end in .gif",
            "1 files that end in .txt", "1 links to folders", "1 hidden files", "1 people without images",
            "1 files without an ending")


@pytest.mark.parametrize("command", [pack_folder, rec_builder])
def test_images_of_all_endings_are_packed_and_the_rest_is_named(
        command, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert command([str(folder), str(tmp_path / "new")]) == 0
    assert len(open_dataset(tmp_path / "new")) == 5
    assert (tmp_path / "new" / "identities.txt").read_text().split() == ["ann", "bob", "cy"]
    (line,) = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert line.startswith(f"{folder}: left out: 2 hidden folders")
    for kind in EXPECTED[1:]:
        assert kind in line


def test_a_folder_of_images_is_counted_too(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert len(find_images(folder)) == 6
    assert "1 files that end in .gif" in caplog.text and "1 links to folders" in caplog.text
    caplog.clear()
    assert len(find_images(folder, quiet=True)) == 6 and not caplog.text
    assert len(find_images(folder / "bob" / "deep")) == 1 and not caplog.text


def test_every_ending_is_of_a_format_that_is_decoded(tmp_path: Path) -> None:
    kinds = {".bmp": "bmp dib", ".jpg": "jfif jpe jpeg jpg pjp pjpeg", ".png": "png", ".ppm": "pbm pgm pnm ppm",
             ".tif": "tif tiff", ".webp": "webp"}
    assert {f".{ending}" for endings in kinds.values() for ending in endings.split()} == EXTENSIONS
    for kind, endings in kinds.items():
        for ending in endings.split():
            path = tmp_path / "people" / kind[1:] / f"{ending}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = np.random.RandomState(len(ending)).randint(0, 256, (112, 112, 3)).astype(np.uint8)
            path.write_bytes(cv2.imencode(kind, image)[1].tobytes())
    assert sum(len(person.images) for person in read_identities(tmp_path / "people")) == len(EXTENSIONS)
    assert rec_builder([str(tmp_path / "people"), str(tmp_path / "new")]) == 0
