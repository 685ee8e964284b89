# SPDX-License-Identifier: Apache-2.0
"""The parts of the noisy-label experiment that make and score, and the whole of it on a few people."""
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench.accuracy.noisy_labels import main, make_noisy, make_right, precision_and_recall, wrong_labels
from common.sets.training_set import write_training_set
from recognition.data.sets.dataset import open_dataset

ROOT = Path(__file__).resolve().parents[2]


def test_so_many_labels_are_wrong_and_every_other_class_is_as_likely() -> None:
    labels = np.repeat(np.arange(5), 4000)
    wrong = wrong_labels(labels, 0.3, 1)
    changed = wrong != labels
    assert changed.sum() == 6000 and np.array_equal(wrong, wrong_labels(labels, 0.3, 1))
    assert not np.array_equal(wrong, wrong_labels(labels, 0.3, 2))
    counts = np.bincount(5 * labels[changed] + wrong[changed], minlength=25).reshape(5, 5)
    others = counts[~np.eye(5, dtype=bool)]  # 300 each: standard deviation 17
    assert (counts.diagonal() == 0).all() and np.abs(others - 300).max() < 5 * 17


def test_a_noisy_set_has_the_same_images_and_remembers_whose_they_are(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    write_training_set(tmp_path / "set", [6] * 5, [b"image %d" % i for i in range(30)])
    (tmp_path / "set" / "demo.bin").write_bytes(b"pairs")
    right = make_noisy(tmp_path / "set", tmp_path / "noisy", 0.2, 0)
    dataset = open_dataset(tmp_path / "noisy")
    found = [dataset.read(i) for i in range(30)]
    assert sorted(body for _, body, _ in found) == sorted(b"image %d" % i for i in range(30))
    assert [int(body.split()[1]) // 6 for _, body, _ in found] == right.tolist()
    labels = [label for label, _, _ in found]
    assert labels == sorted(labels) and (np.array(labels) != right).sum() == 6
    assert np.array_equal(np.load(tmp_path / "noisy" / "right.npy"), right)
    assert (tmp_path / "noisy" / "demo.bin").read_bytes() == b"pairs"
    make_right(tmp_path / "noisy", tmp_path / "right", right)
    kept = open_dataset(tmp_path / "right")
    assert [int(kept.read(i)[1].split()[1]) // 6 for i in range(len(kept))] == kept.labels().tolist()
    assert len(kept) == 24


def test_precision_and_recall() -> None:
    dropped, wrong = np.array([1, 1, 1, 0, 0], bool), np.array([1, 0, 0, 1, 0], bool)
    assert precision_and_recall(dropped, wrong) == (pytest.approx(1 / 3), 0.5)
    assert precision_and_recall(~dropped & dropped, wrong) == (0, 0)


def test_bad_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    for flags, words in ((["--share", "1"], "--share: found 1, expected"), ([], "exists already, expected a new")):
        assert main([str(tmp_path), *flags]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1


@pytest.mark.slow
def test_the_whole_experiment_on_a_few_people(tmp_path: Path) -> None:
    data = tmp_path / "data"
    subprocess.run([sys.executable, "-m", "datasets.demo", "--output", data, "--identities", "30", "--held-out", "12",
                    "--images", "8", "--pairs-per-fold", "6"], check=True, cwd=ROOT, capture_output=True)
    done = subprocess.run([sys.executable, "-m", "bench.accuracy.noisy_labels", tmp_path / "work", "--data", data,
                           "--steps", "12", "--threshold", "100", "--right"],
                          check=True, cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert lines[0] == "72 of 240 labels are wrong" and "100 degrees *" in done.stdout
    assert [line.split()[:2] for line in lines[-5:-1]] == [["K", "="], ["ArcFace,", "noisy"], ["ArcFace,", "cleaned"],
                                                           ["ArcFace,", "right"]]
