# SPDX-License-Identifier: Apache-2.0
"""What common.drop refuses, and how much memory it takes."""
from __future__ import annotations

import tracemalloc
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest

CLASSES, K, LOST = 7, 3, 4


def test_bad_input_ends_in_one_line_and_leaves_nothing(
         case: Any, drop: Callable[..., int], write_set: Callable[..., Path], tmp_path: Path,
        colour_model: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    data = write_set(case.labels, case.images, CLASSES)
    w, nan = case.w, case.w.copy()
    nan[LOST * K + 1] = np.nan
    good, no_w = colour_model(fc7_weight=w), colour_model("no-w")
    (tmp_path / "no-w" / "state" / "step-5").mkdir(parents=True)
    (tmp_path / "no-w" / "state" / "step-5" / "centres-0.npy").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    broken = [*case.images[:3], b"no image", *case.images[4:]]
    no_images = write_set(sorted(case.labels), broken, CLASSES, "sequential")
    new = tmp_path / "new"
    for data_dir, prefix, flags, words in [
            (data, good, ("--k", 1), f"found 21 rows in 1 shard, expected 7 for 7 classes, as {data}/property and --k "
             "say; --k 3 would fit"),
            (data, good, ("--k", 2), "--k 3 would fit"),
            (data, colour_model("few", fc7_weight=w[:18]), (), "found 18 rows in 1 shard, expected 21 for 7 classes"),
            (data, colour_model("gap", fc7_1_weight=w), (), "found no fc7_0_weight"),
            (data, no_w, (), "found no class centres there, expected fc7_weight or fc7_<i>_weight"),
            (data, no_w, (), f"--centres {tmp_path}/no-w/state/step-5"),
            (data, no_w, ("--centres", tmp_path), "found no class centres there"),
            (data, no_w, ("--centres", tmp_path / "absent.params"), "absent.params: not a file"),
            (data, colour_model("wide", fc7_weight=np.ones((21, 4))), (), "found centres of 4 numbers, but"),
            (data, colour_model("nan", fc7_weight=nan), (), "record 24: a centre of class 4 is not finite"),
            (data, colour_model("inf", fc7_weight=w, fc1_bias=np.array([0, np.inf, 0])), (),
             "record 1: its embedding is not finite"),
            (data, colour_model("shape", fc1_bias=np.zeros(4), fc7_weight=w), (),
             "fc1_bias is of shape (4,), expected"),
            (data, good + "x", (), "--model: found no "),
            (data, good, ("--threshold", 0), "--threshold: found 0, expected degrees"),
            (data, good, ("--threshold", "nan"), "--threshold: found nan, expected degrees"),
            (data, good, ("--threshold", 0.01), "but the nearest of all 39 images is"),
            (data, good, ("--k", 0), "--k: found 0, expected at least 1"),
            (data, good, ("--devices", "tpu"), "--devices: found 'tpu', expected cpu"),
            (data, good, ("--image-size", 112), "unrecognized arguments: --image-size"),
            (data, good, ("--output-model", good), "exists already, expected a new name"),
            (no_images, good, (), "record 3: its 8 bytes are not an image"),
            (tmp_path / "absent", good, (), "no train.rec there"),
            (data, good, ("--output", tmp_path / "full"), "exists already, expected a new folder")]:
        before = sorted(path.name for path in tmp_path.iterdir())
        assert drop(data_dir, prefix, new, *flags) == 2
        error = capsys.readouterr().err
        assert words in error and error.splitlines()[-1].startswith("error: ") and "Traceback" not in error
        assert len([line for line in error.splitlines() if line.startswith("error: ")]) == 1
        assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_full_disk_ends_in_one_line_too(
         case: Any, drop: Callable[..., int], write_set: Callable[..., Path], tmp_path: Path,
        colour_model: Callable[..., str], capsys: pytest.CaptureFixture[str],
        full_disk: Callable[[int], AbstractContextManager[None]]) -> None:
    data, prefix = write_set(case.labels, case.images, CLASSES), colour_model(fc7_weight=case.w)
    with full_disk(4000):
        assert drop(data, prefix, tmp_path / "new") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'new'}: cannot be written: File too large") and error.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_no_more_of_w_is_in_memory_than_a_batch_needs(
        towards: Callable[..., bytes], write_set: Callable[..., Path], drop: Callable[..., int], tmp_path: Path,
        colour_model: Callable[..., str]) -> None:
    """W of 123 MB, of which three images need nine rows; tracemalloc sees what NumPy allocates, not mapped files."""
    classes, dim = 20_000, 512
    folder = write_set([0, 5, 6], [towards([1, 0, 0])] * 3, 7, "sequential")  # has no table
    (folder / "property").write_text(f"{classes},112,112\n")
    w = np.zeros((classes * K, dim), np.float32)
    w[:, 0] = 1
    prefix = colour_model(dim=dim, fc7_weight=w)
    del w
    tracemalloc.start()
    try:
        assert drop(folder, prefix, tmp_path / "new", "--output-model", tmp_path / "one") == 0
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()
