# SPDX-License-Identifier: Apache-2.0
"""Runs from arcface_torch's config files as they stand."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from common.convert_torch import main as convert_torch
from recognition.engines.replicas import mean
from recognition.io.params import read_arrays
from recognition.training.states.state import SavedState

ROOT = Path(__file__).resolve().parents[4]
RECIPE = """
from easydict import EasyDict as edict

config = edict()
config.margin_list = (1.0, 0.0, 0.4)
config.network = "r18"
config.resume = False
config.output = None
config.embedding_size = 32
config.sample_rate = 0.5
config.fp16 = False
config.momentum = 0.9
config.weight_decay = 5e-4
config.batch_size = 3
config.lr = 0.01
config.verbose = 2000
config.dali = False

config.rec = {data!r}
config.num_classes = 11
config.num_image = 22
config.num_epoch = 1
config.warmup_epoch = 0
config.val_targets = []
"""


@pytest.fixture
def run(short_set: Path, tmp_path: Path, engine: str):
    """Runs ``train_parall.py --config configs/tiny.py`` in ``tmp_path``, with lines added to the file, and flags."""
    folder = tmp_path / "configs"
    folder.mkdir()

    def started(more: str = "", *flags: str) -> subprocess.CompletedProcess:
        (folder / "tiny.py").write_text(RECIPE.format(data=str(short_set)) + more)
        command = [sys.executable, str(ROOT / "train_parall.py"), "--config", "configs/tiny.py", "--engine", engine,
                   "--devices", "cpu:2", *flags]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path,
                              env={**os.environ, "PYTHONPATH": str(ROOT)})

    return started


def test_a_recipe_trains_as_it_stands(run, tmp_path, short_set):
    """The network is IResNet, which has no dropout."""
    done = run("", "--max-steps", "1")
    assert done.returncode == 0, done.stderr
    assert "tiny.py: keys that nothing here reads: num_image" in done.stdout
    folder = tmp_path / "work_dirs" / "tiny" / f"r18-cosface-{short_set.name}"
    assert "Dropout" not in (folder / "model-symbol.json").read_text()
    found = read_arrays(folder / "model-0000.params")
    assert found.arrays[found.names.index("arg:pre_fc1_weight")].shape == (32, 512 * 49)


@pytest.mark.parametrize("network, optimizer", [
    ("r18", "sgd"), pytest.param("vit_t_dp005_mask0", "adamw", marks=pytest.mark.slow)])
@pytest.mark.parametrize("engine", ["torch"])  # what is loaded does not depend on it
def test_its_checkpoints_go_on_as_a_state_of_ours(network, optimizer, run, tmp_path, short_set):
    """After an epoch of three batches a state becomes checkpoints of three ranks; a run from them takes the step that
    the first run took. 5e-4 of the length, found 6e-5 (of momentum): what is scaled for PyTorch and back is rounded,
    and a step multiplies that by the batch norm of three images; what stayed behind would be off by its own length. Of
    moving statistics a checkpoint has the mean of all replicas. A ViT without masks has no token for them, of which a
    checkpoint has one and no moments."""
    pytest.importorskip("torch")
    twice = f"config.num_epoch = 2\nconfig.network = {network!r}\nconfig.optimizer = {optimizer!r}\n"
    name = f"{network}-cosface-{short_set.name}"
    done = run(twice, "--max-steps", "4", "--state-every", "3")
    assert done.returncode == 0, done.stderr
    state = tmp_path / "work_dirs" / "tiny" / name / "state" / "step-000000003"
    assert convert_torch([str(state), str(tmp_path / "theirs"), "--ranks", "3"]) == 0
    done = run(twice + "config.resume = True\nconfig.output = 'theirs'\n", "--max-steps", "4")
    assert done.returncode == 0, done.stderr
    assert "going on after step 3 from theirs/checkpoint_gpu_*.pt" in done.stdout
    found = [SavedState(tmp_path / root / name / "state" / "step-000000004") for root in ("work_dirs/tiny", "theirs")]
    assert found[0].progress.epoch == found[1].progress.epoch == 1
    ours, theirs = (state.backbone() for state in found)
    rows, their_rows = (state.rows(0, 11, 1) for state in found)
    for expected, actual in ((ours.parameters, theirs.parameters), (ours.momentum, theirs.momentum),
                             (mean(ours.auxiliary), mean(theirs.auxiliary)), (rows._asdict(), their_rows._asdict())):
        assert actual.keys() == expected.keys()
        read = {key: array for key, array in expected.items() if key != "fc1_gamma"}  # always 1; theirs has no moment
        apart = [np.square(actual[key] - array).sum() for key, array in read.items()]
        assert np.sqrt(sum(apart)) <= 5e-4 * np.sqrt(sum(np.square(array).sum() for array in read.values()))
