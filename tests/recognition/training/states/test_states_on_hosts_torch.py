# SPDX-License-Identifier: Apache-2.0
"""States where hosts share no folder: each keeps its shards, and the parts are found, missed by name, or gathered."""
from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from common.gather_states import main as gather
from recognition.training.states.folder import saved_states
from recognition.training.states.state import SavedState
from tests.recognition.training.in_process import run_here
from tests.recognition.training.test_several_processes import CONFIG, NETWORK, ROOT

HERE = socket.gethostname()
# The first half of the processes are on "host" a, the others on b: each host has a folder of its own.
ON_A_HOST = """
import os, sys
sys.argv[0] = "train_parall.py"
host = "ab"[int(os.environ["RANK"]) * 2 // int(os.environ["WORLD_SIZE"])]
sys.argv += ["--models-root", sys.argv.pop(1) + "/" + host]
from train_parall import main
sys.exit(main())
"""
FLAGS = ["--engine", "torch", "--devices", "cpu", "--lr", "0.01", "--verbose", "100", "--frequent", "2",
         "--state-every", "2"]


@pytest.fixture
def folder(tiny_set: Path, tmp_path: Path) -> Path:
    pytest.importorskip("torch")
    (tmp_path / "plain.py").write_text(NETWORK)
    (tmp_path / "config.py").write_text(CONFIG.format(sample=str(ROOT / "sample_config.py"), data=str(tiny_set)))
    (tmp_path / "on_a_host.py").write_text(ON_A_HOST)
    return tmp_path


def train(folder: Path, name: str, steps: int, *flags: str, processes: int = 2) -> tuple[int, str, str]:
    """A run of the processes of two hosts; 12 images a step."""
    done = subprocess.run(
        [sys.executable, "-m", "recognition.launch", "-np", str(processes), "--", sys.executable,
         str(folder / "on_a_host.py"), str(folder / name), "--config", str(folder / "config.py"), *FLAGS,
         "--per-batch-size", str(12 // processes), "--max-steps", str(steps), *flags], cwd=ROOT, capture_output=True,
        text=True, timeout=600, env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})
    return done.returncode, done.stdout, done.stderr


def states(folder: Path, name: str, host: str) -> Path:
    return folder / name / host / "plain-arcface-tiny" / "state"


def files(state: Path) -> list[str]:
    return sorted(path.name for path in state.glob("centres-*.npy"))


def arrays(*parts: Path) -> dict[str, np.ndarray]:
    """All arrays of a state, of all its parts."""
    found = {path.name: np.load(path) for part in parts for path in part.glob("*.npy")}
    for part in parts:
        with np.load(part / "backbone.npz") as rest:
            found.update(rest)
    return found


def assert_same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    """Bit for bit."""
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_each_host_keeps_its_shards_and_goes_on_with_the_same_bits(folder: Path) -> None:
    status, out, err = train(folder, "through", 6, "--states-on", "hosts")
    assert status == 0, out + err
    assert f"each of {HERE}, {HERE} keeps its own part of the states" in out
    a, b = (states(folder, "through", host) / "step-000000006" for host in "ab")
    assert (files(a), files(b)) == (["centres-0.npy"], ["centres-1.npy"])
    assert not SavedState(a).problem() and not SavedState(b).problem()
    assert train(folder, "stopped", 4, "--states-on", "hosts")[0] == 0
    status, out, err = train(folder, "stopped", 6, "--states-on", "hosts", "--resume")
    assert status == 0, out + err
    assert "going on after step 4" in out
    halves = [states(folder, "stopped", host) / "step-000000006" for host in "ab"]
    assert_same(arrays(*halves), arrays(a, b))


def test_what_one_host_lacks_is_named_and_gathered_states_go_on_anywhere(folder: Path) -> None:
    assert train(folder, "run", 4, "--states-on", "hosts")[0] == 0
    a, b = states(folder, "run", "a"), states(folder, "run", "b")
    b.rename(b.with_name("away"))  # of one host the disk is new
    status, _, err = train(folder, "run", 6, "--states-on", "hosts", "--resume", "auto")
    assert status == 2 and err.count("error: ") == 1, err
    assert f"--resume: {HERE}: found no {b}/step-000000004, and so none of the shards of this host" in err
    b.with_name("away").rename(b)

    flags = ["--config", str(folder / "config.py"), *FLAGS, "--per-batch-size", "12", "--max-steps", "6",
             "--models-root", str(folder / "run" / "a"), "--resume"]
    status, _, err = run_here("train_parall", *flags)
    assert status == 2 and err.splitlines()[-1] == (
        f"error: --resume: {a}/step-000000004: not all of W that is needed is here: {HERE} has shards 1; python "
        "-m common.gather_states puts the parts of a state together, for a run on other hosts than those that saved it")

    wanted = arrays(a / "step-000000004", b / "step-000000004")
    assert gather([str(a), str(b), "--output", str(folder / "gathered")]) == 0
    assert gather([str(a), str(b), "--output", str(a)]) == 0  # in place
    for whole in (folder / "gathered" / "step-000000004", a / "step-000000004"):
        assert_same(arrays(whole), wanted)
        assert json.loads((whole / "manifest.json").read_text())["format"] == 2 and not SavedState(whole).problem()
    status, out, err = run_here("train_parall", *flags)
    assert status == 0, err
    assert "W, saved in 2 shards, is cut anew into 1\n" in out
    assert [path.name for path in saved_states(a)] == ["step-000000004", "step-000000006"]
