# SPDX-License-Identifier: Apache-2.0
"""Splitting training sets, and their statistics, against counts by hand."""
from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Callable

import cv2
import numpy as np
import pytest

from common import data_stats, split_set
from common.split_set import parts_of_identities
from recognition.data.records.record_index import read_index
from recognition.data.sets.dataset import open_dataset
from recognition.data.verification_set import read_bin

COUNTS = (6, 4, 0, 5, 3, 9)
LABELS = np.repeat(np.arange(len(COUNTS)), COUNTS).tolist()


@pytest.fixture
def data(towards: Callable[..., bytes], write_set: Callable[..., Path]) -> Path:
    random = np.random.RandomState(1)
    folder = write_set(LABELS, [towards(random.standard_normal(3)) for _ in LABELS], len(COUNTS))
    (folder / "identities.txt").write_text("".join(f"p{i}\n" for i in range(len(COUNTS))))
    return folder


def contents(folder: Path) -> list[tuple[int, bytes]]:
    dataset = open_dataset(folder)
    return [dataset.read(i)[:2] for i in range(len(dataset))]


def run(data: Path, output: Path, *flags: str) -> int:
    return split_set.main([str(data), "--output", str(output), *flags])


def test_people_held_out(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(data, tmp_path / "new", "--held-out", "2", "--folds", "3", "--seed", "4") == 0
    train, held = (contents(tmp_path / "new" / name) for name in ("train", "held-out"))
    everything = contents(data)
    assert sorted(image for _, image in train + held) == sorted(image for _, image in everything)
    owner = {image: label for label, image in everything}
    names = {name: (tmp_path / "new" / name / "identities.txt").read_text().split() for name in ("train", "held-out")}
    assert len(names["train"]) == 3 and len(names["held-out"]) == 2
    for part, of in ((train, names["train"]), (held, names["held-out"])):
        assert all(of[label] == f"p{owner[image]}" for label, image in part)
        assert sorted({label for label, _ in part}) == list(range(len(of)))
    images, issame = read_bin(tmp_path / "new" / "train" / "held-out.bin")
    assert set(images) <= {image for _, image in held} and 2 * issame.sum() == len(issame) and len(issame) % 3 == 0
    for p, same in enumerate(issame.tolist()):
        assert (owner[images[2 * p]] == owner[images[2 * p + 1]]) == same
    assert "pairs of the people held out" in capsys.readouterr().out
    assert run(data, tmp_path / "again", "--held-out", "2", "--folds", "3", "--seed", "4") == 0
    assert contents(tmp_path / "again" / "held-out") == held


def test_images_held_out(data: Path, tmp_path: Path) -> None:
    assert run(data, tmp_path / "new", "--held-out", "0.4", "--by", "images") == 0
    train, held = (contents(tmp_path / "new" / name) for name in ("train", "held-out"))
    assert sorted(train + held) == sorted(contents(data))  # labels as they were
    assert Counter(label for label, _ in held) == {0: 2, 1: 2, 3: 2, 4: 1, 5: 4}
    assert open_dataset(tmp_path / "new" / "held-out").num_classes == len(COUNTS)
    lines = (tmp_path / "new" / "identities.tsv").read_text().splitlines()
    assert lines[:2] == ["identity\ttrain\theld-out\tname", "0\t4\t2\tp0"] and len(lines) == 1 + len(COUNTS)
    assert run(data, tmp_path / "most", "--held-out", "0.99", "--by", "images") == 0  # each keeps one
    assert Counter(label for label, _ in contents(tmp_path / "most" / "train")) == dict.fromkeys((0, 1, 3, 4, 5), 1)


def test_parts(data: Path, tmp_path: Path) -> None:
    assert run(data, tmp_path / "new", "--parts", "2") == 0
    parts = [contents(tmp_path / "new" / name) for name in "01"]
    assert sorted(image for part in parts for _, image in part) == sorted(image for _, image in contents(data))
    assert sorted(map(len, parts)) == [13, 14]
    owners = {image: label for label, image in contents(data)}
    assert not {owners[image] for _, image in parts[0]} & {owners[image] for _, image in parts[1]}
    filled = np.bincount(parts_of_identities(np.full(1000, 3), 7, 0))
    assert filled.max() - filled.min() <= 1


@pytest.mark.parametrize("flags, line", [
    (["--held-out", "1.5"], "--held-out: found 1.5"), (["--held-out", "3", "--by", "images"], "--held-out: found 3"),
    (["--held-out", "nan"], "--held-out: found nan"),
    (["--parts", "1"], "--parts: found 1"), (["--held-out", "99"], "expected a share below 1"), ([], "is required"),
    (["--parts", "50"], "no image is left for the part"),
    (["--held-out", "5"], "no image is left for the part 'train'")])
def test_flags(flags: list[str], line: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(data, tmp_path / "new", *flags) == 2
    assert line in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_statistics(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    offsets = read_index(data / "train.idx")[1]
    with open(data / "train.rec", "rb+") as file:  # one record without framing, one JPEG without an end
        file.seek(int(offsets[3]))
        file.write(b"\0\0\0\0")
        file.seek(int(offsets[9]) - 40)
        file.write(b"\0" * 40)
    assert data_stats.main([str(data), "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "stats.json").read_text())
    assert [part["record"] for part in found["broken_records"]] == [3, 8] and found["broken"] == 2
    assert "broken: record 8: the JPEG is cut short" in said
    good = [image for i, (_, image) in enumerate(zip(LABELS, raw(data))) if i not in (2, 7)]
    counts = [5, 3, 5, 3, 9]
    assert (found["images"], found["identities"], found["identities_with_images"]) == (27, 6, 5)
    assert found["images_per_identity"]["mean"] == np.mean(counts) and found["images_per_identity"]["50"] == 5
    sizes = found["bytes_per_image"]
    assert (sizes["0"], sizes["100"]) == (min(map(len, good)), max(map(len, good)))
    assert found["sizes"] == [{"height": 112, "width": 112, "images": 25}]
    rows = [line.split("\t") for line in (tmp_path / "out" / "identities.tsv").read_text().splitlines()[1:]]
    assert [int(row[1]) for row in rows] == [5, 3, 0, 5, 3, 9] and rows[0][3] == "p0"
    for name in ("stats.png", "faces.png"):
        assert cv2.imread(str(tmp_path / "out" / name)) is not None


def raw(folder: Path) -> list[bytes]:
    """Bodies by the index alone: 28 bytes of framing and header before each of flag 0."""
    offsets = sorted(read_index(folder / "train.idx")[1].tolist())
    content = (folder / "train.rec").read_bytes()
    found = []
    for start in offsets[1 : 1 + len(LABELS)]:
        length = int.from_bytes(content[start + 4 : start + 8], "little") & ((1 << 29) - 1)
        found.append(content[start + 8 + 24 : start + 8 + length])
    return found


def test_statistics_without_decoding(data: Path, tmp_path: Path) -> None:
    assert data_stats.main([str(data), "--output", str(tmp_path / "out"), "--no-decode"]) == 0
    found = json.loads((tmp_path / "out" / "stats.json").read_text())
    assert found["sizes"] == [] and found["bytes_per_image"]["100"] == max(map(len, raw(data)))
    assert data_stats.main([str(tmp_path / "none")]) == 2
