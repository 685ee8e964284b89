# SPDX-License-Identifier: Apache-2.0
"""Lists as people have them: im2rec's, with a byte order mark, with other endings, with absolute paths; macOS' sums."""
from __future__ import annotations

import codecs
import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from common.build_eval_pack import main as build_eval_pack
from common.evaluation.megaface_files import read_noises
from common.face_align import main as face_align
from common.groups import read_list
from common.pack_folder import main as pack_folder
from common.sets.image_sources import read_identities
from common.sets.named_images import with_other_endings
from common.sets.pair_lists import read_pairs
from common.sets.text_columns import read_whole_numbers
from common.unpack_parts import read_sums
from recognition.data.records.record_index import read_index
from recognition.data.records.set_layout import read_property
from recognition.data.sets.dataset import open_dataset
from recognition.data.verification_set import read_bin
from recognition.errors import UserError


@pytest.fixture
def people(tmp_path: Path) -> Path:
    for i, name in enumerate(("Ann_A/Ann_A_0001", "Ann_A/Ann_A_0002", "Bob_B/Bob_B_0001", "Bob_B/Bob_B_0002")):
        path = tmp_path / "people" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = np.random.RandomState(i).randint(0, 256, (112, 112, 3)).astype(np.uint8)
        path.write_bytes(cv2.imencode(".png", image)[1].tobytes())
    return tmp_path / "people"


@pytest.mark.parametrize("labels", ["{0}.000000", "{0}", "{0}.0\t7.5\t-1", "{0}\t12\t30\t100\t120"])
def test_lists_of_im2rec(labels: str, people: Path, tmp_path: Path) -> None:
    paths = sorted(path.relative_to(people) for path in people.rglob("*.png"))
    (people / "train.lst").write_text("".join(
        f"{n}\t{labels.format(1 - n // 2)}\t{path}\n" for n, path in enumerate(paths)))
    found = read_identities(people / "train.lst")
    assert [(person.name, person.images) for person in found] == [
        ("0", [people / path for path in paths[2:]]), ("1", [people / path for path in paths[:2]])]
    assert pack_folder([str(people / "train.lst"), str(tmp_path / "new")]) == 0
    assert open_dataset(tmp_path / "new").labels().tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("line", ["{path}\t{label}", "{path} {label}", "{label} {path}", "{label}\t{path}",
                                  "{path},{label}", "{label};{path}", "{windows}\t{label}", "{windows},{label}",
                                  "1\t{path}\t{label}"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_lists_of_own_making(line: str, ending: str, people: Path) -> None:
    paths = sorted(path.relative_to(people) for path in people.rglob("*.png"))
    lines = [line.format(path=path, label=n // 2, windows=str(path).replace("/", "\\")) for n, path in enumerate(paths)]
    for heading in ([], ["path,label"]):
        (people / "list").write_bytes(ending.join([*heading, *lines, ""]).encode())
        assert [(person.name, person.images) for person in read_identities(people / "list")] == [
            ("0", [people / path for path in paths[:2]]), ("1", [people / path for path in paths[2:]])]


def test_paths_in_a_list_may_have_spaces_and_commas(people: Path) -> None:
    (people / "list").write_text("a b/1, 2.png 0\nc,d/1.png 1\n")
    assert [(person.name, person.images) for person in read_identities(people / "list")] == [
        ("0", [people / "a b" / "1, 2.png"]), ("1", [people / "c,d" / "1.png"])]


@pytest.mark.parametrize("label", ["0.5", "-1", "x", "nan"])
def test_a_label_of_im2rec_that_is_no_class(label: str, tmp_path: Path) -> None:
    (tmp_path / "train.lst").write_text(f"0\t{label}\ta.jpg\n")
    with pytest.raises(UserError, match=r"line 1: found .*, expected a whole number as the first label of im2rec"):
        read_identities(tmp_path / "train.lst")


def test_a_byte_order_mark_is_no_part_of_a_text(people: Path, tmp_path: Path) -> None:
    def write(name: str, text: str) -> Path:
        (tmp_path / name).write_bytes(codecs.BOM_UTF8 + text.encode())
        return tmp_path / name

    assert read_identities(write("list", "people/Ann_A/Ann_A_0001.png\tann\n"))[0].images[0].is_file()
    assert read_pairs(write("pairs", "a.jpg b.jpg 1\n")).first == ["a.jpg"]
    assert read_pairs(write("lfw", "1\t1\nAnn\t1\t2\n")).first == ["Ann/Ann_0001.jpg"]
    assert read_list(write("groups", "a.jpg p x\n")).images == [tmp_path / "a.jpg"]
    assert read_property(write("property", "5,112,112\n")).num_classes == 5
    assert read_whole_numbers(write("columns", "1 2\n"), 2, "two").tolist() == [[1, 2]]
    assert read_index(write("train.idx", "0\t0\n1\t80\n"))[0].tolist() == [0, 1]
    assert read_noises(write("noise", "a.jpg\n")) == {"a.jpg"}
    assert read_sums(write("sums", f"{'0' * 32}  a.tar\n")) == {"a.tar": "0" * 32}
    held = write("held", "Bob_B\n")
    assert pack_folder([str(people), str(tmp_path / "new"), "--held-out", str(held), "--folds", "1"]) in (0, 2)


def test_sums_as_macos_prints_them(tmp_path: Path) -> None:
    sums = {f"part_{i}": hashlib.md5(bytes([i])).hexdigest() for i in range(3)}
    forms = ["MD5 ({}) = {}\n", "MD5({})= {}\n", "MD5 (down loads/{}) = {}\n"]
    for form in forms:
        (tmp_path / "sums").write_text("".join(form.format(name, value) for name, value in sums.items()))
        assert read_sums(tmp_path / "sums") == sums
    (tmp_path / "sums").write_text(f"SHA256 (a (1).tar) = {hashlib.sha256(b'').hexdigest().upper()}\n")
    assert read_sums(tmp_path / "sums") == {"a (1).tar": hashlib.sha256(b"").hexdigest()}


def test_pairs_of_lfw_on_a_tree_of_another_ending(people: Path, tmp_path: Path,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pairs.txt").write_text("1\t1\nAnn_A\t1\t2\nAnn_A\t1\tBob_B\t1\n")
    (people / "Bob_B" / "Bob_B_0001.png").rename(people / "Bob_B" / "Bob_B_0001.JPG")
    assert build_eval_pack(["--data-dir", str(people), "--pairs", str(tmp_path / "pairs.txt"), "--output",
                            str(tmp_path / "lfw.bin")]) == 0
    assert "3 images have another ending than in the list, such as" in capsys.readouterr().out
    assert len(read_bin(tmp_path / "lfw.bin")[0]) == 4
    (people / "Ann_A" / "Ann_A_0001.bmp").write_bytes(b"x")
    with pytest.raises(UserError, match=r"Ann_A_0001.jpg: not found, and there are Ann_A_0001.bmp and Ann_A_0001.png"):
        with_other_endings(people, ["Ann_A/Ann_A_0001.jpg"])


def test_absolute_paths_into_the_folder(people: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_text(f"{people}/Ann_A/Ann_A_0001.png {people}/Ann_A/Ann_A_0002.png 1\n")
    assert read_pairs(tmp_path / "pairs.txt", people).second == ["Ann_A/Ann_A_0002.png"]
    (tmp_path / "pairs.txt").write_text(f"{people}/../x.png {people}/Ann_A/Ann_A_0002.png 1\n")
    with pytest.raises(UserError, match="line 1: found"):
        read_pairs(tmp_path / "pairs.txt", people)


def test_landmarks_with_another_ending_or_absolute_paths(people: Path, tmp_path: Path) -> None:
    five = "38 51 73 51 56 71 41 92 70 92"
    for number, name in enumerate(("Ann_A/Ann_A_0001.jpg", f"{people}/Ann_A/Ann_A_0001.png", "./Ann_A/Ann_A_0001.png")):
        (tmp_path / "points").write_text(f"{name} 3 {five}\n")
        assert face_align([str(people), str(tmp_path / f"new{number}"), "--landmarks", str(tmp_path / "points")]) == 0
        assert (tmp_path / f"new{number}" / "Ann_A" / "Ann_A_0001.jpg").is_file()
