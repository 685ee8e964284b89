# SPDX-License-Identifier: Apache-2.0
"""Whole runs on folders of images, several sets, records without a property file, and what is made up."""
from __future__ import annotations

import shutil
from pathlib import Path
from typing import Callable

import numpy as np
import pytest

from common.rec2image import main as rec2image
from recognition.config.options import Config
from recognition.data.verification_set import load_bin
from recognition.errors import UserError
from recognition.training.run import train as run
from recognition.training.states.state import SavedState, saved_states

Train = Callable[..., "tuple[int, str, str]"]


@pytest.fixture(scope="session")
def tiny_folder(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small set as a folder of folders of images, with its pairs."""
    below = tmp_path_factory.mktemp("folders") / "people"
    assert rec2image(["--include", str(tiny_set), "--output", str(below)]) == 0
    shutil.copy(tiny_set / "tiny.bin", below)
    return below


def places(kind: str, tiny_set: Path, tiny_folder: Path, tmp_path: Path) -> str | tuple[str, ...]:
    if kind == "several":
        return str(tiny_folder), str(tiny_set), "synthetic:5"
    if kind != "no property":
        return {"folder": str(tiny_folder), "synthetic": "synthetic:5"}[kind]
    shutil.copytree(tiny_set, tmp_path / "bare")
    (tmp_path / "bare" / "property").unlink()
    return str(tmp_path / "bare")


@pytest.mark.parametrize("kind", ["folder", "several", "synthetic", "no property"])
def test_a_run_goes_on_to_the_same_bits(engine: str, kind: str, make: Callable[..., Config], tiny_set: Path,
                                        tiny_folder: Path, tmp_path: Path) -> None:
    options = {"dataset_path": places(kind, tiny_set, tiny_folder, tmp_path), "data_color": 1, "data_rand_mirror": True,
               "state_every": 4}
    if kind == "several":
        options["dataset_weights"] = (0.5, 1, 0.0002)  # 33, 66 and 26 images an epoch
    found = []
    for name, stops in (("whole", [11]), ("parts", [4, 11])):
        for number, stop in enumerate(stops):
            config = make(models_root=str(tmp_path / name), max_steps=stop, resume="yes" if number else "", **options)
            assert run(config) == 0
        state = SavedState(saved_states(Path(config.output_dir) / "state")[-1])
        found.append((state.progress, Path(config.output_dir, "model-0000.params").read_bytes(),
                      state.rows(0, state.progress.identity["num_classes"], 1).centres.tobytes()))
    assert found[0][1:] == found[1][1:]
    assert found[0][0].offset == found[1][0].offset and found[0][0].identity == found[1][0].identity
    assert found[0][0].identity["num_classes"] == {"several": 27, "synthetic": 5}.get(kind, 11)


def test_another_folder_is_refused_when_a_run_goes_on(make: Callable[..., Config], tiny_folder: Path,
                                                      tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_folder, copy)
    assert run(make(dataset_path=str(copy), state_every=3)) == 0
    next(copy.rglob("*.jpg")).rename(copy / "new.jpg")
    with pytest.raises(UserError, match=r"images|records"):
        run(make(dataset_path=str(copy), state_every=3, max_steps=5, resume="yes"))


def test_a_folder_trains_as_its_records_do(make: Callable[..., Config], tiny_set: Path, tiny_folder: Path,
                                           tmp_path: Path) -> None:
    """The same images in the same order: the same network, bit for bit."""
    ends = []
    for name, place in (("records", tiny_set), ("folder", tiny_folder)):
        config = make(dataset_path=str(place), models_root=str(tmp_path / name))
        assert run(config) == 0
        ends.append(Path(config.output_dir, "model-0000.params").read_bytes())
    assert ends[0] == ends[1]


@pytest.mark.parametrize("engine, entry, listed", [
    ("mxnet", "train_parall", False), ("torch", "train", True)], indirect=["engine"])
def test_a_folder_is_enough_for_a_command(engine: str, entry: str, listed: bool, train: Train, tiny_folder: Path,
                                          tmp_path: Path) -> None:
    """No preset: the folder's pairs are verified on, its images counted, and the same in a list with weights."""
    dataset = f"tiny,{tiny_folder},synthetic:7" if listed else str(tiny_folder)
    weights = ("--dataset-weights", "1,2,0.001") if listed else ()
    status, out, err = train("x", "--per-batch-size", "16", "--max-steps", "4", "--verbose", "4", "--dataset", dataset,
                             *weights, entry=entry)
    assert status == 0, err
    assert "[tiny][4]Accuracy-Flip: " in out and "66 images of 11 people, read in place" in err
    name = "tiny+people+synthetic-7" if listed else "people"
    assert (tmp_path / "x" / f"tiny-arcface-{name}" / "model-0001.params").is_file()
    assert ("3 data sets, 29 identities: " in out) == (f"{tiny_folder}/tiny.bin: left out, " in out) == listed


def test_what_is_made_up_needs_no_disk(make: Callable[..., Config], monkeypatch: pytest.MonkeyPatch,
                                       tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    assert run(make(dataset_path="synthetic:3", models_root=str(tmp_path / "m"))) == 0
    assert {path.name for path in tmp_path.iterdir()} - before == {"m"}


def test_the_first_folder_with_a_target_counts(tiny_set: Path, tiny_folder: Path,
                                               capsys: pytest.CaptureFixture[str]) -> None:
    from recognition.training.verify import load_targets

    (found,) = load_targets([tiny_folder, tiny_set], ["tiny", "absent"], (112, 112))
    assert np.array_equal(found.images, load_bin(tiny_folder / "tiny.bin").images)
    assert capsys.readouterr().out == f"{tiny_set}/tiny.bin: left out, {tiny_folder}/tiny.bin is verified on\n"
