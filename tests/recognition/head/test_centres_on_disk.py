# SPDX-License-Identifier: Apache-2.0
"""Class centres in mapped files on a disk: the bits of those in memory, rows read ahead, and disks without room."""
from __future__ import annotations

import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable

import numpy as np
import pytest

from recognition.engines.cpu.shard import CpuShard
from recognition.errors import UserError
from recognition.head.margin import Margin
from recognition.head.sampling import ClassSampler
from recognition.head.shard import split_classes
from recognition.head.sharded import ShardedHead
from recognition.io import mapped
from recognition.optim.adamw import AdamW
from recognition.processes.communicator import SingleProcess
from tests.recognition.head.shards import on_context, on_cpu, on_torch

CLASSES, DIM, STEPS = 3000, 40, 4  # rows of 160 bytes, some of which lie on two pages


KINDS = pytest.mark.parametrize("kind", [
    on_cpu, functools.partial(on_context, on_host=True), functools.partial(on_torch, on_host=True),
    functools.partial(on_torch, on_host=True, in_16_bits=True)], ids=["numba", "mxnet", "torch", "torch, 16 bits"])


def trained(kind: Callable[..., Any], folder: Path | None, adamw: AdamW | None, ahead: bool) -> ShardedHead:
    shards = [kind(start, stop, DIM, normalised=True, scale=64, sub_centres=2, seed=1, folder=folder)
              for start, stop in split_classes(CLASSES, 2)]
    head = ShardedHead(shards, Margin(), SingleProcess(), sampler=ClassSampler(0.1, 3), adamw=adamw)
    random = np.random.RandomState(0)
    batches = [(random.standard_normal((6, DIM)).astype(np.float32), random.randint(0, CLASSES, 6))
               for _ in range(STEPS + 1)]
    for step in range(STEPS):
        if ahead:
            head.expect(batches[step + 1][1])
        head.forward_backward(*batches[step])
        head.step(0.1)
    return head


@KINDS
@pytest.mark.parametrize("adamw", [None, AdamW()], ids=["sgd", "adamw"])
def test_centres_on_a_disk_have_the_bits_of_those_in_memory(kind: Callable[..., Any], adamw: AdamW | None,
                                                            tmp_path: Path) -> None:
    """Samples of steps overlap: what one step writes, the next one reads, although its rows were read ahead before."""
    heads = [trained(kind, folder, adamw, ahead) for folder, ahead in ((None, False), (tmp_path, True))]
    assert not list(tmp_path.iterdir())  # the files have no names
    again = kind(0, CLASSES, DIM, normalised=True, scale=64, sub_centres=2, folder=tmp_path)
    for memory, disk in zip(*(head.shards for head in heads)):
        for name, expected, found in zip(memory.state()._fields, memory.state(), disk.state()):
            assert np.array_equal(expected, found), name
        again.load(disk.state(), disk.start)
    whole = np.concatenate([shard.state().centres for shard in heads[0].shards])
    assert np.array_equal(again.state().centres, whole) and again.norms() == pytest.approx(
        (np.linalg.norm(whole, axis=1).min(), np.linalg.norm(whole, axis=1).max()), rel=1e-6)


def test_all_pages_of_rows_are_read_ahead(tmp_path: Path) -> None:
    """Of the bytes that the threads read there is one on each page that a row of the array lies on."""
    array = mapped.host_zeros((300, 3, 1000), np.float32, tmp_path)  # rows of 12,000 bytes
    array.reshape(300, -1)[:] = 1
    seen: list[np.ndarray] = []

    class Bytes:
        itemsize, shape, base = array.itemsize, array.shape, None

        def reshape(self, *_: int) -> Bytes:
            return self

        view = reshape

        def take(self, places: np.ndarray) -> None:
            seen.append(places)

    reader = mapped.ReadAhead()
    rows = np.array([0, 7, 8, 299])
    reader([Bytes()], rows)  # type: ignore[list-item]
    reader.wait()
    wanted = {page for row in rows.tolist() for page in range(row * 12000 // 4096, (row * 12000 + 11999) // 4096 + 1)}
    assert set((np.concatenate(seen) // 4096).tolist()) == wanted
    reader([array], rows)
    reader.wait()


def test_a_disk_without_room_is_an_error_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10**6))
    with pytest.raises(UserError, match=r"found 0\.0 GB free, expected 205\.0 GB for an array of 100100000 x 512 "):
        CpuShard(0, 100_100_000, 512, normalised=True, scale=64, folder=tmp_path / "new")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: cannot be written"):
        mapped.host_zeros((3, 4), np.float32, tmp_path / "file")
