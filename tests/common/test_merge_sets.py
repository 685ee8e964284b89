# SPDX-License-Identifier: Apache-2.0
"""Merged sets against brute force: every pair of images compared, in loops, with embeddings in float64."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable

import cv2
import numpy as np
import pytest

from common.merge_sets import main
from common.sets.leaks import joined, nearest_rows
from recognition.data.records.recordio import RecordWriter, pack_record
from recognition.data.sets.dataset import open_dataset
from recognition.data.verification_set import save_bin


def write(folder: Path, labels: list[int], images: list[bytes], classes: int) -> Path:
    folder.mkdir()
    with RecordWriter(folder / "train.rec", folder / "train.idx") as writer:
        for key, (label, image) in enumerate(zip(labels, images)):
            writer.write(key, pack_record(float(label), image, id=key))
    (folder / "property").write_text(f"{classes},112,112\n")
    return folder


def contents(folder: Path) -> list[tuple[int, bytes]]:
    dataset = open_dataset(folder)
    return [dataset.read(i)[:2] for i in range(len(dataset))]


def embedding(image: bytes) -> np.ndarray:
    """What ``colour_model`` gives for an image plus its mirror: twice the mean colour less grey; of unit length."""
    pixels = cv2.imdecode(np.frombuffer(image, np.uint8), 1)[..., ::-1]
    mean = pixels.reshape(-1, 3).astype(np.float64).mean(axis=0) - 127.5
    return mean / np.linalg.norm(mean)


@pytest.fixture
def two_sets(towards: Callable[..., bytes], tmp_path: Path) -> tuple[list[Path], list[tuple[list[int], list[bytes]]]]:
    """Identities around random directions; some images of b are in a, one is in a under another identity."""
    random = np.random.RandomState(3)
    sets, folders = [], []
    for classes in (8, 6):
        centres = random.standard_normal((classes, 3))
        labels = random.permutation(np.repeat(np.arange(classes), 5)).tolist()
        images = [towards(centres[label] / np.linalg.norm(centres[label]) + 0.15 * random.standard_normal(3))
                  for label in labels]
        sets.append((labels, images))
    for i, j in ((0, 3), (7, 9)):
        sets[1][1][i] = sets[0][1][j]
    sets[0][1][20] = sets[0][1][2]
    for name, classes, (labels, images) in zip("ab", (8, 6), sets):
        folders.append(write(tmp_path / name, labels, images, classes))
    return folders, sets


def by_hand(sets: Any, apart: list[bytes], limits: tuple[float, float] | None) -> list[list[int]]:
    """0 kept, 1 repeats, 2 copies, 3 near, 4 of an identity near; in loops."""
    seen: set[bytes] = set()
    fates = []
    for labels, images in sets:
        of = []
        for label, image in zip(labels, images):
            if image in apart:
                fate = 2
            elif image in seen:
                fate = 1
            else:
                fate = 0
                if limits:
                    mean = sum(embedding(other) for lab, other in zip(labels, images) if lab == label)
                    mean = mean / np.linalg.norm(mean)
                    if max(float(mean @ embedding(v)) for v in apart) >= limits[1]:
                        fate = 4
                    elif max(float(embedding(image) @ embedding(v)) for v in apart) >= limits[0]:
                        fate = 3
            seen.add(image)
            of.append(fate)
        fates.append(of)
    return fates


def want_contents(sets: Any, fates: list[list[int]]) -> list[tuple[int, bytes]]:
    found, number = [], 0
    for (labels, images), of in zip(sets, fates):
        for label in sorted(set(labels)):
            mine = [image for lab, image, fate in zip(labels, images, of) if lab == label and fate == 0]
            found += [(number, image) for image in mine]
            number += bool(mine)
    return found


def test_without_a_network(two_sets: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders, sets = two_sets
    apart = [sets[0][1][5], sets[1][1][2], sets[1][1][2], sets[0][1][5]]
    save_bin(folders[0] / "lfw.bin", apart, [True, False])
    assert main([*map(str, folders), "--output", str(tmp_path / "new"), "--exclude", "lfw"]) == 0
    fates = by_hand(sets, apart, None)
    assert sum(fate == 1 for of in fates for fate in of) == 3 and sum(fate == 2 for of in fates for fate in of) == 2
    assert contents(tmp_path / "new") == want_contents(sets, fates)
    assert open_dataset(tmp_path / "new").form == "identities"
    assert (tmp_path / "new" / "lfw.bin").exists()
    report = json.loads((tmp_path / "new" / "merge.json").read_text())
    counted = [list(part.values())[:3] for part in report["of_each_set"]]
    assert counted == [[of.count(i) for i in range(3)] for of in fates]
    said = capsys.readouterr().out
    assert "copies of verification images" in said and "65 images of 14 identities" in said
    lines = (tmp_path / "new" / "merge.tsv").read_text().splitlines()
    assert len(lines) == 15 and lines[0].startswith("set\tidentity\tnew_identity\tkept")


def test_with_a_network(two_sets: Any, towards: Callable[..., bytes], colour_model: Callable[..., str],
                        tmp_path: Path) -> None:
    """Limits lie between values: no cosine is within 1e-4 of them, and the network's float32 is good to 1e-5."""
    folders, sets = two_sets
    random = np.random.RandomState(8)
    apart = [towards(random.standard_normal(3)) for _ in range(4)]
    save_bin(tmp_path / "own.bin", apart, [True, False])
    limits = (0.97, 0.93)
    fates = by_hand(sets, apart, limits)
    assert {fate for of in fates for fate in of} == {0, 1, 3, 4}
    assert main([*map(str, folders), "--output", str(tmp_path / "new"), "--exclude", str(tmp_path / "own.bin"),
                 "--model", f"{colour_model()},1", "--image-limit", "0.97", "--identity-limit", "0.93",
                 "--batch-size", "7"]) == 0
    assert contents(tmp_path / "new") == want_contents(sets, fates)
    for name in ("merge.png", "nearest.png"):
        assert cv2.imread(str(tmp_path / "new" / name)) is not None
    rows = [line.split("\t") for line in (tmp_path / "new" / "merge.tsv").read_text().splitlines()[1:]]
    for row, (which, label) in zip(rows, [(0, i) for i in range(8)] + [(1, i) for i in range(6)]):
        labels, images = sets[which]
        mean = sum(embedding(image) for lab, image in zip(labels, images) if lab == label)
        cosines = [float(mean @ embedding(v)) / np.linalg.norm(mean) for v in apart]
        assert float(row[-2]) == pytest.approx(max(cosines), abs=2e-4)
        assert row[-1] == f"own.bin: image {int(np.argmax(cosines))}"


def test_identities_that_are_one_person_join(towards: Callable[..., bytes], colour_model: Callable[..., str],
                                             tmp_path: Path) -> None:
    def near(*direction: float) -> list[bytes]:
        return [towards(np.array(direction) + 0.02 * i) for i in range(3)]

    a = write(tmp_path / "a", [0, 0, 0, 1, 1, 1], near(1, 0, 0) + near(0, 1, 0), 2)
    b = write(tmp_path / "b", [0, 0, 0, 1, 1, 1], near(0, 0, 1) + near(0, 1, 0.1), 2)
    assert main([str(a), str(b), "--output", str(tmp_path / "new"), "--model", f"{colour_model()},1", "--join",
                 "0.9"]) == 0
    assert [label for label, _ in contents(tmp_path / "new")] == [0] * 3 + [1] * 6 + [2] * 3
    assert sorted(image for _, image in contents(tmp_path / "new")) == sorted(
        near(1, 0, 0) + near(0, 1, 0) + near(0, 0, 1) + near(0, 1, 0.1))


def test_joining_by_hand() -> None:
    first = np.eye(3, dtype=np.float32)
    second = np.array([[0.96, 0.28, 0], [0.8, 0.6, 0], [0, 0, 1]], np.float32)  # two would join the first of them
    numbers = joined([first, second], [np.array([True, False, True]), np.array([True, True, True])], 0.7)
    assert [number.tolist() for number in numbers] == [[0, -1, 1], [0, 2, 1]]


def test_nearest_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.sets.leaks._ROWS_AT_ONCE", 7)
    random = np.random.default_rng(0)
    rows, others = (random.standard_normal((n, 5)).astype(np.float32) for n in (30, 23))
    best, whose = nearest_rows(rows, others)
    products = rows @ others.T
    np.testing.assert_allclose(best, np.minimum(products.max(axis=1), 1), rtol=1e-5)
    np.testing.assert_array_equal(whose, products.argmax(axis=1))
    assert nearest_rows(rows, others[:0])[0].tolist() == [-1] * 30


def test_verification_sets_of_one_name(towards: Callable[..., bytes], tmp_path: Path,
                                      capsys: pytest.CaptureFixture[str]) -> None:
    """Four sets, two of one name; a name that a file would get is that of another; files and equal bytes are kept
    once; a link to a file elsewhere counts as that file. The inputs stay as they are."""
    def bins(folder: Path, **seeds: int) -> Path:
        made = write(folder, [0, 0, 1], [towards([len(str(folder)), i, hash(folder.name) % 7]) for i in range(3)], 2)
        for name, seed in seeds.items():
            random = np.random.RandomState(seed)
            save_bin(made / f"{name.replace('_', '-')}.bin", [towards(random.standard_normal(3)) for _ in range(4)],
                     [True, False])
        return made

    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    folders = [bins(tmp_path / "a", lfw=1, cfp=2), bins(tmp_path / "b", lfw=3, cfp=2, own=4),
               bins(tmp_path / "1" / "my, set", lfw=3, agedb=6, lfw_b=5), bins(tmp_path / "2" / "my, set", lfw=7)]
    (folders[3] / "lfw.bin").rename(tmp_path / "elsewhere.bin")
    (folders[3] / "lfw.bin").symlink_to(tmp_path / "elsewhere.bin")
    (folders[3] / "agedb.bin").symlink_to(folders[2] / "agedb.bin")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert main([*map(str, folders), "--output", str(tmp_path / "new")]) == 0
    a, b, first, second = folders
    kept = {"lfw": a / "lfw", "cfp": a / "cfp", "lfw-b-2": b / "lfw", "own": b / "own", "lfw-b": first / "lfw-b",
            "agedb": first / "agedb", "lfw-my_set": second / "lfw"}
    assert {path.stem: path.read_bytes() for path in (tmp_path / "new").glob("*.bin")} == {
        name: before[path.with_suffix(".bin")] for name, path in kept.items()}
    said = [line for line in capsys.readouterr().out.splitlines() if "kept as" in line]
    assert said == [f"{b}/lfw.bin: the new set has another lfw.bin, so this one is kept as lfw-b-2.bin",
                    f"{second}/lfw.bin: the new set has another lfw.bin, so this one is kept as lfw-my_set.bin"]
    assert {path: path.read_bytes() for path in before} == before


def test_the_parts_of_a_split_set(two_sets: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Parts that share a .bin become one set again, with that .bin once; so do a part to train on and one held out, of
    a set that has a held-out.bin already, which keeps its pairs under a name of its own."""
    from common.split_set import main as split

    (folder, _), sets = two_sets
    for name in ("lfw", "held-out"):
        save_bin(folder / f"{name}.bin", sets[1][1][:4], [True, False])
    old = (folder / "held-out.bin").read_bytes()
    assert split([str(folder), "--output", str(tmp_path / "parts"), "--parts", "2"]) == 0
    assert main([*(str(tmp_path / "parts" / name) for name in "01"), "--output", str(tmp_path / "whole")]) == 0
    assert "kept as" not in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "whole").glob("*.bin")) == ["held-out.bin", "lfw.bin"]
    assert len(open_dataset(tmp_path / "whole")) == len(set(sets[0][1]))
    assert split([str(folder), "--output", str(tmp_path / "held"), "--held-out", "4", "--folds", "2"]) == 0
    assert "has another held-out.bin, so this one is kept as held-out-a.bin" in capsys.readouterr().out
    train, held = tmp_path / "held" / "train", tmp_path / "held" / "held-out"
    assert (train / "held-out-a.bin").read_bytes() == (held / "held-out-a.bin").read_bytes() == old
    assert (train / "held-out.bin").read_bytes() != old and not (held / "held-out.bin").exists()
    assert main([str(train), str(held), "--output", str(tmp_path / "again")]) == 0
    assert sorted(path.name for path in (tmp_path / "again").glob("*.bin")) == [
        "held-out-a.bin", "held-out.bin", "lfw.bin"]
    assert (folder / "held-out.bin").read_bytes() == old


def test_flags(two_sets: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders, sets = two_sets
    for flags, line in ((["--exclude", "none.bin"], "--exclude: found no file none.bin"),
                        (["--join", "0.5"], "--join: found no --model"),
                        (["--image-limit", "nan"], "--image-limit: found nan")):
        assert main([str(folders[0]), "--output", str(tmp_path / "new"), *flags]) == 2
        assert line in capsys.readouterr().err
    save_bin(tmp_path / "all.bin", sets[0][1], [True] * 20)
    assert main([str(folders[0]), "--output", str(tmp_path / "new"), "--exclude", str(tmp_path / "all.bin")]) == 2
    assert "none of the images would be left" in capsys.readouterr().err
    (folders[1] / "property").write_text("6,128,128\n")
    assert main([*map(str, folders), "--output", str(tmp_path / "new")]) == 2
    assert "its images are 128 x 128, those of" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
