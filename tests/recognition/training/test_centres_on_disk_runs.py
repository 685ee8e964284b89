# SPDX-License-Identifier: Apache-2.0
"""Runs whose class centres are on a disk: the states of those in memory, and the same bits after a resume."""
from __future__ import annotations

import shutil
from pathlib import Path
from typing import Callable

import pytest

from recognition.config.options import Config
from recognition.training.run import train
from recognition.training.states.state import saved_states

ARRAYS = ("centres", "momentum", "bias", "bias_momentum")


def shards_of(state: Path) -> dict[str, bytes]:
    """The bytes of the files of W and its momentum, of two shards."""
    return {path.name: path.read_bytes() for path in state.glob("*.npy")}


@pytest.mark.parametrize("numbers", ["float32", "bfloat16"])
def test_a_run_on_a_disk_is_that_in_memory_and_goes_on(engine: str, numbers: str, make: Callable[..., Config],
                                                       tmp_path: Path) -> None:
    """Two devices, half of the classes in a step. The samples are drawn ahead, and are those of a run that stopped."""
    if engine == "mxnet" and numbers != "float32":
        pytest.skip("MXNet keeps class centres as float32")
    options = {"devices": "cpu:2", "per_batch_size": 6, "sample_ratio": 0.5, "centers_numbers": numbers,
               "state_every": 2, "max_steps": 4}
    fast = tmp_path / "fast"
    on_disk = make(**options, centers_on="disk", centers_folder=str(fast), extra_model_name="disk")
    in_memory = make(**options, extra_model_name="memory")
    states = {}
    for config in (on_disk, in_memory):
        assert train(config) == 0
        states[config.extra_model_name] = saved_states(Path(config.output_dir) / "state")
    last = shards_of(states["disk"][-1])
    assert sorted(last) == sorted(f"{array}-{shard}.npy" for array in ARRAYS for shard in (0, 1))
    assert last == shards_of(states["memory"][-1])
    assert not list(fast.iterdir())

    shutil.rmtree(states["disk"][-1])
    assert train(make(**options, centers_on="disk", centers_folder=str(fast), extra_model_name="disk",
                      resume="yes")) == 0
    assert shards_of(saved_states(Path(on_disk.output_dir) / "state")[-1]) == last
