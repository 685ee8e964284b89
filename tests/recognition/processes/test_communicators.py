# SPDX-License-Identifier: Apache-2.0
"""Collectives of two real processes, through Horovod and through parameter servers, against NumPy."""
from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from recognition.engines.mxnet.processes.choose import make_communicator
from recognition.engines.mxnet.processes.kvstore_communicator import await_scheduler
from recognition.errors import UserError
from recognition.processes.communicator import SingleProcess, largest

ROOT = Path(__file__).resolve().parents[3]
WORKER = """
import sys
import numpy as np
from recognition.engines.mxnet.imports import mx
from recognition.processes.communicator import largest
from recognition.engines.mxnet.processes.choose import make_communicator

with make_communicator(sys.argv[1]) as communicator:
    rank, size = communicator.rank, communicator.size
    assert size == 2
    random = np.random.RandomState(0)
    for dtype, tolerance in (("float32", 1e-6), ("float64", float(sys.argv[2])), ("int64", 0)):
        both = (random.standard_normal((2, 6, 5)) * 1000).astype(dtype)
        total = both.sum(axis=0)
        check = lambda found, wanted: (np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance * 1000),
                                       np.testing.assert_equal(found.dtype, np.dtype(dtype)))
        check(communicator.all_gather(both[rank]), both.reshape(12, 5))
        check(communicator.all_reduce(both[rank].copy()), total)
        check(communicator.reduce_scatter(both[rank].copy()), total[3 * rank : 3 * rank + 3])
    gathered = communicator.all_gather(np.array([[-np.inf, 2**40 + 1.0, 1e-30 * (1 + rank)]]))
    assert gathered[:, 0].tolist() == [-np.inf] * 2 and gathered[:, 1].tolist() == [2**40 + 1.0] * 2
    assert communicator.all_gather(np.array([2**40 + rank])).tolist() == [2**40, 2**40 + 1]
    assert largest(communicator, 7 * rank) == 7
    arrays = [mx.nd.full((3, 4), rank + i) for i in range(3)]
    for factor in (1, 2):
        communicator.sum_in_place("test", arrays)
        for i, array in enumerate(arrays):
            np.testing.assert_array_equal(array.asnumpy(), (1 + 2 * i) * factor)
    before = communicator.bytes_sent
    communicator.all_gather(np.zeros((6, 5), np.float32))
    communicator.all_reduce(np.zeros((6, 5), np.float32))
    communicator.reduce_scatter(np.zeros((6, 5), np.float32))
    print("sent", communicator.bytes_sent - before, flush=True)
"""


def launch(folder: Path, *arguments: str) -> list[str]:
    worker = folder / "worker.py"
    worker.write_text(WORKER)
    run = subprocess.run([sys.executable, "-m", "recognition.launch", "-np", "2", "--", sys.executable, str(worker),
                          *arguments], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True,
                         text=True, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr
    return sorted(run.stdout.splitlines())


def test_through_horovod(horovod: None, tmp_path: Path) -> None:
    """A ring of two: a gather sends the whole, a scatter half, a reduction both halves."""
    assert launch(tmp_path, "device", "1e-15") == ["[rank 1] sent 300", "sent 300"]  # 120 + 120 + 60


def test_through_servers(tmp_path: Path) -> None:
    """Pushed: twice the part of a gather, the array else. A float64 is sent as two float32, each rounded by its sum."""
    found = launch(tmp_path, "dist_sync", "1e-6", "--kvstore", "dist_sync")
    assert found == ["[rank 1] sent 480", "sent 480"]  # 240 + 120 + 120


def test_one_process_has_all() -> None:
    single = SingleProcess()
    array = np.arange(6.0)
    for collective in (single.all_gather, single.all_reduce, single.reduce_scatter):
        assert collective(array) is array
    assert largest(single, 3) == 3
    with make_communicator("device", {}) as made:
        assert isinstance(made, SingleProcess)


@pytest.mark.parametrize("kvstore, environ, words", [
    ("dist_sync", {}, "recognition.launch"),
    ("dist_sync", {"HOROVOD_SIZE": "2", "DMLC_ROLE": "worker"}, "one of the two"),
])
def test_an_environment_that_does_not_fit(kvstore: str, environ: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match=f"^kvstore: .*{words}"):
        make_communicator(kvstore, environ)


def test_a_scheduler_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """MXNet itself would wait for ever."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        port = str(taken.getsockname()[1])
        environ = {"DMLC_PS_ROOT_URI": "127.0.0.1", "DMLC_PS_ROOT_PORT": port, "DMLC_NUM_SERVER": "1",
                   "DMLC_NUM_WORKER": "1"}
        monkeypatch.setattr("recognition.engines.mxnet.processes.kvstore_communicator.PATIENCE_SECONDS", 0.3)
        with pytest.raises(UserError, match=rf"DMLC_PS_ROOT_URI: no scheduler answers at 127\.0\.0\.1:{port}: Conn"):
            await_scheduler(environ)
        monkeypatch.undo()
        with pytest.raises(UserError, match=r"DMLC_PS_ROOT_URI: no scheduler answers at no host:"):
            await_scheduler({**environ, "DMLC_PS_ROOT_URI": "no host"})
        with pytest.raises(UserError, match=r"^DMLC_NUM_SERVER: not set, expected what recognition\.launch"):
            await_scheduler({**environ, "DMLC_NUM_SERVER": ""})
        taken.listen()
        await_scheduler(environ)


def test_a_monitor_that_is_none() -> None:
    with pytest.raises(UserError, match=r"^RECOGNITION_MONITOR: found 'garbage', expected host:port:token"):
        make_communicator("device", {"RECOGNITION_MONITOR": "garbage"})
