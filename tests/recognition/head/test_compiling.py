# SPDX-License-Identifier: Apache-2.0
"""What is compiled ahead is what a step calls; the guess at what is missing; processes that fill the cache."""
from __future__ import annotations

import dataclasses
import importlib
import os
import time
from pathlib import Path

import numpy as np
import pytest

from recognition.config.cli import parse_args
from recognition.engines.cpu import compiling
from recognition.engines.cpu.compiling import ADAMW_ONLY, KERNELS, SGD_ONLY, Compiling, compile_kernels, missing, needed
from recognition.engines.cpu.shard import CpuShard
from recognition.head.margin import Margin
from recognition.head.sampling import ClassSampler
from recognition.head.sharded import ShardedHead
from recognition.optim.adamw import AdamW
from recognition.processes.communicator import SingleProcess

CONFIG = parse_args("train_parall", ["--devices", "cpu"], environ={})


def signatures() -> dict[str, set[tuple]]:
    found = {}
    for name in KERNELS:
        module, function = name.split(".")
        found[name] = set(getattr(importlib.import_module(f"recognition.engines.cpu.{module}"), function).signatures)
    return found


def step(adamw: AdamW | None, normalised: bool, sub_centres: int, ratio: float) -> None:
    shard = CpuShard(0, 40, 24, normalised=normalised, scale=64.0, sub_centres=sub_centres, with_bias=not normalised,
                     ceiling=32.0)
    head = ShardedHead([shard], Margin(normalised=normalised), SingleProcess(), sampler=ClassSampler(ratio, 0),
                       adamw=adamw)
    head.forward_backward(np.random.default_rng(0).normal(size=(5, 24)).astype(np.float32), np.arange(5))
    head.step(0.1)


def test_steps_call_what_was_compiled() -> None:
    compile_kernels(list(KERNELS))
    before = signatures()
    assert all(before.values())
    for adamw in (None, AdamW()):
        for normalised, sub_centres, ratio in ((True, 1, 1.0), (True, 3, 0.5), (False, 1, 1.0)):
            step(adamw, normalised, sub_centres, ratio)
    assert signatures() == before


def test_missing(tmp_path: Path) -> None:
    environ = {"NUMBA_CACHE_DIR": str(tmp_path)}
    assert missing(list(KERNELS), environ) == list(KERNELS)
    folder = tmp_path / "parallel_0123"
    folder.mkdir()
    for name in KERNELS:
        (folder / f"{name}-123.py311.nbi").touch()
    assert missing(list(KERNELS), environ) == []
    old = time.time() - 1e9
    os.utime(folder / "kernels.centre_gradients-123.py311.nbi", (old, old))
    assert missing(list(KERNELS), environ) == ["kernels.centre_gradients"]
    assert missing([SGD_ONLY], environ) == []


def test_processes_fill_the_cache(tmp_path: Path) -> None:
    environ = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    names = ["kernels.inverse_norms", "kernels.similarities_at"]
    with Compiling(names, environ) as running:
        assert len(running._processes) == 2
        running.wait()
    assert missing(names, environ) == []
    with Compiling(names, environ) as running:
        assert running._processes == []


def test_the_block_ends_them(tmp_path: Path) -> None:
    with Compiling(list(KERNELS), {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}) as running:
        processes = running._processes
    assert len(processes) == 2 and all(process.returncode is not None for process in processes)


def test_of_several_processes_on_a_host_the_first_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr(compiling.subprocess, "Popen", lambda command, **_: started.append(command) or 1 / 0)
    environ = {"NUMBA_CACHE_DIR": str(tmp_path), "HOROVOD_LOCAL_RANK": "1", "HOROVOD_LOCAL_SIZE": "2"}
    Compiling(list(KERNELS), environ)
    assert started == []
    with pytest.raises(ZeroDivisionError):
        Compiling(list(KERNELS), {**environ, "HOROVOD_LOCAL_RANK": "0"})
    assert len(started) == 1


@pytest.mark.parametrize("changes, expected", [
    ({}, set(KERNELS) - {ADAMW_ONLY}), ({"optimizer": "adamw"}, set(KERNELS) - {SGD_ONLY}),
    ({"loss_name": "triplet", "per_batch_size": 60}, set()), ({"devices": (("gpu", 0),)}, set()),
    ({"devices": (("gpu", 0),), "centers_on": "cpu"}, set(KERNELS) - {ADAMW_ONLY}),
    ({"devices": (("gpu", 0),), "centers_on": "cpu", "sample_ratio": 0.1}, set())])
def test_needed(changes: dict[str, object], expected: set[str]) -> None:
    assert set(needed(dataclasses.replace(CONFIG, **changes))) == expected  # type: ignore[arg-type]
