# SPDX-License-Identifier: Apache-2.0
"""All pairs against loops over pairs and thresholds, and the groups' command on drawn images with a real network."""
from __future__ import annotations

import json
import tracemalloc
from itertools import combinations

import cv2
import numpy as np
import pytest

from common.groups import main, read_list
from recognition.errors import UserError
from recognition.evaluation.all_pairs import count_pairs, evaluate_all_pairs

FARS = (1e-3, 1e-2, 0.1)


def by_loops(rows, identities, far):
    """The highest share of pairs of one identity above a threshold that lets through no more than far of the others."""
    same, different = [], []
    for a, b in combinations(range(len(rows)), 2):
        (same if identities[a] == identities[b] else different).append(float(np.dot(rows[a], rows[b])))
    same, different = np.array(same), np.array(different)
    return max((float(np.mean(same > t)) for t in (*same, *different, -np.inf) if np.mean(different > t) <= far),
               default=0.0)


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
@pytest.mark.parametrize("seed", range(2))
def test_all_pairs_against_loops(seed, block, monkeypatch):
    monkeypatch.setattr("recognition.evaluation.all_pairs.ROWS_AT_ONCE", block)
    random = np.random.default_rng(seed)
    identities = random.integers(0, 15, 80) * 3 - 20  # not sorted, not from 0, of any size
    centres = random.integers(-1, 2, (15, 8))
    rows = (2 * centres[(identities + 20) // 3] + random.integers(-2, 3, (80, 8))).astype(np.float32)  # exact, ties
    found = evaluate_all_pairs(rows, identities, FARS)
    assert (found.same_pairs, found.different_pairs) == count_pairs(identities)
    assert found.same_pairs == sum(identities[a] == identities[b] for a, b in combinations(range(80), 2))
    assert [rate.tar for rate in found.rates] == [by_loops(rows, identities, far) for far in FARS]
    assert all(rate.false_accepts <= rate.far * found.different_pairs for rate in found.rates)
    assert found.curve[0][-1] == found.curve[1][-1] == 1
    for far, tar in zip(*(part[::8] for part in found.curve)):
        assert tar == by_loops(rows, identities, far)


def test_memory_does_not_grow_with_the_pairs(monkeypatch):
    monkeypatch.setattr("recognition.evaluation.all_pairs.ROWS_AT_ONCE", 128)
    random = np.random.default_rng(0)
    peaks = []
    for count in (1000, 4000):  # 16 times as many pairs
        rows, identities = random.normal(size=(count, 4)).astype(np.float32), random.integers(0, 500, count)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        tracemalloc.start()
        evaluate_all_pairs(rows, identities, (1e-6, 1e-4))
        peaks.append(tracemalloc.get_traced_memory()[1] - 40 * count)  # rows and identities in order
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] < 4000 * 4000  # a byte a pair would be more


def test_pairs_are_counted_without_overflow():
    identities = np.repeat(np.arange(2), 100_000)
    assert count_pairs(identities) == (2 * (100_000 * 99_999 // 2), 10**10)


@pytest.mark.parametrize("identities, line", [
    ([1, 2, 3], "all: found 3 images, no two of them of one identity, expected pairs of both kinds"),
    ([1, 1], "all: found 2 images, no two of them of two identities"),
    ([1], "all: found 1 images"),
])
def test_what_has_no_pairs(identities, line):
    with pytest.raises(UserError, match=line):
        evaluate_all_pairs(np.eye(len(identities), dtype=np.float32), np.array(identities), FARS)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """PREFIX of checkpoint 1 of a network that embeds an image as its mean colour, less grey."""
    from recognition.networks import sym
    from recognition.training.checkpoints.checkpoint import save_checkpoint

    pooled = sym.Pooling(sym.Variable("data") - 127.5, global_pool=True, pool_type="avg", kernel=(1, 1))
    symbol = sym.FullyConnected(sym.Flatten(pooled), num_hidden=3, name="fc1").graph()
    prefix = tmp_path_factory.mktemp("model") / "model"
    save_checkpoint(prefix, 1, symbol, {"fc1_weight": np.eye(3, dtype=np.float32),
                                        "fc1_bias": np.zeros(3, np.float32)}, {})
    return str(prefix)


@pytest.mark.parametrize("separator", ["\t", " "])
def test_the_command_on_drawn_images(model, tmp_path, capsys, separator):
    random = np.random.default_rng(1)
    lines, colours, people = [], [], []
    for person in range(24):
        centre = random.uniform(0, 255, 3)
        for i in range(3):
            colour = np.clip(np.rint(centre + random.normal(0, 25, 3)), 0, 255)
            name = f"p{person}_{i}.png"
            cv2.imwrite(str(tmp_path / name), np.full((112, 112, 3), colour[::-1], np.uint8))
            lines.append(separator.join((name, f"id{person}", ("African", "Asian", "Indian")[person % 3])))
            colours.append(colour - 127.5)
            people.append(person)
    (tmp_path / "list.txt").write_text("\n".join(lines) + "\n\n")
    flags = ["--model", f"{model},1", "--list", str(tmp_path / "list.txt"), "--output", str(tmp_path / "out"),
             "--far", "1e-3,1e-2"]
    assert main(flags) == 0
    written = json.loads((tmp_path / "out" / "results.json").read_text())["groups"]
    rows = np.array(colours) / np.linalg.norm(colours, axis=1, keepdims=True)
    people = np.array(people)
    assert list(written) == ["African", "Asian", "Indian", "ALL"]
    for i, part in enumerate(written.values()):
        chosen = people % 3 == i if i < 3 else np.ones(72, bool)
        assert part["images"] == chosen.sum()
        assert (part["pairs_of_one_identity"], part["pairs_of_two"]) == count_pairs(people[chosen])
        expected = [by_loops(rows[chosen], people[chosen], far) for far in (1e-3, 1e-2)]
        assert [rate["tar"] for rate in part["verification"]] == expected
    printed = capsys.readouterr().out
    assert "ALL" in printed and "*: fewer pairs" in printed  # 24 x 21 / 2 pairs in a group: fewer than 1000
    image = cv2.imread(str(tmp_path / "out" / "roc.png")).astype(int)
    assert (image.max(axis=2) - image.min(axis=2) > 60).sum() > 300


@pytest.mark.parametrize("lines, found", [
    ("a.jpg x g\na.jpg x\n", "line 2: found 'a.jpg x', expected 'IMAGE IDENTITY GROUP'"),
    ("a.jpg\tx\tg\na b\tx\n", "line 2: found 'a b"),
    ("a.jpg x g\n\nb.jpg x h\n", "line 3: found identity 'x' in group 'h', expected 'g' as on line 1"),
    ("a.jpg x ALL\n", "line 1: found a group 'ALL'"),
    ("\n", "found no lines, expected"),
    ("a.jpg x g\nb.jpg y g\n", "g: found 2 images, no two of them of one identity"),
])
def test_lists_that_cannot_be_used(model, tmp_path, capsys, lines, found):
    (tmp_path / "l.txt").write_text(lines)
    assert main(["--model", f"{model},1", "--list", str(tmp_path / "l.txt"), "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"{tmp_path / 'l.txt'}: {found}" in error
    assert not (tmp_path / "out").exists()


def test_names_with_spaces_and_a_list_in_another_folder(tmp_path):
    (tmp_path / "l.txt").write_text("my face.jpg x g\nsub/b.jpg\ty\th h\n")
    listed = read_list(tmp_path / "l.txt")
    assert listed.images == [tmp_path / "my face.jpg", tmp_path / "sub" / "b.jpg"]
    assert listed.names == ["g", "h h"] and listed.groups.tolist() == [0, 1]
