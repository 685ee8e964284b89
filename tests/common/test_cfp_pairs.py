# SPDX-License-Identifier: Apache-2.0
"""The pairs of CFP's protocol, in the layout in which it is handed out."""
from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from common.build_eval_pack import main
from common.sets.cfp_pairs import read_cfp
from recognition.data.verification_set import read_bin
from recognition.errors import UserError

PEOPLE, FRONTAL, PROFILE = 4, 3, 2


@pytest.fixture
def cfp(tmp_path: Path) -> Path:
    """Four people with three frontal images and two profiles each; ten folds of four pairs."""
    random = np.random.default_rng(0)
    protocol = tmp_path / "Protocol"
    for letter, view, count in (("F", "frontal", FRONTAL), ("P", "profile", PROFILE)):
        names = [f"{p:03d}/{view}/{i:02d}.jpg" for p in range(1, PEOPLE + 1) for i in range(1, count + 1)]
        for name in names:
            (tmp_path / "Images" / name).parent.mkdir(parents=True, exist_ok=True)
            image = cv2.resize(random.integers(0, 256, (5, 5, 3)).astype(np.uint8), (112, 112))
            cv2.imwrite(str(tmp_path / "Images" / name), image)
        protocol.mkdir(exist_ok=True)
        (protocol / f"Pair_list_{letter}.txt").write_text(
            "".join(f"{n} ../Data/Images/{name}\r\n" for n, name in enumerate(names, 1)))
    for kind, second in (("FF", FRONTAL), ("FP", PROFILE)):
        for fold in range(1, 11):
            (protocol / "Split" / kind / f"{fold:02d}").mkdir(parents=True)
            person = fold % PEOPLE
            (protocol / "Split" / kind / f"{fold:02d}" / "same.txt").write_text(
                f"{person * FRONTAL + 1},{person * second + 2}\n{person * FRONTAL + 3},{person * second + 1}\n")
            other = (person + 1) % PEOPLE
            (protocol / "Split" / kind / f"{fold:02d}" / "diff.txt").write_text(
                f"{person * FRONTAL + 1},{other * second + 2}\n{person * FRONTAL + 2},{other * second + 1}\n")
    return tmp_path


@pytest.mark.parametrize("kind, view", [("FF", "frontal"), ("FP", "profile")])
def test_folds_come_in_order_each_with_both_kinds(kind: str, view: str, cfp: Path) -> None:
    found = read_cfp(cfp / "Protocol" / "Split" / kind)
    assert found.issame.tolist() == [True, True, False, False] * 10
    assert (found.first[:4], found.second[:4]) == (
        ["002/frontal/01.jpg", "002/frontal/03.jpg", "002/frontal/01.jpg", "002/frontal/02.jpg"],
        [f"002/{view}/02.jpg", f"002/{view}/01.jpg", f"003/{view}/02.jpg", f"003/{view}/01.jpg"])
    assert all((a[:3] == b[:3]) == same for a, b, same in zip(*found))


def test_a_verification_set_of_it(cfp: Path) -> None:
    assert main(["--data-dir", str(cfp / "Images"), "--pairs", str(cfp / "Protocol" / "Split" / "FP"), "--output",
                 str(cfp / "out" / "cfp_fp.bin")]) == 0
    images, issame = read_bin(cfp / "out" / "cfp_fp.bin")
    pairs = read_cfp(cfp / "Protocol" / "Split" / "FP")
    assert issame.tolist() == pairs.issame.tolist()
    assert images == [(cfp / "Images" / name).read_bytes() for pair in zip(*pairs[:2]) for name in pair]


@pytest.mark.parametrize("path, content, found", [
    ("Split/FP/01/same.txt", "1;2\n", "same.txt: line 1: found '1;2', expected two numbers of images"),
    ("Split/FP/02/diff.txt", "1,1\n1,999\n", "diff.txt: line 2: found '1,999'"),
    ("Split/FP/03/diff.txt", None, "03/diff.txt: cannot be read"), ("Pair_list_P.txt", None, "cannot be read"),
    ("Pair_list_F.txt", "1 ../../../etc/passwd\n", "Pair_list_F.txt: line 1: found '1 ../../../etc/passwd', expected"),
    ("Pair_list_F.txt", "x ../Data/Images/001/frontal/01.jpg\n", "Pair_list_F.txt: line 1: found 'x ")])
def test_what_is_malformed(path: str, content: str | None, found: str, cfp: Path) -> None:
    if content is None:
        (cfp / "Protocol" / path).unlink()
    else:
        (cfp / "Protocol" / path).write_text(content)
    with pytest.raises(UserError) as error:
        read_cfp(cfp / "Protocol" / "Split" / "FP")
    assert found in str(error.value)


def test_another_folder(cfp: Path) -> None:
    with pytest.raises(UserError, match="Images: found a folder, expected a list of pairs, or CFP's"):
        read_cfp(cfp / "Images")
