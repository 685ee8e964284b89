# SPDX-License-Identifier: Apache-2.0
"""What processes save together, and what is left when one of them cannot."""
from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recognition.engines.cpu.shard import CpuShard
from recognition.engines.interface import BackboneState
from recognition.errors import LostProcess, UserError
from recognition.head.shard import split_classes
from recognition.io.checksums import Sum
from recognition.training.states import save as module
from recognition.training.states.find import find_state
from recognition.training.states.save import save_state
from recognition.training.states.state import Progress
from tests.recognition.threads import Thread, together

CLASSES, PROCESSES = 7, 3
WEIGHTS = {"w": np.ones(3, np.float32)}


def save(folder: Path, step: int) -> list[Any]:
    ranges = split_classes(CLASSES, 2 * PROCESSES)

    def one(process: Thread) -> Path:
        shards = [CpuShard(*pair, 4, normalised=True, scale=64) for pair in ranges[2 * process.rank :][:2]]
        return save_state(folder, Progress(step=step), BackboneState(WEIGHTS, WEIGHTS, [WEIGHTS]), shards,
                          communicator=process)

    return together(one)


def test_the_manifest_has_the_sums_of_all_processes(tmp_path: Path) -> None:
    (path, *others) = save(tmp_path, 4)
    assert others == [path] * 2
    states = together(lambda process: find_state(tmp_path, "yes", communicator=process))
    assert [state.path for state in states] == [path] * PROCESSES
    assert sorted(states[0].sums) == sorted(["backbone.npz", *(
        f"{name}-{i}.npy" for name in ("centres", "momentum", "bias", "bias_momentum") for i in range(6))])
    (path / "bias-5.npy").unlink()  # seen by one process, refused by all
    found = together(lambda process: find_state(tmp_path, "yes", communicator=process))
    assert all(isinstance(error, UserError) and "no state before it is whole" in str(error) for error in found)
    assert all("bias-5.npy: is missing" in str(error) for error in found)


@pytest.mark.parametrize("rank", range(PROCESSES))
def test_where_one_process_cannot_write_none_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    """The one says why, the others that another does; the state before stays, and nothing is left of this one."""
    (before, *_) = save(tmp_path, 2)
    write = module.write_npy

    def full(path: Path, array: np.ndarray) -> Sum:
        if path.name == f"momentum-{2 * rank + 1}.npy":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, array)

    monkeypatch.setattr(module, "write_npy", full)
    errors = save(tmp_path, 4)
    assert "cannot be written: No space left on device" in str(errors[rank]) and errors[rank].status == 2
    assert all(isinstance(error, LostProcess) and "another process could not save" in str(error)
               for i, error in enumerate(errors) if i != rank)
    assert list(tmp_path.iterdir()) == [before]
    monkeypatch.setattr(module, "write_npy", write)
    assert save(tmp_path, 4)[0].name == "step-000000004"


@pytest.mark.parametrize("name", ["backbone.npz", "manifest.json"])
def test_where_the_first_cannot_write_the_rest_none_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                          name: str) -> None:
    save(tmp_path, 2)

    def full(*_: object) -> Sum:
        raise OSError(errno.ENOSPC, "No space left on device")

    if name == "manifest.json":
        monkeypatch.setattr(Path, "write_text", full)
    else:
        monkeypatch.setattr(module, "write_npz", full)
    errors = save(tmp_path, 4)
    assert f"{name}: cannot be written: No space left on device" in str(errors[0])
    assert [error.status for error in errors] == [2, LostProcess.status, LostProcess.status]
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000002"]
