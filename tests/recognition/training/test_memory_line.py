# SPDX-License-Identifier: Apache-2.0
"""The line, before training, that a run needs more memory than there is."""
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from recognition.config.cli import parse_args
from recognition.config.options import Config
from recognition.engines.configured import build_network
from recognition.plan import this_run
from recognition.plan.this_run import memory_line, planned_memory
from recognition.training.run import train

GB = 10**9
CLASSES = 85_742


def configured(*flags: str, devices: str = "cpu", entry: str = "train_parall", **changes: Any) -> Config:
    from recognition.config.devices import parse_devices

    return dataclasses.replace(parse_args(entry, flags, environ={}), devices=parse_devices(devices), **changes)


def line_of(config: Config, engine: str, free: Sequence[int] = (), processes: int = 1) -> str:
    """:param free: bytes of each GPU."""
    stand_in = SimpleNamespace(name=engine, free_memory=lambda device: free[device[1]])
    return memory_line(config, build_network(config), stand_in, CLASSES, processes)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["mxnet", "torch"])
def test_an_r100_at_the_preset_batch_is_said_to_need_more_than_16_gb(name: str,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """What processes held, MXNet: 4.4 GB of maps for 32 images, so 17.5 for 128."""
    config = configured("--network=r100")
    monkeypatch.setattr(this_run, "available_memory", lambda: 16 * GB)
    line = line_of(config, name)
    assert line.startswith("memory: by its plan this run needs 19.") and "of this machine, which has 16.0 GB" in line
    assert "(maps 1" in line and "parameters 0.8, libraries 0.5, head 0.4)" in line
    assert "a smaller --per-batch-size (it is 128) or memonger = True in config.py takes less" in line
    assert not line_of(dataclasses.replace(config, per_batch_size=32), name)
    assert not line_of(dataclasses.replace(config, memonger=True), name)
    monkeypatch.setattr(this_run, "available_memory", lambda: 24 * GB)
    assert not line_of(config, name)


def test_processes_of_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    config = configured("--network=y1", "--per-batch-size=32")
    monkeypatch.setattr(this_run, "available_memory", lambda: 5 * GB)
    assert not line_of(config, "mxnet")
    monkeypatch.setenv("HOROVOD_LOCAL_RANK", "0")
    monkeypatch.setenv("HOROVOD_LOCAL_SIZE", "4")
    assert "of this machine; 4 processes, which has 5.0 GB free" in line_of(config, "mxnet", processes=4)


def test_a_gpu_is_compared_for_itself_and_the_host_with_its_centres(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(this_run, "available_memory", lambda: GB // 10)
    config = configured("--network=r50", devices="gpu:0,1")
    assert not line_of(config, "torch", [80 * GB, 80 * GB])
    assert "of gpu 1, which has 7.0 GB free" in line_of(config, "torch", [80 * GB, 7 * GB])
    on_host = dataclasses.replace(config, centers_on="cpu", num_classes=10**7)
    sizes = planned_memory(on_host, build_network(on_host), "torch", 10**7, 1)
    assert sizes[1]["head"] > 2 * 10**7 * 512 * 4 > 20 * sizes[0]["class centres W"]
    assert "of this machine, which has 0.1 GB free" in line_of(on_host, "torch", [80 * GB, 80 * GB])


def test_the_head_is_that_of_the_entry_point_and_the_loss() -> None:
    """train.py has all of W in each process; train_parall.py cuts it over all of them; triplets have none."""
    def head(config: Config) -> int:
        return planned_memory(config, build_network(config), "mxnet", CLASSES, 8)[0]["class centres W"]

    small = ("--network=y1", "--per-batch-size=6")
    assert head(configured(*small, entry="train")) == CLASSES * 128 * 4
    assert head(configured(*small, entry="train", devices="cpu:2")) == CLASSES * 128 * 4
    assert head(configured(*small)) == -(-CLASSES // 8) * 128 * 4
    assert head(configured(*small, "--loss=triplet")) == 0


def test_a_run_says_the_line_and_goes_on(engine: str, make: Callable[..., Config], monkeypatch: pytest.MonkeyPatch,
                                         capsys: pytest.CaptureFixture[str]) -> None:
    assert train(make(max_steps=1)) == 0
    assert "memory:" not in capsys.readouterr().out
    monkeypatch.setattr(this_run, "available_memory", lambda: GB // 10)
    assert train(make(max_steps=1, extra_model_name="b")) == 0
    out = capsys.readouterr().out
    assert out.count("memory: by its plan this run needs 0.5 GB (") == 1 and "which has 0.1 GB free" in out
