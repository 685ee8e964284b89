# SPDX-License-Identifier: Apache-2.0
"""Whole runs that start from a checkpoint."""
from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Callable

import numpy as np
import pytest

from recognition.engines.mxnet.imports import mx
from recognition.training.states.state import SavedState, saved_states

Train = Callable[..., "tuple[int, str, str]"]
SHORT = ["--verbose", "100", "--per-batch-size", "4", "--val-targets", "none"]  # no verification: it is not of interest
MODEL = "tiny-softmax-tiny/model"


def arrays(prefix: Path) -> dict[str, np.ndarray]:
    _, parameters, auxiliary = mx.model.load_checkpoint(str(prefix), 0)
    return {name: value.asnumpy() for group in (parameters, auxiliary) for name, value in group.items()}


def last_state(folder: Path) -> SavedState:
    return SavedState(saved_states(folder / "state")[-1])


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pretrained")


@pytest.fixture
def checkpoint(train: Train, tmp_path: Path, pretrained: Path) -> Path:
    """Prefix of a checkpoint of the small network with W and its bias, written by ``train.py``; made once."""
    if not (pretrained / "model-0000.params").exists():
        config = tmp_path / "config.py"
        before = config.read_text()
        config.write_text(before + "config.ckpt_embedding = False\n")
        # With a verification: its forward pass sets the fixed gamma of fc1 to 1, which decay had moved.
        status, _, err = train("first", *SHORT, "--max-steps", "3", "--state-every", "0", "--val-targets", "tiny",
                               entry="train", loss="softmax")
        assert status == 0, err
        config.write_text(before)
        for path in (tmp_path / "first" / MODEL).parent.glob("model-*"):
            shutil.copy(path, pretrained)
    return pretrained / "model"


@pytest.mark.parametrize("entry", ["train", "train_parall"])
def test_the_legacy_checkpoint_is_fine_tuned(train: Train, shared: Path, tmp_path: Path, entry: str) -> None:
    legacy = shared / "legacy" / "checkpoint" / "y1-softmax-emore"
    status, out, err = train("y1", "--network", "y1", "--pretrained", f"{legacy},1", *SHORT, "--max-steps", "10",
                             "--per-batch-size", "2", "--lr", "1e-4", "--state-every", "0", entry=entry)
    assert status == 0, err
    assert "model-0001.params: 284 arrays loaded, 0 missing, 0 left over\n" in out
    assert "model-0001.params: no class centres there; they start anew\n" in out
    ours = arrays(tmp_path / "y1" / "y1-arcface-tiny" / "model")
    theirs = {key.split(":")[1]: value.asnumpy() for key, value in
              mx.nd.load(str(legacy / "model-0001.params")).items()}
    assert ours.keys() == theirs.keys()
    assert all(np.isfinite(ours[name]).all() and ours[name].shape == theirs[name].shape for name in ours)
    moved = np.abs(ours["pre_fc1_weight"] - theirs["pre_fc1_weight"]).max()
    assert 0 < moved < np.abs(theirs["pre_fc1_weight"]).max()  # random weights and two images: large steps


def test_w_and_its_bias_are_taken_and_frozen_parameters_stay(train: Train, checkpoint: Path, tmp_path: Path) -> None:
    before = arrays(checkpoint)
    status, out, err = train("x", *SHORT, "--max-steps", "2", "--pretrained", f"{checkpoint},0", "--freeze",
                             "*,conv_1*", "--lr", "1e-12", entry="train", loss="softmax")
    assert status == 0, err
    assert re.search(r"model-0000.params: fc7_weight: class centres and their bias of 11 classes loaded", out)
    state = last_state((tmp_path / "x" / MODEL).parent)
    np.testing.assert_allclose(state.rows(0, 11, 1).centres, before["fc7_weight"], atol=1e-9)  # two tiny steps
    np.testing.assert_allclose(state.rows(0, 11, 1).bias, before["fc7_bias"], atol=1e-9)
    backbone = state.backbone()
    assert all(np.array_equal(value, before[name]) for name, value in backbone.parameters.items())
    assert not any(momentum.any() for momentum in backbone.momentum.values())


def test_freezing_ends_and_factors_slow_layers_down(train: Train, checkpoint: Path, tmp_path: Path) -> None:
    before = arrays(checkpoint)
    status, out, err = train("x", *SHORT, "--max-steps", "2", "--pretrained", f"{checkpoint},0", "--freeze", "conv_1_*",
                             "--freeze-steps", "2", "--lr-factor", "*=0,pre_fc1_weight=1", "--devices", "cpu:2")
    assert status == 0, err
    assert "class centres of 11 classes loaded; their bias left out" in out
    state = last_state(tmp_path / "x" / "tiny-arcface-tiny").backbone().parameters
    assert [name for name in state if not np.array_equal(state[name], before[name])] == ["pre_fc1_weight"]


def test_a_resumed_run_goes_on_to_the_same_bits(train: Train, checkpoint: Path, tmp_path: Path) -> None:
    """Frozen for 3 of 6 steps, stopped after 2; W from embeddings is not set a second time."""
    flags = [*SHORT, "--devices", "cpu:2", "--pretrained", f"{checkpoint},0", "--freeze", "conv_*",
             "--freeze-steps", "3", "--lr-factor", "pre_fc1*=10", "--centres-from", "embeddings"]
    status, out, err = train("whole", *flags, "--max-steps", "6")
    assert status == 0, err
    assert "class centres: the mean embeddings of 66 images, at most 10 of a class" in out
    assert train("halves", *flags, "--max-steps", "2")[0] == 0
    status, out, err = train("halves", *flags, "--max-steps", "6", "--resume")
    assert status == 0, err
    assert "going on after step 2" in out and "loaded" not in out and "mean embeddings" not in out
    whole, halves = (last_state(tmp_path / name / "tiny-arcface-tiny") for name in ("whole", "halves"))
    for name in ("parameters", "momentum"):
        ours, theirs = getattr(whole.backbone(), name), getattr(halves.backbone(), name)
        assert [key for key in ours if ours[key].tobytes() != theirs[key].tobytes()] == []
    assert all(a.tobytes() == b.tobytes() for a, b in zip(whole.rows(0, 11, 1), halves.rows(0, 11, 1)))


def test_what_train_parall_writes_it_takes_back(train: Train, checkpoint: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.py"
    config.write_text(config.read_text() + "config.ckpt_embedding, config.loss_K = False, 2\n")
    status, _, err = train("a", *SHORT, "--max-steps", "2", "--devices", "cpu:3", "--per-batch-size",
                           "2")
    assert status == 0, err
    folder = tmp_path / "a" / "tiny-arcface-tiny"
    written, state = arrays(folder / "model"), last_state(folder).rows(0, 11, 2)
    parts = [written[f"fc7_{i}_weight"] for i in range(3)]
    assert [len(part) for part in parts] == [8, 8, 6] and "fc7_weight" not in written
    assert np.array_equal(np.concatenate(parts), state.centres)
    status, out, err = train("b", *SHORT, "--max-steps", "1", "--lr", "1e-12", "--pretrained", f"{folder},0")
    assert status == 0, err
    assert "fc7_0_weight .. fc7_2_weight: class centres of 11 classes loaded" in out
    again = last_state(tmp_path / "b" / "tiny-arcface-tiny").rows(0, 11, 2)
    np.testing.assert_allclose(again.centres, state.centres, atol=1e-9)  # one tiny step


def test_another_network_is_refused_with_the_one_that_fits(train: Train, checkpoint: Path) -> None:
    for flags, words in [(["--network", "y2"], "the network is another: .*; it fits --network tiny"),
                         (["--freeze", "stage9*"], r"freeze: found 'stage9\*', which no parameter")]:
        status, _, err = train("bad", *SHORT, "--pretrained", f"{checkpoint},0", *flags)
        assert status == 2 and re.search(words, err), err
        assert len(err.strip().splitlines()) == 1
