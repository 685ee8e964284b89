# SPDX-License-Identifier: Apache-2.0
"""Which processes a run with PyTorch finds: the environments of torchrun, horovodrun, mpirun and of schedulers."""
from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from recognition.engines.torch.processes import meeting
from recognition.engines.torch.processes.choose import make_communicator, place_of
from recognition.errors import LostProcess, UserError
from recognition.processes.communicator import SingleProcess

ROOT = Path(__file__).resolve().parents[4]
WORKER = """
import sys
from recognition.engines.torch.processes.choose import make_communicator
from recognition.errors import command
from recognition.processes.communicator import largest

@command
def main():
    with make_communicator(sys.argv[1]) as communicator:
        assert largest(communicator, communicator.rank) == communicator.size - 1
        # A line and its end in one piece, as two processes share what is read, and torchrun's do not buffer.
        print(f"rank {communicator.rank} of {communicator.size}\\n", end="", flush=True)
    return 0

sys.exit(main())
"""
KVSTORE = "kvstore: dist_sync is an all-reduce with PyTorch: no servers, the same sums"
SCHEDULER = {"DMLC_PS_ROOT_URI": "127.0.0.1", "DMLC_PS_ROOT_PORT": "9000", "DMLC_NUM_WORKER": "2"}


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def environment(**more: str) -> dict[str, str]:
    """Python writes a line and its end in one piece here: two processes share what is read."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "", **more}


@pytest.fixture
def worker(tmp_path: Path) -> str:
    (tmp_path / "worker.py").write_text(WORKER)
    return str(tmp_path / "worker.py")


def told(output: str) -> list[str]:
    """The lines of the workers, sorted; PyTorch 2.9 prints some of Gloo's beside."""
    return sorted(line for line in output.splitlines() if line and "[Gloo]" not in line)


def said(*command: str) -> list[str]:
    run = subprocess.run([sys.executable, *command], env=environment(), capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr
    return told(run.stdout)


def test_torchrun(worker: str) -> None:
    """Its agent holds the store; ``dist_sync`` is not wrong there, and one process says what becomes of it."""
    assert said("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", free_port(), worker,
                "dist_sync") == [KVSTORE, "rank 0 of 2", "rank 1 of 2"]


def test_horovodrun(horovod: None, worker: str) -> None:
    """The first process tells the others through horovodrun's server where it listens."""
    lines = said("-m", "horovod.runner.launch", "--gloo", "-np", "2", "--network-interface", "lo", sys.executable,
                 worker, "device")
    assert [line.partition(":")[2] or line for line in lines if "rank" in line] == ["rank 0 of 2", "rank 1 of 2"]


def test_a_scheduler_and_workers_without_numbers(worker: str) -> None:
    """As a script for parameter servers starts them: the server ends at once, the scheduler after the workers."""
    port, runs = free_port(), []
    for role in ("worker", "server", "scheduler", "worker"):
        runs.append(subprocess.Popen([sys.executable, worker, "dist_sync"], stdout=subprocess.PIPE, text=True,
                                     env=environment(**{**SCHEDULER, "DMLC_PS_ROOT_PORT": port, "DMLC_ROLE": role})))
    lines = told("".join(run.communicate(timeout=120)[0] for run in runs))
    assert [run.returncode for run in runs] == [0, 0, 0, 0]
    assert lines == [KVSTORE, "rank 0 of 2", "rank 1 of 2"]


def test_a_process_alone() -> None:
    for environ in ({}, {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}, {"PMI_SIZE": "1"}):
        with make_communicator("device", environ) as made:
            assert isinstance(made, SingleProcess)


def test_the_place_of_a_process() -> None:
    assert place_of({"RANK": "3", "WORLD_SIZE": "4"}) == (3, 4, "RANK")
    assert place_of({"HOROVOD_RANK": "0", "HOROVOD_SIZE": "2"}) == (0, 2, "HOROVOD_RANK")
    assert place_of({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}) == (1, 2, "OMPI_COMM_WORLD_RANK")
    assert place_of({"PMI_RANK": "1", "PMI_SIZE": "2"}) == (1, 2, "PMI_RANK")
    both = {"RANK": "1", "WORLD_SIZE": "2", "HOROVOD_RANK": "1", "HOROVOD_SIZE": "2"}  # recognition.launch sets both
    assert place_of(both) == (1, 2, "RANK")


@pytest.mark.parametrize("kvstore, environ, line", [
    ("device", {"RANK": "0"}, r"RANK: found 0 without WORLD_SIZE, expected both or none"),
    ("device", {"WORLD_SIZE": "2"}, r"WORLD_SIZE: found 2 without RANK, expected both or none"),
    ("device", {"RANK": "x", "WORLD_SIZE": "2"}, r"RANK: found 'x', expected a whole number from 0 to \d+"),
    ("device", {"RANK": "2", "WORLD_SIZE": "2"}, r"RANK: found 2, expected less than WORLD_SIZE, 2"),
    ("device", {"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "70000"}, r"MASTER_PORT: found '70000', expected a"),
    ("device", {"RANK": "0", "WORLD_SIZE": "2", "HOROVOD_RANK": "0", "HOROVOD_SIZE": "4"},
     r"RANK: found 0 of 2, and HOROVOD_RANK 0 of 4, expected one launcher, or the same numbers"),
    ("device", {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"},
     r"OMPI_COMM_WORLD_RANK: found 1, but not where process 0 can be reached: expected MASTER_ADDR and MASTER_PORT"),
    ("dist_sync", {}, r"kvstore: dist_sync needs several processes, which `python -m recognition\.launch -np N"),
    ("dist_sync", {**SCHEDULER, "DMLC_ROLE": "worker", "RANK": "0", "WORLD_SIZE": "2"},
     r"DMLC_ROLE: found worker beside RANK, expected one of the two"),
    ("dist_sync", {"DMLC_ROLE": "worker"}, r"DMLC_PS_ROOT_URI: not set, expected what recognition\.launch --servers"),
    ("dist_sync", {"DMLC_ROLE": "boss"}, r"DMLC_ROLE: found 'boss', expected worker, server or scheduler"),
    ("device", {"RECOGNITION_MONITOR": "garbage"}, r"RECOGNITION_MONITOR: found 'garbage', expected host:port:token"),
])
def test_an_environment_that_contradicts_itself(kvstore: str, environ: dict[str, str], line: str) -> None:
    with pytest.raises(UserError, match=f"^{line}"):
        make_communicator(kvstore, environ)


def test_others_that_do_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that another program has, a first process that never listens, and others that stay away."""
    monkeypatch.setattr(meeting, "PATIENCE_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        environ = {"RANK": "0", "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
                   "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "3"}
        with pytest.raises(LostProcess, match=rf"^MASTER_PORT: port {port} of 127\.0\.0\.1 cannot be had: Address"):
            make_communicator("device", environ)
    with pytest.raises(LostProcess, match=rf"^MASTER_ADDR: nobody answers at 127\.0\.0\.1:{port}: Connection refused"):
        make_communicator("device", {**environ, "RANK": "1", "LOCAL_RANK": "1"})
    with pytest.raises(LostProcess, match=r"^process 0 of 3: 1, 2 did not come within 0\.5 s$"):
        make_communicator("device", environ)


def test_two_processes_of_one_rank() -> None:
    store, port = meeting.hold("127.0.0.1", 0, False, "MASTER_PORT")
    meeting.gather_all(store, 0, 1)
    with pytest.raises(UserError, match=r"^rank: found 0 in two processes, expected each once"):
        meeting.gather_all(meeting.visit("127.0.0.1", port, "MASTER_ADDR"), 0, 1)


def test_a_server_of_horovodrun_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "PATIENCE_SECONDS", 0.5)
    environ = {"HOROVOD_RANK": "1", "HOROVOD_SIZE": "2", "HOROVOD_GLOO_RENDEZVOUS_ADDR": "127.0.0.1",
               "HOROVOD_GLOO_RENDEZVOUS_PORT": free_port()}
    with pytest.raises(LostProcess, match=r"^HOROVOD_GLOO_RENDEZVOUS_ADDR: the server of horovodrun at 127\.0\.0\.1:"):
        make_communicator("device", environ)
