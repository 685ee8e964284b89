# SPDX-License-Identifier: Apache-2.0
"""Runs over sets with records that cannot be used, from the options to the bits at the end."""
from __future__ import annotations

import shutil
from pathlib import Path
from typing import Callable

import numpy as np
import pytest

from recognition.config.options import Config
from recognition.data.records.record_index import read_index
from recognition.errors import UserError
from recognition.io.params import read_arrays
from recognition.training.run import train


@pytest.fixture
def bad_set(tiny_set: Path, tmp_path: Path) -> Path:
    """The small set of 66 images, three of which are none and one of which has a label beyond the classes."""
    folder = tmp_path / "bad"
    shutil.copytree(tiny_set, folder)
    offsets = read_index(folder / "train.idx")[1]
    with open(folder / "train.rec", "r+b") as file:
        for record, place, data in ((5, 32, b"\0" * 8), (6, 32, b"\0" * 8), (30, 0, b"\0"), (50, 12, b"\0\0\x7f\x45")):
            file.seek(int(offsets[record]) + place)
            file.write(data)
    return folder


def end(config: Config) -> bytes:
    return b"".join(np.asarray(array).tobytes() for array in read_arrays(Path(config.prefix + "-0000.params")).arrays)


def test_a_run_over_bad_records(make: Callable[..., Config], bad_set: Path, tmp_path: Path,
                                caplog: pytest.LogCaptureFixture) -> None:
    """It ends, says what it left out, and a run that was stopped in between ends with the same bits."""
    options = {"dataset_path": str(bad_set), "on_bad_record": "skip", "bad_record_share": 0.06, "ckpt": 2}
    whole = make(**options, max_steps=12, models_root=str(tmp_path / "whole"))
    assert train(whole) == 0
    said = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert {line.split("train.rec: ")[1].split(":")[0] for line in said} == {f"record {n}" for n in (5, 6, 30, 50)}
    assert "4 of 66 records cannot be used (the first met: " in caplog.records[-1].getMessage()
    half = make(**options, max_steps=7, models_root=str(tmp_path / "half"), state_every=100)
    assert train(half) == 0
    assert train(make(**options, max_steps=12, models_root=str(tmp_path / "half"), resume="yes")) == 0
    assert end(whole) == end(half)
    assert np.isfinite(np.frombuffer(end(whole), np.float32)).all()


def test_a_bad_record_ends_a_run_that_is_to_stop(make: Callable[..., Config], bad_set: Path) -> None:
    with pytest.raises(UserError, match=r"train\.rec: record (5|6|30|50): "):
        train(make(dataset_path=str(bad_set), on_bad_record="stop", max_steps=12))


def test_too_many_bad_records_end_the_run(make: Callable[..., Config], bad_set: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be used .* expected at most 1, which is --bad-record-share 0.01"):
        train(make(dataset_path=str(bad_set), bad_record_share=0.01, max_steps=12))
