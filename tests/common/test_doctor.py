# SPDX-License-Identifier: Apache-2.0
"""The doctor on sets that MXNet wrote, healthy ones and ones with one thing broken in each."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable

import cv2
import numpy as np
import pytest

from common.doctor import examine, main
from common.sets.image_files import jpeg_damage
from common.sets.record_checks import framing, repeats
from recognition.data.records.record_index import read_index
from recognition.data.records.recordio import RecordReader, pack_record
from recognition.data.verification_set import save_bin
from recognition.engines.mxnet.imports import mx

COUNTS = (3, 2, 4)
LABELS = np.repeat(np.arange(3), COUNTS).tolist()


@pytest.fixture
def images(towards: Callable[..., bytes]) -> list[bytes]:
    random = np.random.RandomState(5)
    return [towards(random.standard_normal(3)) for _ in LABELS]


def write(folder: Path, images: list[bytes], labels: list[float] | None = None, header: Any = (10, 13),
          ranges: Any = ((1, 4), (4, 6), (6, 10)), prop: str = "3,112,112\n") -> Path:
    """A set with identity records, by MXNet's writer; and 20 pairs of other images, lfw.bin."""
    folder.mkdir()
    writer = mx.recordio.MXIndexedRecordIO(str(folder / "train.idx"), str(folder / "train.rec"), "w")
    writer.write_idx(0, pack_record(header, b"", 0))
    for key, (label, image) in enumerate(zip(labels or LABELS, images), 1):
        writer.write_idx(key, pack_record(label, image, key))
    for key, pair in enumerate(ranges, 10):
        writer.write_idx(key, pack_record(pair, b"", key))
    writer.close()
    (folder / "property").write_text(prop)
    for name in ("lfw", "cfp_fp", "agedb_30"):
        others = [cv2.imencode(".jpg", np.full((112, 112, 3), (i, 5, 250 - i), np.uint8))[1].tobytes()
                  for i in range(40)]
        save_bin(folder / f"{name}.bin", others, [True, False] * 10)
    return folder


def said(folder: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, str]:
    status = main([str(folder), "--output", str(folder.with_name("out")), *flags])
    report = json.loads((folder.with_name("out") / "doctor.json").read_text())
    assert report["status"] == status
    return status, capsys.readouterr().out


def test_a_healthy_set(images: list[bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "set", images)
    status, out = said(folder, capsys)
    assert status == 0 and "healthy" in out and "error" not in out and "warning" not in out
    report = json.loads((tmp_path / "out" / "doctor.json").read_text())
    assert (report["form"], report["records"], report["images"], report["identities"]) == ("identities", 13, 9, 3)
    assert report["bytes"] == (folder / "train.rec").stat().st_size
    assert report["findings"] == [] and report["verification"]["lfw"] == {"pairs": 20, "pairs_of_one_identity": 10,
                                                                          "images": 40}
    assert said(folder, capsys, "--no-decode")[0] == 0


def broken(folder: Path, images: list[bytes], case: str) -> None:
    """Make ``folder`` with what ``case`` names broken in it."""
    other = list(images)
    if case == "cut":
        other[4] = other[4][:-40]
    elif case == "no image":
        other[2] = b"\xff\xd8 no more"
    elif case == "empty":
        other[2] = b""
    elif case == "damaged":
        at = other[4].index(b"\xff\xc4")  # a table of codes, and before it what belongs to nothing
        other[4] = other[4][:at] + b"junk" + other[4][at:]
    elif case == "small":
        other[0] = cv2.imencode(".jpg", np.full((56, 56, 3), 9, np.uint8))[1].tobytes()
    elif case == "shape":
        other[0] = cv2.imencode(".jpg", np.full((112, 96, 3), 9, np.uint8))[1].tobytes()
    elif case == "two labels":
        other[5] = other[0]
    elif case == "leak":
        other[5] = cv2.imencode(".jpg", np.full((112, 112, 3), (7, 5, 243), np.uint8))[1].tobytes()
    changes: dict[str, dict[str, Any]] = {
        "label": {"labels": [*LABELS[:-1], 7]}, "half": {"labels": [0.5, *LABELS[1:]]},
        "nan": {"labels": [float("nan"), *LABELS[1:]]},
        "mixed": {"labels": [0, 2, *LABELS[2:]]}, "header": {"header": (20, 23)}, "end": {"header": (10, 14)},
        "ranges": {"ranges": ((1, 4), (5, 6), (6, 10))}, "empty class": {"prop": "4,112,112\n", "header": (10, 14),
                                                                        "ranges": ((1, 4), (4, 6), (6, 10), (10, 10))},
        "property": {"prop": "three\n"}, "digits": {"prop": "3,112,112\nshuffled\n" + "9" * 5000}}
    write(folder, other, **changes.get(case, {}))
    lines = (folder / "train.idx").read_text().splitlines()
    index = {"second key": [*lines, lines[-1]], "moved": [*lines[:5], "5\t4", *lines[6:]], "short": lines[:-1],
             "no number": ["zero\t0", *lines[1:]]}
    if case in index:
        (folder / "train.idx").write_text("\n".join(index[case]) + "\n")
    elif case == "no index":
        (folder / "train.idx").unlink()
    elif case == "no records":
        (folder / "train.rec").unlink()
    elif case == "tail":
        with open(folder / "train.rec", "rb+") as file:
            file.truncate(file.seek(0, 2) - 10)
    elif case == "hole":
        with open(folder / "train.rec", "rb+") as file:
            file.seek(read_index(folder / "train.idx")[1][3])
            file.write(b"\0" * 8)
    elif case == "one kind":
        save_bin(folder / "lfw.bin", other[:1] * 40, [True] * 20)
    elif case == "no pickle":
        (folder / "lfw.bin").write_bytes(b"\x80\x03cos\nsystem\n.")


@pytest.mark.parametrize("case, status, line", [
    ("cut", 2, "record 5: the JPEG is cut short"), ("no image", 2, "record 3: its 10 bytes are not an image"),
    ("damaged", 1, "1 JPEGs are damaged so"), ("empty", 2, "record 3: it has no image"),
    ("small", 1, "1 images are not 112 x 112"),
    ("shape", 2, "record 1: the image is 112 x 96"),
    ("label", 2, "record 9: label 7: 1 of 9 labels are none of 0 to 2"),
    ("half", 2, "label 0.5"), ("nan", 2, "record 1: label nan: 1 of 9 labels are none of 0 to 2"),
    ("mixed", 2, "record 2: has label 2, others of its identity 0"),
    ("header", 2, "the index has 12 of the images 1 .. 19 that the header in record 0 announces"),
    ("end", 1, "records end at 14, the keys at 13"),
    ("ranges", 2, "that of identity 1 begins at 5"), ("empty class", 1, "1 of 4 identities have no image, such as 3"),
    ("property", 2, "property: found 'three'"), ("digits", 1, "property: says 99999999999999999999 images, there are"),
    ("second key", 2, "key 12 stands there a second time"),
    ("moved", 2, "1 of 13 lines do not lead to a record, such as key 5: offset 4"),
    ("short", 2, "1 of the 13 records in train.rec are not in it"), ("no number", 2, "train.idx: line 1: found 'zero"),
    ("no index", 0, "is not there; records are found by a scan"), ("no records", 2, "train.rec: is not there"),
    ("tail", 2, "are no whole record"), ("hole", 2, "expected the record magic"),
    ("two labels", 1, "2 records hold images that are there under more than one label"),
    ("leak", 1, "1 of its 40 images are in train.rec"), ("one kind", 1, "all 20 pairs are of one identity"),
    ("no pickle", 2, "lfw.bin: ")])
def test_each_thing_that_can_be_wrong(case: str, status: int, line: str, images: list[bytes], tmp_path: Path,
                                      capsys: pytest.CaptureFixture[str]) -> None:
    broken(tmp_path / "set", images, case)
    found, out = said(tmp_path / "set", capsys)
    assert line in out and "to do: " in out
    assert found == status, out
    assert (tmp_path / "out" / "doubtful.png").exists() == (case in (
        "cut", "no image", "empty", "shape", "two labels", "damaged"))


def test_an_index_made_anew(images: list[bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "set", images)
    before = (folder / "train.idx").read_text()
    (tmp_path / "elsewhere.idx").write_text("nothing")
    for number in (1, 2):
        (folder / "train.idx").unlink()
        (folder / "train.idx").symlink_to(tmp_path / "elsewhere.idx")
        status, out = said(folder, capsys, "--write-index")
        assert status == 0 and "13 records" in out and f"train.idx.{number}: the index before" in out
        assert (folder / "train.idx").read_text() == before  # MXNet's own
        assert (folder / f"train.idx.{number}").read_text() == (tmp_path / "elsewhere.idx").read_text() == "nothing"
    assert "the index before" not in said(folder, capsys, "--write-index")[1]


def test_an_index_of_records_of_which_one_has_no_header(images: list[bytes], tmp_path: Path,
                                                        capsys: pytest.CaptureFixture[str]) -> None:
    """It gets the key that is its number: the doctor names it by that, and all others keep theirs."""
    folder = write(tmp_path / "set", images)
    record = mx.recordio.MXIndexedRecordIO(str(folder / "train.idx"), str(folder / "train.rec"), "r")
    contents = {key: record.read_idx(key) for key in record.keys}
    record.close()
    contents[5] = b"abc"
    record = mx.recordio.MXIndexedRecordIO(str(folder / "train.idx"), str(folder / "train.rec"), "w")
    for key, content in contents.items():
        record.write_idx(key, content)
    record.close()
    before = (folder / "train.idx").read_text()
    (folder / "train.idx").unlink()
    status, out = said(folder, capsys, "--write-index")
    assert (folder / "train.idx").read_text() == before
    assert status == 2 and "13 records" in out and "error: train.rec, record 5: " in out


@pytest.mark.parametrize("label, advice", [
    (1e30, "find out where these labels come from"), (7.0, "if the labels are right, write 8,112,112 into property"),
    (-1.0, "find out where"), (float(1 << 24), "find out where")])
def test_no_advice_is_given_that_property_could_not_hold(label: float, advice: str, images: list[bytes],
                                                         tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "set", images, labels=[label, *LABELS[1:]])
    status, out = said(folder, capsys)
    assert status == 2 and f"record 1: label {label:g}: 1 of 9 labels" in out and f"to do: {advice}" in out


def test_damage_does_not_hide_what_follows(images: list[bytes], tmp_path: Path) -> None:
    folder = write(tmp_path / "set", images)
    offsets = read_index(folder / "train.idx")[1]
    with open(folder / "train.rec", "rb+") as file:
        for i in (2, 7):
            file.seek(offsets[i] + 4)
            file.write(b"\xff\xff\xff\xff")
    found = framing(RecordReader(folder / "train.rec"))
    assert found.offsets.tolist() == [offset for i, offset in enumerate(offsets.tolist()) if i not in (2, 7)]
    assert [part[:2] for part in found.damaged] == [(offsets[2], offsets[3]), (offsets[7], offsets[8])]
    assert examine(folder).facts["images_that_can_be_used"] == 7


def test_sound_jpegs_of_every_kind(noise: np.ndarray) -> None:
    """Baseline, progressive, with restarts, of every quality, as OpenCV writes them; and one of each cut or filled."""
    for flags in ([], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1], [cv2.IMWRITE_JPEG_RST_INTERVAL, 3],
                  *([cv2.IMWRITE_JPEG_QUALITY, quality] for quality in (1, 50, 100))):
        encoded = cv2.imencode(".jpg", noise[0], flags)[1].tobytes()
        assert jpeg_damage(encoded) == "" and jpeg_damage(encoded + b"after the end") == ""
        assert jpeg_damage(encoded[:-2]) and jpeg_damage(encoded[:2] + b"\0" + encoded[2:])
    assert jpeg_damage(cv2.imencode(".png", noise[0])[1].tobytes()) == jpeg_damage(b"") == ""


def test_repeats_by_brute_force() -> None:
    random = np.random.default_rng(0)
    digests = random.integers(0, 40, 200).astype(np.uint64)
    used = np.flatnonzero(random.random(200) < 0.7)
    want = [[i for i in used.tolist() if digests[i] == value] for value in range(40)]
    got = {tuple(group.tolist()) for group in repeats(digests, used)}
    assert got == {tuple(group) for group in want if len(group) > 1}
    assert list(repeats(digests, used[:0])) == []


def test_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none")]) == 2
    assert "none: not found" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
