# SPDX-License-Identifier: Apache-2.0
"""Whole runs of the entry points, as users start them."""
from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Callable

import numpy as np
import pytest

from recognition.engines.mxnet.imports import mx
from recognition.training.states.state import SavedState, saved_states

Train = Callable[..., "tuple[int, str, str]"]
RUN = ["--devices", "cpu:2", "--per-batch-size", "4", "--max-steps", "12", "--verbose", "6", "--state-every", "3"]


def final_arrays(folder: Path) -> dict[str, np.ndarray]:
    """Every array that a run ends with: the backbone's, its momentum and statistics, W and its momentum."""
    saved = SavedState(saved_states(folder / "state")[-1])
    backbone = saved.backbone()
    arrays = {**backbone.parameters, **{f"momentum {k}": v for k, v in backbone.momentum.items()}}
    for i, auxiliary in enumerate(backbone.auxiliary):
        arrays.update({f"{i} {name}": value for name, value in auxiliary.items()})
    classes = saved.progress.identity["num_classes"]
    return {**arrays, **saved.rows(0, classes, 1)._asdict()}


def assert_same_bits(left: Path, right: Path) -> None:
    ours, theirs = final_arrays(left), final_arrays(right)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name].tobytes() != theirs[name].tobytes()] == []
    assert (left / "model-0000.params").read_bytes() == (right / "model-0000.params").read_bytes()


def records(folder: Path) -> list[dict]:
    found = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k != "images_per_second"} for record in found]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    for _ in range(1200):
        if condition() or process.poll() is not None:
            return
        time.sleep(0.05)


@pytest.mark.parametrize("engine", ["mxnet", pytest.param("torch", marks=pytest.mark.slow)], indirect=True)
def test_a_killed_run_goes_on_to_the_same_bits(engine: str, train_apart: Train, start: Callable[..., subprocess.Popen],
                                               tmp_path: Path) -> None:
    """SIGKILL once a state is there; the network has dropout and batch norm, the set 2.75 batches an epoch."""
    assert train_apart("whole", *RUN)[0] == 0
    folder = tmp_path / "killed" / "tiny-arcface-tiny"
    process = start("killed", *RUN)
    wait_for(lambda: bool(saved_states(folder / "state")), process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (folder / "model-0000.params").exists()
    status, out, err = train_apart("killed", *RUN, "--resume")
    assert status == 0, err
    assert "going on after step" in out
    whole = tmp_path / "whole" / "tiny-arcface-tiny"
    assert_same_bits(folder, whole)
    assert records(folder) == records(whole)


@pytest.mark.parametrize("engine", ["mxnet", pytest.param("torch", marks=pytest.mark.slow)], indirect=True)
def test_sigterm_saves_and_stops(engine: str, train_apart: Train, start: Callable[..., subprocess.Popen],
                                 tmp_path: Path) -> None:
    flags = ["--devices", "cpu:2", "--per-batch-size", "4", "--verbose", "100000", "--state-every", "100000"]
    folder = tmp_path / "stopped" / "tiny-arcface-tiny"
    process = start("stopped", *flags)  # without an end, so that the signal comes before it on any machine
    wait_for(lambda: (folder / "history.jsonl").exists() and len(records(folder)) > 0, process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM, err
    stopped = re.search(r"stopped by SIGTERM after step (\d+); --resume goes on from here", out)
    assert stopped is not None
    assert [path.name for path in saved_states(folder / "state")] == [f"step-{int(stopped[1]):09d}"]
    end = ["--max-steps", str(int(stopped[1]) + 2)]
    assert train_apart("stopped", *flags, *end, "--resume")[0] == 0
    assert train_apart("whole", *flags, *end)[0] == 0
    assert_same_bits(folder, tmp_path / "whole" / "tiny-arcface-tiny")


def test_saved_on_two_devices_it_goes_on_with_three_shards_and_with_one(train: Train, tmp_path: Path) -> None:
    two = ["--max-steps", "4", "--verbose", "100", "--devices", "cpu:2", "--per-batch-size", "6"]
    assert train("a", *two)[0] == 0
    for devices, images in (("cpu:3", "4"), ("cpu", "12")):
        status, out, err = train("a", "--max-steps", "6", "--verbose", "100", "--devices", devices, "--per-batch-size",
                                 images, "--resume")
        assert (status, "going on after step 4" in out or "going on after step 6" in out) == (0, True), err
    assert SavedState(saved_states(tmp_path / "a" / "tiny-arcface-tiny" / "state")[-1]).progress.step == 6


def test_the_legacy_lines_and_files(engine: str, train: Train, tmp_path: Path) -> None:
    status, out, err = train("lines", "--max-steps", "8", "--verbose", "4", "--ckpt", "2", "--per-batch-size", "8")
    assert status == 0, err
    for step in (4, 8):
        assert re.search(rf"^\[tiny\]\[{step}\]XNorm: \d+\.\d{{6}}$", out, re.M)
        assert re.search(rf"^\[tiny\]\[{step}\]Accuracy-Flip: \d\.\d{{5}}\+-\d\.\d{{5}}$", out, re.M)
        assert re.search(rf"^\[{step}\]Accuracy-Highest: \d\.\d{{5}}$", out, re.M)
    line = r"^INFO:root:Epoch\[0\] Batch \[0-2\]\tSpeed: \d+\.\d\d samples/sec\tacc=\d\.\d{6}\tlossvalue=\d+\.\d{6}$"
    assert re.search(line, err, re.M)
    folder = tmp_path / "lines" / "tiny-arcface-tiny"
    assert sorted(p.name for p in folder.glob("*.params")) == [f"model-{n:04d}.params" for n in (0, 1, 2)]
    symbol, args, aux = mx.model.load_checkpoint(str(folder / "model"), 0)
    assert symbol.list_outputs() == ["fc1_output"] and "LeakyReLU" in symbol.tojson()
    assert set(args) == set(symbol.list_arguments()) - {"data"} and set(aux) == set(symbol.list_auxiliary_states())
    with np.load(folder / "roc-tiny.npz") as curve:
        assert curve["fpr"][-1] == curve["tpr"][-1] == 1


@pytest.mark.parametrize("loss", ["softmax", "nsoftmax", "cosface", "combined"])
def test_every_loss_trains(train: Train, tmp_path: Path, loss: str) -> None:
    status, _, err = train("x", "--max-steps", "3", "--verbose", "100", "--ckpt", "0", "--per-batch-size", "8",
                           "--devices", "cpu:2", loss=loss)
    assert status == 0, err
    folder = tmp_path / "x" / f"tiny-{loss}-tiny"
    assert not list(folder.glob("*.params")) and not (folder / "state").exists()


def test_train_has_the_whole_of_w_with_a_bias(train: Train, tmp_path: Path) -> None:
    config = tmp_path / "config.py"
    config.write_text(config.read_text() + "config.ckpt_embedding = False\n")
    status, _, err = train("w", "--max-steps", "3", "--verbose", "100", "--per-batch-size", "8", entry="train",
                           loss="softmax")
    assert status == 0, err
    _, args, _ = mx.model.load_checkpoint(str(tmp_path / "w" / "tiny-softmax-tiny" / "model"), 0)
    assert args["fc7_weight"].shape == (11, 32) and args["fc7_bias"].shape == (11,)
    assert np.abs(args["fc7_bias"].asnumpy()).max() > 0
    assert train("w", "--max-steps", "3", "--verbose", "100", "--per-batch-size", "8", "--devices", "cpu:2",
                 loss="softmax")[0] == 0
    _, args, _ = mx.model.load_checkpoint(str(tmp_path / "w" / "tiny-softmax-tiny" / "model"), 0)
    assert args["fc7_0_weight"].shape == (6, 32) and args["fc7_1_weight"].shape == (5, 32)


def test_starting_anew_keeps_the_states_of_the_run_before(train: Train, tmp_path: Path) -> None:
    flags = ["--max-steps", "2", "--verbose", "100", "--per-batch-size", "8"]
    assert train("x", *flags)[0] == 0
    status, out, _ = train("x", *flags)
    assert status == 0 and "the training state of the run before is kept in" in out
    assert saved_states(tmp_path / "x" / "tiny-arcface-tiny" / "state.1")


def test_bad_input_ends_in_one_line_and_status_2(train: Train, tiny_set: Path, tmp_path: Path) -> None:
    for flags, words in [(["--resume"], "no training state"), (["--pretrained", "nowhere,3"], "nowhere-0003.params"),
                         (["--per-batch-size", "1000"], "66 images"), (["--devices", "gpu:0"], "gpu 0"),
                         (["--network", "tinny"], "nearest is 'tiny'")]:
        status, _, err = train("bad", *flags)
        assert status == 2 and words in err
        assert len(err.strip().splitlines()) == 1 and err.startswith("error: "), err


def test_a_loss_that_is_not_finite_stops_the_run(train: Train) -> None:
    status, _, err = train("nan", "--max-steps", "40", "--verbose", "100", "--per-batch-size", "8", "--lr", "1e30",
                           loss="softmax")
    assert status == 2
    assert re.match(r"error: step \d+: (the loss is (nan|inf)|the update of the class centres overflows) at "
                    r"learning rate 1e\+30.*\n$", err), err


def test_resume_refuses_another_network_or_head_and_says_what_else_changed(train: Train, tmp_path: Path) -> None:
    flags = ["--max-steps", "2", "--verbose", "100", "--per-batch-size", "8"]
    assert train("x", *flags, entry="train", loss="softmax")[0] == 0
    status, _, err = train("x", *flags, "--resume", loss="softmax")
    assert status == 2 and "was saved with bias True, this run has False" in err
    status, out, err = train("x", "--max-steps", "3", *flags[2:], "--lr-steps", "2", "--resume", entry="train",
                             loss="softmax")
    assert status == 0 and "changed since then: " in out and "max_steps 2 -> 3" in out, err
    config = tmp_path / "config.py"
    config.write_text(config.read_text() + "network.tiny.net_blocks = [1, 2, 1, 1]\n")
    status, _, err = train("x", *flags, "--resume", entry="train", loss="softmax")
    assert status == 2 and "is of a network of other options than this run's: " in err
    assert len(err.strip().splitlines()) == 1


def test_a_start_that_fails_leaves_the_state_where_it_is(train: Train, tmp_path: Path) -> None:
    flags = ["--max-steps", "2", "--verbose", "100"]
    assert train("x", *flags, "--per-batch-size", "8")[0] == 0
    assert train("x", *flags, "--per-batch-size", "1000")[0] == 2
    assert train("x", *flags, "--per-batch-size", "8", "--ckpt", "0")[0] == 0
    folder = tmp_path / "x" / "tiny-arcface-tiny"
    assert saved_states(folder / "state") and not (folder / "state.1").exists()


def test_a_models_folder_that_cannot_be_written_to(train: Train, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", Path("/proc/x")):
        status, _, err = train("x", "--models-root", str(root))
        assert status == 2 and re.match(rf"error: --models-root: {root}\S* cannot be written to: .+\n$", err), err
