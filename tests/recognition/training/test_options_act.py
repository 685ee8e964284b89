# SPDX-License-Identifier: Apache-2.0
"""Options from the command line to their effect, and bad data sets to their one line."""
from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Callable

import numpy as np
import pytest

from recognition.config.devices import require_bfloat16
from recognition.data.records.recordio import RecordWriter, pack_record
from recognition.engines.mxnet.imports import mx
from recognition.errors import UserError

Train = Callable[..., "tuple[int, str, str]"]
SHORT = ["--max-steps", "3", "--verbose", "100", "--per-batch-size", "8", "--val-targets", "none"]
SPEED = r"^INFO:root:Epoch\[0\] Batch \[0-2\]\tSpeed: \d+\.\d\d samples/sec\tacc=\d\.\d{6}"


def add(config: Path, text: str) -> None:
    config.write_text(config.read_text() + text + "\n")


def last(folder: Path) -> dict[str, np.ndarray]:
    _, parameters, auxiliary = mx.model.load_checkpoint(str(folder / "tiny-arcface-tiny" / "model"), 0)
    return {name: value.asnumpy() for group in (parameters, auxiliary) for name, value in group.items()}


def test_memonger_trains_to_the_same_bits_and_flops_and_loss_can_be_left_out(train: Train, tmp_path: Path) -> None:
    status, out, err = train("plain", *SHORT)
    assert status == 0 and re.search(SPEED + r"\tlossvalue=\d+\.\d{6}$", err, re.M)
    assert re.search(r"^Network FLOPs: 17\.5M \(.*; 233\.8K parameters\)$", out, re.M)
    add(tmp_path / "config.py", "config.memonger, config.count_flops, config.ce_loss = True, False, False")
    status, out, err = train("again", *SHORT)
    assert status == 0 and re.search(SPEED + "$", err, re.M) and "FLOPs" not in out
    plain, again = last(tmp_path / "plain"), last(tmp_path / "again")
    assert [name for name in plain if plain[name].tobytes() != again[name].tobytes()] == []


def test_fp16_scale_on_a_cpu_is_bfloat16_with_float32_masters(train: Train, tmp_path: Path) -> None:
    try:
        require_bfloat16("this test")
    except UserError as reason:
        pytest.skip(str(reason))
    status, out, err = train("low", *SHORT, "--fp16-scale", "128")
    assert status == 0, err
    assert re.search("^bfloat16 in place of float16, which needs a GPU; .* float32 master weights$", out, re.M)
    assert all(array.dtype == np.float32 and np.isfinite(array).all() for array in last(tmp_path / "low").values())
    symbol = (tmp_path / "low" / "tiny-arcface-tiny" / "model-symbol.json").read_text()
    assert "amp_cast" not in symbol


@pytest.fixture
def folder(tiny_set: Path, tmp_path: Path) -> Path:
    """A copy of the small set, which config.py names."""
    copy = tmp_path / "set"
    shutil.copytree(tiny_set, copy)
    add(tmp_path / "config.py", f"dataset.tiny.dataset_path = {str(copy)!r}")
    return copy


def one_line(result: tuple[int, str, str]) -> str:
    """The line of the error, the last; what the log said comes before it, if anything."""
    status, _, err = result
    *before, line = err.strip().splitlines()
    assert status == 2 and line.startswith("error: "), err
    assert [said for said in before if not said.startswith(("INFO:", "WARNING:"))] == [], err
    return line


def test_a_folder_without_records(train: Train, folder: Path) -> None:
    (folder / "train.rec").unlink()
    assert one_line(train("x", *SHORT)).startswith(f"error: {folder}: no train.rec there, expected a folder of ")


def test_a_property_file_that_disagrees_with_the_labels(train: Train, folder: Path) -> None:
    """Classes 5 to 10 are more than the share of records that may be left out."""
    (folder / "property").write_text("5,112,112\n")
    wrong = f"label 5, expected a whole number from 0 to 4, as {folder}/property says"
    status, out, err = train("x", *SHORT)
    assert f"WARNING:recognition.data.bad_records:left out: {folder}/train.rec: record 31: {wrong}" in err.splitlines()
    assert one_line((status, out, err)) == (
        f"error: {folder}/train.rec: record 32: {wrong}; 2 of 66 records cannot be used (the first met: 31, 32), "
        "expected at most 1, which is --bad-record-share 0.01")
    stopped = train("y", *SHORT, "--on-bad-record", "stop")
    assert one_line(stopped) == f"error: {folder}/train.rec: record 31: {wrong}"


def test_a_label_out_of_range(train: Train, folder: Path) -> None:
    with RecordWriter(folder / "train.rec", folder / "train.idx") as records:
        for key, label in enumerate((0, 1, 2, 99, 4, 5)):
            records.write(key, pack_record(float(label), b"image"))
    error = one_line(train("x", *SHORT, "--on-bad-record", "stop"))
    assert f"{folder}/train.rec: record 3: label 99, expected" in error


def test_images_of_another_size_than_the_network_is_built_for(train: Train, folder: Path) -> None:
    (folder / "property").write_text("11,96,96\n")
    assert "image_shape: found 112x112x3, but" in one_line(train("x", *SHORT))


def test_another_number_of_classes_is_said_and_the_property_file_wins(train: Train, folder: Path,
                                                                     tmp_path: Path) -> None:
    add(tmp_path / "config.py", "dataset.tiny.num_classes = 12")
    status, out, _ = train("x", *SHORT)
    assert status == 0
    assert f"{folder}: 11 identities by its property file; the preset's 12 are not used" in out.splitlines()


def test_lr_steps_out_of_order(train: Train) -> None:
    assert one_line(train("x", "--lr-steps", "5,3")).startswith("error: --lr-steps: found '5,3', expected whole ")
