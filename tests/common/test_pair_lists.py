# SPDX-License-Identifier: Apache-2.0
"""Lists of pairs in the forms that people bring: LFW's and its tables, CALFW's, those of Windows, own ones."""
from __future__ import annotations

from pathlib import Path

import pytest

from common.sets.pair_lists import read_pairs
from recognition.errors import UserError

NAMES = ["A/A_0001.jpg", "A/A_0002.jpg", "B/B_0003.jpg"]
SAME, OTHER = (NAMES[0], NAMES[1], True), (NAMES[0], NAMES[2], False)


def read(folder: Path, content: str | bytes) -> list[tuple[str, str, bool]]:
    path = folder / "pairs"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    found = read_pairs(path, folder)
    return list(zip(found.first, found.second, found.issame.tolist()))


@pytest.mark.parametrize("lines", [
    "{0} {1} 1\n{0} {2} 0\n", "{0}\t{1}\t1\r\n\r\n{0}\t{2}\t0\r\n", "{0},{1},1\n{0},{2},-1\n",
    "{0};{1};1.0\n{0};{2};0.0\n",
    "1 {0} {1}\n0 {0} {2}\n", '"{0}","{1}",True\n"{0}","{2}",False\n', "image1,image2,label\n{0},{1},1\n{0},{2},0\n",
    "# pairs\n{0} {1} 1\n{0} {2} 0\n", "A\\A_0001.jpg A\\A_0002.jpg 1\nA\\A_0001.jpg B\\B_0003.jpg 0\n",
    "10\t1\nA\t1\t2\nA\t1\tB\t3\n", "1\nA 1 2\nA 1 B 3\n", "name,imagenum1,imagenum2,\nA,1,2,\nA,1,B,3\n",
    "name picID1 picID2\nA\t1\t2\nA\t1\tB\t3\n", "A 1 2\nA 1 B 3\n",
    "{0} 1\n{1} 1\n{0} 0\n{2} 0\n", "{0}\t10\n{1}\t10\n{0}\t0\n{2}\t0\n"])
def test_forms_of_lists(lines: str, tmp_path: Path) -> None:
    assert read(tmp_path, lines.format(*NAMES)) == [SAME, OTHER]


@pytest.mark.parametrize("coding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_codings_of_windows(coding: str, tmp_path: Path) -> None:
    mark = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}.get(coding, b"")
    assert read(tmp_path, mark + "A/é.jpg A/ß.jpg 1\r\n".encode(coding)) == [("A/é.jpg", "A/ß.jpg", True)]


@pytest.mark.parametrize("line", ["a,b/1.jpg a,b/2.jpg 1", "a b/1.jpg\ta b/2.jpg\t1", "a;b/1.jpg a;b/2.jpg 1",
                                  "a b/1.jpg,a b/2.jpg,1"])
def test_names_may_have_the_marks_that_part_other_lines(line: str, tmp_path: Path) -> None:
    (pair,) = read(tmp_path, f"{line}\n")
    assert [name.split("/")[1] for name in pair[:2]] == ["1.jpg", "2.jpg"]


def test_a_file_with_a_backslash_in_its_name_keeps_it(tmp_path: Path) -> None:
    (tmp_path / "a\\1.jpg").write_bytes(b"")
    assert read(tmp_path, "a\\1.jpg a\\2.jpg 1\n") == [("a\\1.jpg", "a/2.jpg", True)]


def test_both_kinds_of_calfw_come_in_every_fold(tmp_path: Path) -> None:
    """Its list has all pairs of one identity, with the number of their fold, before those of two, with 0."""
    lines = [f"p{i}_0001.jpg {i // 3 + 1}\np{i}_0002.jpg {i // 3 + 1}\n" for i in range(30)]
    lines += [f"q{i}_0001.jpg 0\nr{i}_0001.jpg 0\n" for i in range(30)]
    found = read(tmp_path, "".join(lines))
    assert [same for _, _, same in found] == ([True] * 3 + [False] * 3) * 10
    assert [pair for pair in found if pair[2]] == [(f"p{i}_0001.jpg", f"p{i}_0002.jpg", True) for i in range(30)]
    assert [pair for pair in found if not pair[2]] == [(f"q{i}_0001.jpg", f"r{i}_0001.jpg", False) for i in range(30)]


@pytest.mark.parametrize("lines, found", [
    ("a.jpg b.jpg 2\n", "line 1: found 'a.jpg b.jpg 2', expected 'image image 1'"),
    ("a.jpg b.jpg 1\na.jpg b.jpg\n", "line 2: found 'a.jpg b.jpg', expected"),
    ("a.jpg b.jpg x\na.jpg b.jpg 1\n", "line 1: found 'a.jpg b.jpg x', expected"),
    ("A 1 2\nA 1 B\n", "line 2: found 'A 1 B'"), ("10 300\nA/1.jpg A/2.jpg 1\n", "line 2: found 'A/1.jpg"),
    ("/else/a.jpg b.jpg 1\n", "line 1: found '/else/a.jpg', expected a path below"),
    ("a.jpg ..\\b.jpg 1\n", "line 1: found '../b.jpg', expected a path below"),
    ("a.jpg 1\nb.jpg 2\n", "lines 1 and 2: found 'a.jpg 1' and not the other image of the pair with the same number"),
    ("a.jpg 1\nb.jpg 1\nc.jpg 0\n", "lines 3 and 4: found 'c.jpg 0'"), ("", "no pairs there"), ("10 300\n", "no pairs"),
    ("one,two,label\n", "no pairs there")])
def test_what_is_no_list_of_pairs(lines: str, found: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        read(tmp_path, lines)
    assert found in str(error.value) and "\n" not in str(error.value)
