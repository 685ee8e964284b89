# SPDX-License-Identifier: Apache-2.0
"""Collectives of two and three real processes through torch.distributed, against NumPy; and processes that die."""
from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from recognition.engines.torch.processes.summing import Summing  # noqa: E402
from recognition.processes.communicator import SingleProcess  # noqa: E402

ROOT = Path(__file__).resolve().parents[4]
COLLECTIVES = """
import sys
import numpy as np
from recognition.engines.torch.imports import torch
from recognition.engines.torch.processes.choose import make_communicator
from recognition.engines.torch.shard import TorchShard
from recognition.head.margin import Margin
from recognition.head.shard import split_classes
from recognition.head.sharded import ShardedHead
from recognition.plan.head_costs import sent_parallel
from recognition.processes.communicator import largest

with make_communicator("device") as communicator:
    rank, size = communicator.rank, communicator.size
    random = np.random.RandomState(0)
    for dtype, tolerance in (("float32", 1e-6), ("float64", 1e-15), ("int64", 0)):
        given = (random.standard_normal((size, 6, 5)) * 1000).astype(dtype)
        total = given.sum(axis=0)
        rows = 6 // size
        check = lambda found, wanted: (np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance * 1000),
                                       np.testing.assert_equal(found.dtype, np.dtype(dtype)))
        before = given[rank].copy()
        check(communicator.all_gather(before), given.reshape(-1, 5))
        check(communicator.all_reduce(before), total)
        check(communicator.reduce_scatter(before), total[rows * rank : rows * rank + rows])
        np.testing.assert_array_equal(before, given[rank])
        sums = communicator.all_gather(communicator.all_reduce(before)[None])
        assert (sums == sums[:1]).all()  # the same to the last bit in all processes
    gathered = communicator.all_gather(np.array([[-np.inf, 2**40 + 1.0, 1e-30 * (1 + rank)]]))
    assert gathered[:, 0].tolist() == [-np.inf] * size and gathered[:, 1].tolist() == [2**40 + 1.0] * size
    words = np.frombuffer(b"words", np.uint8)[None]  # cannot be written to
    assert communicator.all_gather(words).tobytes() == b"words" * size
    assert communicator.all_gather(np.zeros((0, 3))).shape == (0, 3)
    assert largest(communicator, 7 * rank) == 7 * (size - 1)

    tensors = [torch.full((3, 4), float(rank + i)) for i in range(3)]  # one bucket
    tensors += [torch.full((4, 3), float(rank)).t(), torch.full((2,), rank, dtype=torch.float64)]
    tensors.append(torch.full((3 << 20,), float(rank), requires_grad=True))  # a bucket of its own
    places = [tensor.data_ptr() for tensor in tensors]
    ranks = sum(range(size))
    for factor in (1, size):
        communicator.sum_in_place("test", tensors)
        for tensor, offset in zip(tensors, (0, 1, 2, 0, 0, 0)):
            assert (tensor == (ranks + size * offset) * factor).all()
    assert [tensor.data_ptr() for tensor in tensors] == places

    before = communicator.bytes_sent, communicator.exchanges
    communicator.all_gather(np.zeros((6, 5), np.float32))
    communicator.all_reduce(np.zeros((6, 5), np.float32))
    communicator.reduce_scatter(np.zeros((6, 5), np.float32))
    communicator.sum_in_place("bytes", [torch.zeros(30), torch.zeros(30)])
    assert communicator.waited > 0
    after = communicator.bytes_sent, communicator.exchanges

    sent = []
    for classes in (30, 3000):
        shard = TorchShard(torch.device("cpu"), *split_classes(classes, size)[rank], 8, normalised=True, scale=64.0)
        head = ShardedHead([shard], Margin(64, 1, 0.5), communicator)
        sent.append(-communicator.bytes_sent)
        head.forward_backward(random.standard_normal((4, 8)).astype(np.float32), random.randint(0, classes, 4))
        head.step(0.1)
        communicator.sum_in_place("gradient", [torch.zeros(120)])
        largest(communicator, 0)
        sent[-1] += communicator.bytes_sent
    assert sent == [sent_parallel(size, 4, 8, 120)] * 2  # however many classes there are

    x, labels = random.standard_normal((4, 8)).astype(np.float32), random.randint(0, 30, 4)
    found = []
    for features in (x, torch.from_numpy(x)):  # on the host, and where a device has them
        shard = TorchShard(torch.device("cpu"), *split_classes(30, size)[rank], 8, normalised=True, scale=64.0)
        found.append(ShardedHead([shard], Margin(64, 1, 0.5), communicator).forward_backward(features, labels))
    host, device = found
    assert isinstance(device.d_features, torch.Tensor) and abs(host.loss - device.loss) < 1e-5
    assert np.abs(host.d_features - device.d_features.numpy()).max() < 1e-5 * np.abs(host.d_features).max()
    print("sent", after[0] - before[0], "in", after[1] - before[1], flush=True)
"""
DYING = """
import os, sys
from recognition.errors import command

@command
def main():
    from recognition.engines.torch.imports import torch
    from recognition.processes.communicator import largest
    from recognition.engines.torch.processes.choose import make_communicator
    with make_communicator("device") as communicator:
        largest(communicator, 1)
        for i in range(100000):
            largest(communicator, i)
            communicator.sum_in_place("gradient", [torch.zeros(1000)])
            if communicator.rank == 1 and i == 30:
                os._exit(9)
    return 0

sys.exit(main())
"""


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def launch(folder: Path, count: int, body: str, *arguments: str) -> subprocess.CompletedProcess:
    (folder / "worker.py").write_text(body)
    return subprocess.run([sys.executable, "-m", "recognition.launch", "-np", str(count), "--", sys.executable,
                           "worker.py", *arguments, "--engine", "torch"], cwd=folder, env=environment(),
                          capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("count, sent", [(2, 540), (3, 800)])
def test_collectives(tmp_path: Path, count: int, sent: int) -> None:
    """Of n = 120 bytes and P processes a gather sends (P - 1) n, a sum 2 (P - 1) / P n, a scatter half of that; here
    a gather, a sum, a scatter and two more sums. A step of a head sends what the planner says.
    Against NumPy a sum may differ by the order of additions. PyTorch 2.9 prints lines of Gloo's beside."""
    run = launch(tmp_path, count, COLLECTIVES)
    assert run.returncode == 0, run.stdout + run.stderr
    lines = [line for line in run.stdout.splitlines() if "[Gloo]" not in line]
    assert sorted(line.partition("sent")[2] for line in lines) == [f" {sent} in 4"] * count


def test_a_process_that_dies_ends_the_others_with_one_line(tmp_path: Path) -> None:
    """Without a launcher's help: each of the others ends by itself, with the status of one that has lost another."""
    (tmp_path / "worker.py").write_text(DYING)
    port = free_port()
    runs = [subprocess.Popen([sys.executable, "worker.py"], cwd=tmp_path, stderr=subprocess.PIPE, text=True,
                             env=environment(RANK=str(rank), WORLD_SIZE="3", LOCAL_RANK=str(rank),
                                             LOCAL_WORLD_SIZE="3", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)))
            for rank in range(3)]
    errors = [run.communicate(timeout=120)[1] for run in runs]
    assert [run.returncode for run in runs] == [75, 9, 75], errors
    for rank in (0, 2):
        assert errors[rank] == (f"error: process {rank} of 3: the exchange broke off: another process ended or hangs, "
                                "and its own output says why\n")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_sum_goes_where_it_belongs_however_tensors_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels last, where they are sent as they lie, turned, and with axes of 1, whose order nobody can tell."""
    sent: list[torch.Tensor] = []

    class Done:
        def wait(self) -> None:
            pass

    def all_reduce(flat: torch.Tensor, async_op: bool) -> Done:
        sent.append(flat.clone())
        flat.add_(1)
        return Done()

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    last = torch.arange(120.0).reshape(2, 3, 4, 5).to(memory_format=torch.channels_last)
    tensors = [last, torch.arange(6.0).reshape(2, 3).t(), torch.arange(9.0).reshape(3, 1, 1, 3), torch.arange(4.0)]
    before, summing = [tensor.clone() for tensor in tensors], Summing(SingleProcess())
    for tensor in tensors:
        summing.add(tensor)
    summing.finish()
    assert torch.equal(sent[0][:120], before[0].permute(0, 2, 3, 1).flatten())
    assert all(torch.equal(tensor, other + 1) for tensor, other in zip(tensors, before))


def test_buckets_keep_the_order_and_part_by_size_and_type(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []

    class Done:
        def wait(self) -> None:
            pass

    def all_reduce(flat: torch.Tensor, async_op: bool) -> Done:
        left.append(len(flat))
        flat.mul_(2)
        return Done()

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    tensors = [torch.full((size,), float(size)) for size in (3, 2, 9, 1)] + [torch.ones(1, dtype=torch.float64)]
    monkeypatch.setattr("recognition.engines.torch.processes.summing.BUCKET_BYTES", 20)
    summing = Summing(SingleProcess())
    for tensor in tensors:
        summing.add(tensor)
    assert left == [5, 9, 1]  # these travel while more tensors come
    summing.finish()
    assert left == [5, 9, 1, 1]
    assert [tensor.tolist() for tensor in tensors] == [[6.0] * 3, [4.0] * 2, [18.0] * 9, [2.0], [2.0]]
    summing.finish()
    assert len(left) == 4  # nothing is left to sum


def test_an_error_of_this_program_is_not_taken_for_a_lost_process(tmp_path: Path) -> None:
    body = ("from recognition.engines.torch.processes.choose import make_communicator\n"
            "with make_communicator('device'):\n    raise RuntimeError('shapes differ')\n")
    run = launch(tmp_path, 1, body)
    assert run.returncode == 1 and re.search("RuntimeError: shapes differ$", run.stderr, re.M)


THREADS = """
import os
from recognition.engines.torch.imports import torch
from recognition.engines.torch.processes.communicator import DistributedCommunicator

with DistributedCommunicator(torch.distributed.HashStore(), 0, 1):
    import torch._dynamo
    during = sorted(open(f"/proc/self/task/{task}/comm").read().strip() for task in os.listdir("/proc/self/task"))
after = sorted(open(f"/proc/self/task/{task}/comm").read().strip() for task in os.listdir("/proc/self/task"))
print(*(any("gloo" in name for name in names) for names in (during, after)))
"""


def test_no_thread_of_gloo_outlives_a_run_that_computes_layers_again() -> None:
    """What PyTorch imports for that keeps the group of processes, if it is the first to import it."""
    done = subprocess.run([sys.executable, "-c", THREADS], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("True False\n", 0), done.stderr
