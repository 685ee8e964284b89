# SPDX-License-Identifier: Apache-2.0
"""What a run notes about itself, and the report at its end."""
from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest

from common.report import FILE
from recognition.config.differences import as_json
from recognition.config.options import Config
from recognition.data.verification_set import load_bin
from recognition.engines.mxnet.imports import mx
from recognition.evaluation.verification import verify
from recognition.training.run import train
from recognition.training.watch.report import make_report
from recognition.training.watch.run_record import note_end, note_start, revision

Make = Callable[..., Config]


def starts(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "run.json").read_text())["starts"]


def test_a_run_leaves_a_report_of_itself(make: Make, tiny_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The scores beside the checkpoint are those of the checkpoint, float32 of them."""
    config = make(val_targets="tiny", verbose=2, frequent=1, ckpt=2, state_every=3, max_steps=4)
    folder = Path(config.output_dir)
    assert train(config) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"report: {folder / FILE}"
    assert "Finished after step 4, epoch 0" in (folder / FILE).read_text()
    (start,) = starts(folder)
    assert start["config"] == as_json(replace(config, engine="mxnet"))
    assert start["step"] == 0 and start["processes"] == 1
    assert start["versions"]["numpy"] == np.__version__ and start["machine"]["processor"] and start["command"]
    assert start["end"].items() >= {"step": 4, "epoch": 0, "status": 0}.items()

    symbol, arguments, auxiliary = mx.model.load_checkpoint(config.prefix, 2)
    def embed(images: np.ndarray) -> np.ndarray:
        bound = symbol.bind(mx.cpu(), {**arguments, "data": mx.nd.array(images)}, aux_states=auxiliary)
        return bound.forward()[0].asnumpy()

    result = verify(embed, load_bin(tiny_set / "tiny.bin", (112, 112)), 12)
    with np.load(folder / "roc-tiny.npz") as scores:
        np.testing.assert_allclose(scores["distances"], result.distances, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(scores["issame"], result.issame)
        assert scores["distances"].dtype == np.float32
        assert float(scores["threshold"]) == pytest.approx(np.mean(result.best_thresholds))

    capsys.readouterr()
    assert train(make(val_targets="tiny", verbose=2, frequent=1, ckpt=2, state_every=3, max_steps=6, resume="yes")) == 0
    assert [(start["step"], start["end"]["step"]) for start in starts(folder)] == [(0, 4), (4, 6)]
    assert "All 2 starts" in (folder / FILE).read_text()
    assert train(config) == 0  # from the start: the notes of the run before go aside with its states
    assert [start["step"] for start in starts(folder)] == [0] and len(starts(folder / "state.1")) == 2


@pytest.mark.parametrize("error", [OSError("the disk is gone"), ValueError("what nobody thought of")])
def test_a_report_that_fails_is_a_line(make: Make, monkeypatch: pytest.MonkeyPatch, error: Exception,
                                       capsys: pytest.CaptureFixture[str]) -> None:
    def fail(folder: Path) -> Path:
        raise error

    monkeypatch.setattr("recognition.training.run.make_report", fail)
    assert train(make()) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"no report: {error}"


def test_notes_that_are_no_notes_are_begun_anew(make: Make, tmp_path: Path) -> None:
    for content in ("", "[]", '{"starts": 3}', '{"starts": [1]}', "[" * 100000):
        (tmp_path / "run.json").write_text(content)
        note_end(tmp_path, 1, 0, 0)
        note_start(tmp_path, as_json(make()), 3, 2)
        assert [start["step"] for start in starts(tmp_path)] == [3]


def test_the_revision_of_the_code(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path), *arguments],
                              capture_output=True, text=True, check=True).stdout.strip()

    assert revision(tmp_path) == ""
    git("init")
    (tmp_path / "a.py").write_text("1")
    git("add", "a.py")
    git("commit", "-m", "a")
    assert revision(tmp_path) == git("rev-parse", "HEAD")
    (tmp_path / "b.py").write_text("a file that git does not know says nothing")
    assert revision(tmp_path) == git("rev-parse", "HEAD")
    (tmp_path / "a.py").write_text("2")
    assert revision(tmp_path) == git("rev-parse", "HEAD") + ", changed since"
    (tmp_path / "inner").mkdir()
    assert revision(tmp_path / "inner") == ""


def test_a_folder_of_an_older_run_has_a_report(make: Make) -> None:
    config = make(val_targets="tiny", verbose=3, frequent=1)
    assert train(config) == 0
    folder = Path(config.output_dir)
    (folder / "run.json").unlink()
    with np.load(folder / "roc-tiny.npz") as whole:
        kept = {name: whole[name] for name in ("fpr", "tpr", "thresholds", "pixel_fpr", "pixel_tpr")}
    np.savez(folder / "roc-tiny.npz", **kept)
    content = make_report(folder).read_text()
    assert "ROC curve" in content and "Scores of tiny" not in content and "Configuration" not in content
