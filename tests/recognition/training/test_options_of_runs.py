# SPDX-License-Identifier: Apache-2.0
"""Options from the Config to what a run says and saves: whole runs of a small network in this process."""
from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Callable, NamedTuple

import numpy as np
import pytest

from recognition.config.options import Config
from recognition.engines.mxnet.imports import mx
from recognition.training.run import train
from recognition.training.states.state import saved_states


class Outcome(NamedTuple):
    folder: Path
    out: str
    log: str

    @property
    def history(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "history.jsonl").read_text().splitlines()]

    @property
    def states(self) -> list[int]:
        return [int(path.name[5:]) for path in saved_states(self.folder / "state")]

    @property
    def params(self) -> list[int]:
        return sorted(int(path.name[6:10]) for path in self.folder.glob("model-*.params"))

    def arrays(self, number: int = 0) -> dict[str, np.ndarray]:
        return {name: array.asnumpy() for name, array in
                mx.model.load_checkpoint(str(self.folder / "model"), number)[1].items()}


@pytest.fixture
def run(make: Callable[..., Config], capsys: pytest.CaptureFixture[str],
        caplog: pytest.LogCaptureFixture) -> Callable[..., Outcome]:
    """``run(key=value)``: three steps of twelve images, with no verification and no state unless asked for."""
    caplog.set_level("INFO")

    def start(**options: Any) -> Outcome:
        config = make(**options)
        caplog.clear()
        assert train(config) == 0
        return Outcome(Path(config.output_dir), capsys.readouterr().out, caplog.text)

    return start


def test_where_a_run_goes(run: Callable[..., Outcome], tmp_path: Path) -> None:
    found = run(models_root=str(tmp_path / "other"), extra_model_name="b")
    assert found.folder == tmp_path / "other" / "plain-arcface-tiny-b" and found.params == [0, 1]


@pytest.mark.parametrize(("ckpt", "numbers"), [(0, []), (1, [0, 1, 2, 3]), (2, [0, 1, 2, 3]), (3, [0, 1])])
def test_ckpt(run: Callable[..., Outcome], ckpt: int, numbers: list[int]) -> None:
    """A network that does not learn verifies alike each time, and what is as good as the best counts as the best."""
    found = run(ckpt=ckpt, verbose=1, val_targets="tiny", lr_factor="*=0")
    assert found.out.count("Accuracy-Highest") == 3 and found.params == numbers


def test_ckpt_keeps_the_best(run: Callable[..., Outcome]) -> None:
    """By the accuracies that are printed: what is not better than before, or as good, is not saved."""
    found = run(ckpt=1, verbose=1, val_targets="tiny", max_steps=8, lr=0.5, loss_name="softmax")
    accuracies = [float(text) for text in re.findall(r"Accuracy-Flip: ([\d.]+)", found.out)]
    best = [n for n, accuracy in enumerate(accuracies, 1) if accuracy >= max(accuracies[:n])]
    assert len(accuracies) == 8 and found.params == [0, *best]


@pytest.mark.parametrize(("entry", "names"), [("train", {"fc7_weight"}), ("train_parall", {"fc7_0_weight"})])
def test_ckpt_embedding(engine: str, run: Callable[..., Outcome], entry: str,
                        names: set[str]) -> None:
    without = run(entry=entry).arrays()
    whole = run(entry=entry, ckpt_embedding=False).arrays()
    assert whole.keys() - without.keys() == names and whole[next(iter(names))].shape == (11, 8)


def test_verbose_and_frequent(run: Callable[..., Outcome]) -> None:
    found = run(verbose=2, frequent=3, max_steps=7, val_targets="tiny")
    assert re.findall(r"\[(\d)\]Accuracy-Highest", found.out) == ["2", "4", "6", "7"]
    assert re.findall(r"Epoch\[(\d)\] Batch \[(\d-\d)\]", found.log) == [("0", "0-3")]
    assert len(re.findall("Batch", run(frequent=1, max_steps=5, end_epoch=9).log)) == 4


def test_val_targets(engine: str, run: Callable[..., Outcome], tiny_set: Path) -> None:
    out = run(val_targets="none,tiny").out
    assert "[tiny][3]XNorm: " in out and f"{tiny_set}: no none.bin there, verification without" in out
    assert f"{tiny_set}: no verification set there (looked for none.bin)" in run().out


def test_lr_and_lr_steps(run: Callable[..., Outcome]) -> None:
    found = run(lr=0.02, lr_steps="2,4", max_steps=5, frequent=1)
    assert [line["lr"] for line in found.history] == pytest.approx([0.02, 0.002, 0.002, 0.0002])  # of steps 2 to 5


def test_ends(run: Callable[..., Outcome]) -> None:
    """Five batches an epoch."""
    assert run(max_steps=4, state_every=100).states == [4]
    assert run(max_steps=0, end_epoch=1, state_every=100).states == [5]
    assert run(max_steps=0, end_epoch=2, state_every=100).states == [10]


def test_state_every(engine: str, run: Callable[..., Outcome]) -> None:
    assert run(state_every=2, max_steps=5).states == [4, 5]
    assert run(state_every=0, models_root=str(run().folder / "x")).states == []


def test_states_that_stay(run: Callable[..., Outcome]) -> None:
    options = {"state_every": 1, "max_steps": 8}
    assert run(**options, keep_last=3).states == [6, 7, 8]
    assert run(**options, keep_last=1, keep_every=3).states == [3, 6, 8]
    options.update(loss_name="softmax", lr=0.5, verbose=2, val_targets="tiny", keep_last=1)
    found = run(**options, keep_best=1)
    accuracies = [float(text) for text in re.findall(r"Accuracy-Flip: ([\d.]+)", found.out)]
    best = max(2 * n for n, accuracy in enumerate(accuracies, 1) if accuracy == max(accuracies))
    assert found.states == sorted({best, 8})
    assert run(**{**options, "state_every": 100}, keep_best=1).states == sorted({best, 8})


def test_checkpoints_that_stay(run: Callable[..., Outcome]) -> None:
    """Of a network that does not learn each verification is as good as the best, of another an early one may be."""
    options = {"ckpt": 2, "verbose": 1, "val_targets": "tiny"}
    found = run(**options, max_steps=6, lr_factor="*=0", keep_ckpt=2)
    assert found.params == [0, 5, 6]
    assert sorted(path.name for path in found.folder.glob("*.params.sha256")) == [
        f"model-000{n}.params.sha256" for n in (0, 5, 6)]
    found = run(**options, max_steps=8, keep_ckpt=1, loss_name="softmax", lr=0.5, models_root=str(found.folder / "x"))
    accuracies = [float(text) for text in re.findall(r"Accuracy-Flip: ([\d.]+)", found.out)]
    best = max(n for n, accuracy in enumerate(accuracies, 1) if accuracy == max(accuracies))
    assert found.params == sorted({0, best, 8})


def test_kvstore_of_one_process(engine: str, run: Callable[..., Outcome]) -> None:
    """Between the devices of one process the sums are the same wherever they are taken."""
    options = {"devices": "cpu:2", "per_batch_size": 6}
    device, local = (run(**options, kvstore=kvstore).arrays() for kvstore in ("device", "local"))
    assert [name for name in device if device[name].tobytes() != local[name].tobytes()] == []
    assert {"fc7_0_weight", "fc7_1_weight"} < run(**options, ckpt_embedding=False).arrays().keys()


def test_starting_from_a_checkpoint(engine: str, run: Callable[..., Outcome]) -> None:
    first = run(ckpt_embedding=False, loss="first", seed=5)
    prefix, arrays = str(first.folder / "model"), first.arrays()
    options = {"lr_factor": "*=0", "fc7_lr_mult": 1e-9, "pretrained": prefix, "pretrained_epoch": 0,
               "ckpt_embedding": False}
    cases = [("checkpoint", True, "class centres of 11 classes loaded"), ("random", False, ""),
             ("embeddings", False, "the mean embeddings of 66 images")]
    for centres_from, alike, words in cases:
        found = run(**options, centres_from=centres_from)
        assert words in found.out and "2 missing" not in found.out
        assert np.array_equal(found.arrays()["conv0_weight"], arrays["conv0_weight"])
        assert np.allclose(found.arrays()["fc7_0_weight"], arrays["fc7_0_weight"], atol=1e-6) == alike
    assert "model-0000.params" in found.out and "model-0001.params" in run(**{**options, "pretrained_epoch": 1}).out


@pytest.mark.parametrize("entry", ["train_parall", "train"])
def test_centres_taken_over_and_held(engine: str, run: Callable[..., Outcome], entry: str) -> None:
    """Centres of a checkpoint and of a training state of another run, to the bit at the end of this one."""
    first = run(ckpt_embedding=False, state_every=3, loss="first", seed=5, entry=entry)
    (state,) = (first.folder / "state").glob("step-*")
    name = "fc7_weight" if entry == "train" else "fc7_0_weight"
    for place in (f"{first.folder / 'model'},0", str(state)):
        found = run(ckpt_embedding=False, centres_from=place, fc7_lr_mult=0, entry=entry)
        assert "class centres of 11 classes loaded" in found.out
        assert found.arrays()[name].tobytes() == first.arrays()[name].tobytes()
        assert not np.array_equal(found.arrays()["conv0_weight"], first.arrays()["conv0_weight"])
