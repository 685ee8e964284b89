# SPDX-License-Identifier: Apache-2.0
"""Identification among distractors against loops over every gallery, and the command on files of the devkit's form."""
from __future__ import annotations

import json
import struct
import tracemalloc

import cv2
import numpy as np
import pytest

from common.evaluation.megaface_files import encode_feature, read_feature, read_noises
from common.megaface import main
from recognition.evaluation.distractors import search_distractors

FARS = (1e-3, 1e-2)


def by_loops(probes, people, distractors):
    """Ranks of every ordered pair, and the scores of both kinds of pairs, from exact whole numbers."""
    ranks, same = [], []
    for p, probe in enumerate(probes):
        others = [sum(a * b for a, b in zip(probe, row)) for row in distractors]
        for g, mate in enumerate(probes):
            if p != g and people[p] == people[g]:
                score = sum(a * b for a, b in zip(probe, mate))
                gallery = [*others, score]
                ranks.append(sum(other >= score for other in gallery))  # itself makes the 1
                if p < g:
                    same.append(score)
    different = [sum(a * b for a, b in zip(probe, row)) for probe in probes for row in distractors]
    return sorted(ranks), np.array(same), np.array(different)


def tar(far, same, different):
    return max((np.mean(same > t) for t in (*same, *different, -np.inf) if np.mean(different > t) <= far), default=0)


@pytest.mark.parametrize("block_bytes", [1, 999, 1 << 20])
@pytest.mark.parametrize("seed", range(2))
def test_against_loops(seed, block_bytes, monkeypatch):
    monkeypatch.setattr("recognition.evaluation.distractors.BLOCK_BYTES", block_bytes)
    random = np.random.default_rng(seed)
    probes, people = random.integers(-2, 3, (14, 5)), random.integers(0, 5, 14)  # whole numbers: ties, no rounding
    others = random.integers(-2, 3, (90, 5))
    blocks = np.array_split(others.astype(np.float32), 4)
    found = search_distractors(probes.astype(np.float32), people, blocks, 90, FARS)
    ranks, same, different = by_loops(probes.tolist(), people, others.tolist())
    assert sorted(found.ranks.tolist()) == ranks
    assert (found.same_pairs, found.different_pairs) == (len(same), len(different))
    assert [rate.tar for rate in found.rates] == [tar(far, same, different) for far in FARS]
    assert found.curve[0][-1] == found.curve[1][-1] == 1
    assert found.curve[1][::9].tolist() == [tar(far, same, different) for far in found.curve[0][::9]]


def test_memory_does_not_grow_with_the_distractors(monkeypatch):
    monkeypatch.setattr("recognition.evaluation.distractors.BLOCK_BYTES", 80_000)
    random = np.random.default_rng(0)
    probes, people = random.normal(size=(20, 8)).astype(np.float32), np.arange(20) // 2
    peaks = []
    for blocks in (20, 200):
        tracemalloc.start()
        stream = (random.normal(size=(1000, 8)).astype(np.float32) for _ in range(blocks))
        search_distractors(probes, people, stream, 1000 * blocks, (1e-5,))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] < 20 * 200_000 * 4  # all scores would be more


@pytest.fixture
def devkit(tmp_path):
    """Features of 6 people with 4 images each and 200 others, as the devkit writes them; lists; noises."""
    random = np.random.default_rng(3)
    centres = random.normal(size=(6, 16))
    names = {"facescrub": [f"P_{p}/P_{p}_{i}.png" for p in range(6) for i in range(4)],
             "megaface": [f"{100 + i // 50}/u{i % 50}@N0/{i}.jpg" for i in range(200)]}
    rows = {"facescrub": np.repeat(centres, 4, axis=0) + 1.3 * random.normal(size=(24, 16)),
            "megaface": random.normal(size=(200, 16))}
    rows["megaface"][7] = rows["facescrub"][0] + 0.01 * centres[1]  # a person of FaceScrub among the distractors
    for kind, images in names.items():
        for image, row in zip(images, rows[kind]):
            path = tmp_path / kind / f"{image}_x.bin"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(struct.pack("4i", 16, 1, 4, 5) + struct.pack("16f", *row))
        (tmp_path / f"{kind}_lst").write_text("".join(f"{image}\n" for image in images))
        (tmp_path / f"{kind}.json").write_text(json.dumps({"path": images}))
    (tmp_path / "facescrub_noises.txt").write_text("# comment\nP_2_1.png\n")
    (tmp_path / "megaface_noises.txt").write_text(f"# comment\n1\t{names['megaface'][7]}\n{names['megaface'][9]}\n")
    return tmp_path, {kind: found.astype(np.float32) for kind, found in rows.items()}


def run(folder, *flags) -> int:
    return main(["--probes", str(folder / "facescrub"), "--distractors", str(folder / "megaface"), "--suffix", "_x.bin",
                 "--output", str(folder / "out"), "--far", "1e-3,1e-2", *map(str, flags)])


@pytest.mark.parametrize("lists", [None, "{}_lst", "{}.json"])
@pytest.mark.parametrize("clean", [False, True])
def test_the_command_on_files_of_the_devkit(devkit, lists, clean, capsys):
    folder, rows = devkit
    flags = []
    for flag, kind in (("probe", "facescrub"), ("distractor", "megaface")):
        flags += [f"--{flag}-list", folder / lists.format(kind)] if lists else []
        flags += [f"--{flag}-noises", folder / f"{kind}_noises.txt"] if clean else []
    assert run(folder, *flags) == 0
    written = json.loads((folder / "out" / "results.json").read_text())
    probes, people, others = rows["facescrub"], np.arange(24) // 4, rows["megaface"]
    if clean:
        probes, people, others = np.delete(probes, 9, axis=0), np.delete(people, 9), np.delete(others, [7, 9], axis=0)
    units = [(found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float64) for found in (probes, others)]
    ranks, same, different = by_loops(units[0].tolist(), people, units[1].tolist())
    assert (written["probes"], written["distractors"]) == (len(probes), len(others))
    assert written["rank"] == {str(k): np.mean(np.array(ranks) <= k) for k in (1, 5, 10, 100)}
    assert written["cmc"] == [np.mean(np.array(ranks) <= k) for k in range(1, len(others) + 2)]
    assert [rate["tar"] for rate in written["verification"]] == [tar(far, same, different) for far in FARS]
    assert 0 < written["rank"]["1"] < 1
    assert "rank 1 %" in capsys.readouterr().out
    image = cv2.imread(str(folder / "out" / "curves.png")).astype(int)
    assert (image.max(axis=2) - image.min(axis=2) > 60).sum() > 300


def test_features_written_are_those_read(tmp_path):
    feature = np.random.default_rng(0).normal(size=9).astype(np.float32)
    (tmp_path / "a.bin").write_bytes(encode_feature(feature))
    assert (tmp_path / "a.bin").read_bytes() == struct.pack("4i", 9, 1, 4, 5) + struct.pack("9f", *feature)
    np.testing.assert_array_equal(read_feature(tmp_path / "a.bin", 9), feature)


def test_noise_lists(tmp_path):
    (tmp_path / "n").write_text("#no\n\na/b/c.jpg\r\n5\tx/y z.jpg\n")
    assert read_noises(tmp_path / "n") == {"a/b/c.jpg", "x/y z.jpg"}


@pytest.mark.parametrize("content, found", [
    (b"", "found 0 bytes that begin with [0, 0, 0, 0], expected rows"),
    (struct.pack("4i", 16, 1, 4, 5) + bytes(60), "found 76 bytes that begin with [16, 1, 4, 5]"),
    (struct.pack("4i", 16, 1, 4, 6) + bytes(64), "[16, 1, 4, 6]"),
    (struct.pack("4i", -4, -4, 4, 5) + bytes(64), "[-4, -4, 4, 5]"),
    (struct.pack("4i", 8, 1, 4, 5) + bytes(32), "found 8 numbers, expected 16 as in the first feature"),
    (struct.pack("4i", 16, 1, 4, 5) + bytes(64), "its feature has the norm 0, expected a direction"),
    (None, "cannot be read"),
])
def test_features_that_are_none(devkit, capsys, content, found):
    folder, _ = devkit
    path = folder / "megaface" / "100" / "u5@N0" / "5.jpg_x.bin"
    path.unlink() if content is None else path.write_bytes(content)
    assert run(folder, "--distractor-list", folder / "megaface_lst") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(path) in error and found in error
    assert not (folder / "out").exists()


@pytest.mark.parametrize("flags, found", [
    (("--probes", "nowhere"), "nowhere: not found, expected a folder of features"),
    (("--suffix", "_y.bin"), "facescrub: found no file that ends with '_y.bin'"),
    (("--probe-noises", "megaface_noises.txt"), "megaface_noises.txt: none of its 2 images is among the 24"),
    (("--distractor-list", "nothing"), "nothing: cannot be read"),
    (("--distractor-list", "bad.json"), "bad.json: 'path'; expected JSON"),
    (("--distractor-list", "bad.txt"), "bad.txt: line 2: found '../x.jpg', expected a path below"),
    (("--distractor-list", "nul.txt"), r"nul.txt: line 1: found 'a\x00.jpg', expected a path below"),
    (("--distractor-list", "deep.json"), "deep.json: maximum recursion depth exceeded"),
    (("--count", "0"), "--count, --suffix: expected at least 1"),
    (("--far", "x"), "found 'x', expected rates"),
])
def test_what_cannot_be_run(devkit, capsys, monkeypatch, flags, found):
    folder, _ = devkit
    monkeypatch.chdir(folder)
    (folder / "bad.json").write_text('{"id": []}')
    (folder / "deep.json").write_text('{"path": ' + "[" * 200_000)
    (folder / "nul.txt").write_text("a\0.jpg\n")
    (folder / "bad.txt").write_text("100/u0@N0/0.jpg\n../x.jpg\n")
    assert run(folder, *flags) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and found in error
    assert not (folder / "out").exists()
