# SPDX-License-Identifier: Apache-2.0
"""Each cure that the doctor names, run on the very set that it names it for; and sets whose identities lie apart."""
from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Callable

import cv2
import numpy as np
import pytest

from common.doctor import main as doctor
from recognition.data.records.recordio import RecordWriter, pack_record
from recognition.data.sets.dataset import open_dataset
from recognition.data.verification_set import save_bin
from recognition.errors import UserError

CLASSES, IMAGES = 5, 20
LABELS = sorted(i % CLASSES for i in range(IMAGES))
APART = [i % CLASSES for i in range(IMAGES)]  # 0 1 2 3 4 0 1 ...


def pictures(count: int = IMAGES, seed: int = 0, side: int = 112) -> list[bytes]:
    random = np.random.RandomState(seed)
    return [cv2.imencode(".jpg", cv2.resize(random.randint(0, 256, (9, 9, 3)).astype(np.uint8), (side, side)))[1]
            .tobytes() for _ in range(count)]


def write(folder: Path, labels: Sequence[int], images: Sequence[bytes], ranges: Sequence[tuple[int, int]] | None = None,
          header: tuple[float, float] | None = None, prop: str = f"{CLASSES},112,112\n") -> Path:
    """A set with an identity record wherever the label changes, as the packer writes it."""
    folder.mkdir()
    starts = [0, *(np.flatnonzero(np.diff(labels)) + 1).tolist(), len(labels)]
    ranges = ranges or [(a + 1, b + 1) for a, b in zip(starts, starts[1:])]
    first = len(labels) + 1
    with RecordWriter(folder / "train.rec", folder / "train.idx") as writer:
        writer.write(0, pack_record(header or (first, first + len(ranges))))
        for key, (label, image) in enumerate(zip(labels, images), 1):
            writer.write(key, pack_record((float(label), 1.0), image, id=key))
        for key, pair in enumerate(ranges, first):
            writer.write(key, pack_record(pair, id=key))
    if prop:
        (folder / "property").write_text(prop)
    for seed, name in enumerate(("lfw", "cfp_fp", "agedb_30"), 50):
        save_bin(folder / f"{name}.bin", pictures(40, seed), [i % 2 == 0 for i in range(20)])
    return folder


def cut(images: list[bytes], *places: int) -> list[bytes]:
    return [image[: len(image) // 2] if i in places else image for i, image in enumerate(images)]


def damaged(folder: Path) -> None:
    """Overwrite the frame of a record in the middle."""
    offset = int((folder / "train.idx").read_text().splitlines()[8].split("\t")[1])
    with open(folder / "train.rec", "r+b") as file:
        file.seek(offset)
        file.write(b"\0" * 16)


def short_index(folder: Path) -> None:
    lines = (folder / "train.idx").read_text().splitlines(True)
    (folder / "train.idx").write_text("".join(lines[:-9]))


CASES: dict[str, tuple[Callable[[Path], Any], int]] = {  # makes the set; images that are left after the cure
    "an image is cut short": (lambda f: write(f, LABELS, cut(pictures(), 5)), IMAGES - 1),
    "many images are cut short": (lambda f: write(f, LABELS, cut(pictures(), 2, 5, 8, 9, 10, 11)), IMAGES - 6),
    "a record is damaged": (lambda f: damaged(write(f, LABELS, pictures())), IMAGES - 1),
    "an index that ends too early": (lambda f: short_index(write(f, LABELS, pictures())), IMAGES),
    "a header of another set": (lambda f: write(f, LABELS, pictures(), header=(900, 950)), IMAGES),
    "ranges of another set": (lambda f: write(f, LABELS, pictures(), [(1, 3), (4, 9), (9, 12), (12, 16), (16, 21)]),
                              IMAGES),
    "identities that lie apart": (lambda f: write(f, APART, pictures()), IMAGES),
    "repeated images": (lambda f: write(f, LABELS, [*pictures(18), *pictures(19)[-1:] * 2]), IMAGES - 1),
    "images of another size": (lambda f: write(f, LABELS, [*pictures(10), *pictures(10, 3, 96)]), IMAGES),
    "identities without images": (lambda f: write(f, [2 * label for label in LABELS], pictures(), prop="9,112,112\n",
                                                  ranges=[(1 + 4 * (i // 2) + 4 * (i % 2), 5 + 4 * (i // 2))
                                                          for i in range(9)]), IMAGES),
    "images of a verification set": (lambda f: write(f, LABELS, [*pictures(15), *pictures(5, 50)]), IMAGES - 5),
}


@pytest.mark.parametrize("case", CASES)
def test_a_cure_cures(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The commands of the advice are run as they stand there, DIR, IMAGES and NEW put in; then the doctor looks again.
    No label changes but where --renumber says so."""
    folder = tmp_path / "set"
    make, left = CASES[case]
    make(folder)
    doctor([str(folder)])
    findings = json.loads((tmp_path / "set-doctor" / "doctor.json").read_text())["findings"]
    assert findings, case
    finding = next(finding for finding in findings if "python -m common." in finding["advice"])
    commands = re.findall(r"python -m common\.(\w+)((?: (?:DIR|NEW|IMAGES|--[\w-]+|[\w.]+\.bin|\d+))*)",
                          finding["advice"])
    assert commands, finding
    paths = {"DIR": str(folder), "NEW": str(tmp_path / "new"), "IMAGES": str(tmp_path / "images")}
    for name, words in commands:
        status = import_module(f"common.{name}").main([paths.get(word, word) for word in shlex.split(words)])
        assert status in (0, 1), (finding, capsys.readouterr().err)
    cured = tmp_path / "new" if (tmp_path / "new").exists() else folder
    assert doctor([str(cured)]) in (0, 1)
    again = json.loads(cured.with_name(f"{cured.name}-doctor").joinpath("doctor.json").read_text())["findings"]
    assert finding["what"] not in [other["what"] for other in again]
    dataset = open_dataset(cured)
    assert len(dataset) == left
    counts = np.bincount(dataset.labels(), minlength=CLASSES)
    assert counts.max() <= IMAGES // CLASSES and len(counts) == CLASSES


def test_broken_images_of_a_folder_are_left_out_where_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from common.rec_builder import main as rec_builder

    for i, image in enumerate(cut(pictures(6), 3)):
        path = tmp_path / "people" / f"p{i % 2}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
    assert rec_builder([str(tmp_path / "people"), str(tmp_path / "new")]) == 2
    assert rec_builder([str(tmp_path / "people"), str(tmp_path / "new"), "--skip-broken"]) == 0
    assert "5 images of 2 identities" in capsys.readouterr().out


def test_a_set_whose_identities_lie_apart_trains_with_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As the first release of Glint360K: 20 identity records for 5 identities. The labels of the images count."""
    images = pictures()
    dataset = open_dataset(write(tmp_path / "set", APART, images))
    assert "20 identity records for 5 identities" in caplog.text
    assert dataset.labels().tolist() == APART and dataset.num_classes == CLASSES and len(dataset) == IMAGES
    assert [dataset.read(i)[:2] for i in range(IMAGES)] == list(zip(APART, images))


GROUPS = [(1 + 4 * i, 5 + 4 * i) for i in range(CLASSES)]


@pytest.mark.parametrize("ranges", [
    [(1, 3), (3, 5), *GROUPS[1:]], [*GROUPS, (21, 21)], [GROUPS[0], (5, 5), *GROUPS[1:]], [*GROUPS, *GROUPS[:2]]])
def test_more_identity_records_than_identities_train_with_a_line(ranges: list[tuple[int, int]], tmp_path: Path,
                                                                 caplog: pytest.LogCaptureFixture) -> None:
    """Two of one identity, empty ones, some twice: the property file and the labels agree, and count."""
    folder = write(tmp_path / "set", LABELS, pictures(), ranges)
    dataset = open_dataset(folder)
    assert (f"{len(ranges)} identity records for 5 identities: some are empty, or several of one identity; the labels "
            "of the images count") in caplog.text
    assert dataset.labels().tolist() == LABELS and dataset.num_classes == CLASSES
    status = doctor([str(folder)])
    (finding,) = [found for found in json.loads((tmp_path / "set-doctor" / "doctor.json").read_text())["findings"]
                  if "identit" in found["what"]]
    assert status == (2 if len(ranges) == 7 else 0) and "common.rec_builder" in finding["advice"]
    assert import_module("common.rec_builder").main([str(folder), str(tmp_path / "new")]) == 0
    assert open_dataset(tmp_path / "new").labels().tolist() == LABELS and doctor([str(tmp_path / "new")]) == 0


@pytest.mark.parametrize("command", [
    "rec_builder DIR NEW", "rec_builder DIR NEW --form sequential", "rec2shufrec DIR NEW",
    "rec2image --include DIR --output NEW", "merge_sets DIR --output NEW", "data_stats DIR --output NEW",
    "split_set DIR --output NEW --parts 2", "split_set DIR --output NEW --held-out 2 --folds 2",
    "split_set DIR --output NEW --held-out 0.2 --by images"])
def test_every_tool_works_on_a_set_whose_identities_lie_apart(command: str, tmp_path: Path) -> None:
    folder, images = write(tmp_path / "set", APART, pictures()), pictures()
    name, *words = command.split()
    paths = {"DIR": str(folder), "NEW": str(tmp_path / "new")}
    assert import_module(f"common.{name}").main([paths.get(word, word) for word in words]) == 0
    if (tmp_path / "new" / "train.rec").exists():
        dataset = open_dataset(tmp_path / "new")
        found = sorted((label, image) for label, image, _ in map(dataset.read, range(len(dataset))))
        assert found == sorted(zip(APART, images)) or "held-out" in command


@pytest.mark.parametrize("command", ["drop --data DIR --model MODEL,1 --output NEW --threshold 80",
                                     "merge_sets DIR --output NEW --model MODEL,1 --exclude lfw.bin --identity-limit 1 "
                                     "--image-limit 0.99"])
def test_a_network_chooses_the_same_images_whether_identities_lie_apart_or_not(
        command: str, tmp_path: Path, colour_model: Callable[..., str]) -> None:
    """Against the same images, identity after identity, as the doctor's cure orders them."""
    random = np.random.RandomState(3)
    prefix = colour_model(fc7_weight=random.standard_normal((3 * CLASSES, 3)).astype(np.float32))
    kept = []
    order = sorted(range(IMAGES), key=lambda i: APART[i])
    images = pictures()
    for name, labels, those in (("apart", APART, images), ("together", LABELS, [images[i] for i in order])):
        paths = {"DIR": str(write(tmp_path / name, labels, those)), "NEW": str(tmp_path / f"{name}-new")}
        tool, *words = command.replace("MODEL", prefix).split()
        assert import_module(f"common.{tool}").main([paths.get(word, word) for word in words]) == 0
        dataset = open_dataset(tmp_path / f"{name}-new")
        kept.append([dataset.read(i)[:2] for i in range(len(dataset))])
    assert kept[0] == kept[1] and 0 < len(kept[0]) < IMAGES


def test_a_missing_property_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "set", APART, pictures(), prop="")
    with pytest.raises(UserError, match=r"property: not found, expected a file of one line, 5,112,112$"):
        open_dataset(folder)
    assert doctor([str(folder)]) == 2
    assert "write one line into it: 5,112,112" in capsys.readouterr().out
    (folder / "property").write_text("5,112,112\n")
    assert doctor([str(folder)]) == 0


@pytest.mark.parametrize("line", ["5", "5 112 112", "5,3,112,112", ""])
def test_a_property_of_another_form_is_told(line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "set", APART, pictures(), prop=f"{line}\n")
    with pytest.raises(UserError, match=rf"property: found '{line}', expected .*; the records fit 5,112,112$"):
        open_dataset(folder)
    assert doctor([str(folder)]) == 2
    assert "write one line into it: 5,112,112" in capsys.readouterr().out
