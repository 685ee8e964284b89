# SPDX-License-Identifier: Apache-2.0
"""The processes that a trainer starts by itself, one for each GPU with PyTorch: when it does, and that it speaks and
ends as one process."""
from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Callable

import pytest

from recognition.launch.own import engine_of_own
from recognition.training.states.state import saved_states

ROOT = Path(__file__).resolve().parents[3]
GPUS = tuple(("gpu", index) for index in range(4))


@pytest.mark.parametrize("engine, devices, environ, count", [
    ("torch", GPUS, {}, 4),
    ("torch", GPUS[:1], {}, 0),
    ("torch", (("cpu", 0), ("cpu", 1)), {}, 0),  # replicas in one process
    ("mxnet", GPUS, {}, 0),  # replicas in one process, as ever
    *(("torch", GPUS, {name: "2"}, 0) for name in ("WORLD_SIZE", "HOROVOD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE",
                                                   "RECOGNITION_WORKER")),
    ("torch", GPUS, {"DMLC_ROLE": "worker"}, 0),
    ("torch", GPUS, {"PMI_SIZE": "1"}, 4),
])
def test_when_a_trainer_starts_processes(engine: str, devices: tuple[tuple[str, int], ...], environ: dict[str, str],
                                         count: int) -> None:
    """One a GPU, unless a launcher has started this process."""
    assert engine_of_own(engine, devices, environ) == ("torch" if count else "")


def test_gpus_that_are_not_there(train_apart: Callable[..., tuple[int, str, str]]) -> None:
    """Both processes start, and their lines and status are those of bad input."""
    pytest.importorskip("torch")
    status, out, err = train_apart("none", "--engine", "torch", environ={"CUDA_VISIBLE_DEVICES": "100,101"})
    assert (status, out) == (2, "")
    assert [re.sub("gpu (.): .*", r"\1", line) for line in err.splitlines()] == ["error: 0", "[rank 1] error: 1"]


def test_it_speaks_as_one_process_and_ends_by_a_signal_with_its_state(start: Callable[..., subprocess.Popen],
                                                                      tmp_path: Path) -> None:
    """CPUs are taken for GPUs, so that the trainer starts one process for each."""
    pytest.importorskip("torch")
    (tmp_path / "sitecustomize.py").write_text("from recognition.launch import own\n"
                                               "own.on_gpus = lambda given: True\n")
    process = start("own", "--engine", "torch", "--devices", "cpu:2", "--per-batch-size", "3", "--max-steps", "1000",
                    "--verbose", "900", environ={"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"})
    below = tmp_path / "own" / "tiny-arcface-tiny"
    while process.poll() is None and not ((below / "history.jsonl").exists()
                                          and (below / "history.jsonl").stat().st_size):
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, out + err
    stopped = re.search(r"^stopped by SIGTERM after step (\d+); --resume", out, re.M)
    assert stopped and [path.name for path in saved_states(below / "state")] == [f"step-{int(stopped[1]):09d}"]
    assert re.search(r"^INFO:root:Epoch\[0\] Batch \[0-2\]\tSpeed: .* samples/sec", err, re.M)
    assert "rank 1" not in out + err and "launch" not in out + err
