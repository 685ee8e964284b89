# SPDX-License-Identifier: Apache-2.0
"""Costs of the head on a device in a step: memory, bytes sent, operations. Formulas alone, without NumPy.

All arrays are float32, but for row numbers, and for W and its moments where they are bfloat16. The tests of costs in
``tests/recognition/plan/`` compare with the arrays that shards hold, ``bench/plan.py`` with the memory of a process.
"""
from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Callable, NamedTuple

from recognition.engines.shards import host_computes
from recognition.engines.sizes import (
    COLUMNS_A_TILE,
    LEAST_ROWS_A_GROUP,
    MOST_GROUPS,
    MXNET_ROWS_A_CHUNK,
    ROWS_A_PIECE,
    TORCH_ROWS_A_CHUNK,
    TRITON_ROWS_A_CHUNK,
    WEIGHTS_A_CHUNK,
)

FLOAT, DOUBLE, INTEGER = 4, 8, 8  # bytes
HALF = 2  # bytes of a number of 16 bits
MOMENTS = {"sgd": 1, "adamw": 2}  # arrays of an optimiser beside each array of parameters
# GB that are not planned. GPU: what published runs held beyond the plan, see bench/plan.py; nothing was measured here.
# CPU: a process that has loaded the libraries holds 0.25, and oneDNN sets up 0.05 to 0.25.
RESERVE_GB = {"gpu": 2.5, "cpu": 0.5}

Memory = dict[str, int]  # bytes by what they are for


@dataclass(frozen=True)
class HeadSize:
    """A device's part of the head."""

    classes: int  # that it holds
    selected: int  # those of them that take part in a step
    batch: int  # rows of features whose similarities it computes
    dim: int  # of a feature
    sub_centres: int = 1
    moments: int = 1
    filtered: bool = False  # whether conflicting negatives are left out
    number_bytes: int = FLOAT  # of W and its moments

    @property
    def rows(self) -> int:
        return self.classes * self.sub_centres

    @property
    def selected_rows(self) -> int:
        return self.selected * self.sub_centres

    @property
    def centres(self) -> int:
        """Bytes of W."""
        return self.rows * self.dim * self.number_bytes

    @property
    def selected_centres(self) -> int:
        return self.selected_rows * self.dim * self.number_bytes

    @property
    def logits(self) -> int:
        """Bytes of one (batch, selected rows) buffer."""
        return self.batch * self.selected_rows * FLOAT

    @property
    def features(self) -> int:
        return self.batch * self.dim * FLOAT


def selected_classes(classes: int, ratio: float, batch: int, shards: int) -> int:
    """The number of a shard's classes in a step that :class:`recognition.head.sampling.ClassSampler` is expected to
    choose.

    It is assumed that the positives are spread evenly over the shards, and that each image is of another class.
    """
    positives = min(classes, -(-batch // shards))
    return classes if ratio >= 1 else max(1, positives + round(ratio * (classes - positives)))


def cpu_shard_memory(size: HeadSize) -> Memory:
    """Bytes of a ``CpuShard`` and of the head's arrays in a step."""
    batch = -(-size.batch // COLUMNS_A_TILE) * COLUMNS_A_TILE
    groups = max(1, min(MOST_GROUPS, size.selected_rows // LEAST_ROWS_A_GROUP))
    gradients = (groups + 7) * batch * size.dim * FLOAT  # a part of each group; features, unit vectors, their sums
    small = size.rows * ((2 + size.moments) * FLOAT + INTEGER)  # norms, bias, its moments, row numbers
    if size.selected < size.classes:  # those of the sample, and the numbers that it is drawn with
        small += size.classes + size.selected_rows * (2 * FLOAT + INTEGER) + size.selected * 4 * INTEGER
    return _parts(size, size.logits * batch // size.batch, ROWS_A_PIECE * size.dim * FLOAT, gradients, small)


def mxnet_shard_memory(size: HeadSize) -> Memory:
    """Bytes of an ``MxnetShard`` on its device in a step."""
    rows = min(MXNET_ROWS_A_CHUNK, size.selected_rows)
    update = rows * (2 * size.dim + size.batch) * FLOAT  # gradient, product, logits
    choice = size.sub_centres > 1 or size.filtered  # three buffers: the mask, -inf, the chosen logits
    sampled = size.selected < size.classes
    return _parts(size, size.logits, max(update, 3 * choice * size.logits), 2 * size.features,
                  _biases(size) + size.selected_rows * (3 * FLOAT + sampled * INTEGER),
                  sampled * (1 + size.moments) * size.selected_centres)


def torch_shard_memory(size: HeadSize, kind: str) -> Memory:
    """Bytes of PyTorch's ``TorchShard`` on a ``kind`` of device, "cuda" or "cpu": a chunk's logits, and its rows as
    float32."""
    rows = min(TORCH_ROWS_A_CHUNK[kind], size.selected_rows)
    logits = size.batch * rows * FLOAT
    sampled, rounded = size.selected < size.classes, size.number_bytes < FLOAT
    arrays = 2 + (sampled or rounded) * (1 + size.moments)  # unit vectors, gradient; copies of what is not a view
    chunk = rows * size.dim * (arrays * FLOAT + rounded * 4 * INTEGER)  # and the random bits, as PyTorch makes them
    return _parts(size, logits, chunk + (size.sub_centres > 1) * logits + size.filtered * logits // FLOAT,
                  5 * size.features, _torch_numbers(size))


def triton_shard_memory(size: HeadSize) -> Memory:
    """Bytes of PyTorch's ``TritonShard``: a chunk's weights of 16 bits and its gradient, in whose place the first pass
    has two chunks of a sample's rows; unit vectors of 16 bits beside W, unless W is of 16 bits itself. Samples, which
    the device draws, have room for the numbers of all classes: that of the step before is held until the step begins,
    when the one after it is drawn already."""
    rows = min(TRITON_ROWS_A_CHUNK, WEIGHTS_A_CHUNK // size.batch, size.selected_rows)
    drawn = (size.selected < size.classes) * 3 * size.classes * INTEGER
    memory = _parts(size, size.batch * rows * HALF, rows * size.dim * FLOAT, 5 * size.features,
                    _torch_numbers(size) + size.rows * (FLOAT + 1) + drawn)
    units = size.rows * size.dim * HALF if size.number_bytes == FLOAT else 0
    first = {part: memory.pop(part) for part in ("class centres W", "their moments")}
    return {**first, "unit vectors": units, **memory}


def _torch_numbers(size: HeadSize) -> int:
    """Bytes of the biases, their moments, and the numbers of a sample's rows."""
    sampled = size.selected < size.classes
    return _biases(size) + sampled * size.selected_rows * INTEGER


def _biases(size: HeadSize) -> int:
    """Bytes of the biases and their moments."""
    return (1 + size.moments) * size.rows * FLOAT


class Placed(NamedTuple):
    """Bytes of a head on its device, in the memory of its host beside a GPU, and on a disk."""

    device: Memory
    host: int = 0
    disk: int = 0


def placed_memory(size: HeadSize, shard: str, kind: str, place: str) -> Placed:
    """Bytes of a head by where they are.

    :param shard: a key of SHARDS; ``kind``: of the device; ``place``: a value of ``--centres-on``.
    """
    memory, stored = SHARDS[shard](size), (1 + size.moments) * size.centres
    moved = {**memory, "class centres W": 0, "their moments": 0}
    if place == "disk":
        return Placed(moved, 0 if kind == "cpu" else _torch_numbers(size), stored)
    if place == "device" or kind == "cpu":
        return Placed(memory)
    if host_computes(True, size.selected < size.classes, size.number_bytes < FLOAT):
        memory = cpu_shard_memory(size)
        return Placed(dict.fromkeys(memory, 0), sum(memory.values()))
    if shard == "gpu":
        return Placed(moved, stored + _biases(size) + size.selected_centres)  # which are on their way
    return Placed(moved, stored + _torch_numbers(size))


def _parts(size: HeadSize, logits: int, temporaries: int, features: int, small: int, sampled: int = 0) -> Memory:
    return {"class centres W": size.centres, "their moments": size.moments * size.centres, "logits": logits,
            "sampled rows": sampled, "gradients, temporaries": temporaries, "features": features,
            "norms and numbers": small}


def old_memory(size: HeadSize) -> Memory:
    """Bytes of the head of the public data-parallel recipe, as MXNet plans its graph.

    W, its momentum and gradient; W normalised, and the gradient by that; cosines, one-hot targets, the margins' share
    and softmax, each (b, C).
    """
    return _parts(size, 4 * size.logits, 3 * size.centres, 2 * size.features, 0)


def head_operations(size: HeadSize) -> int:
    """Operations of the three matrix products of a step; a multiply-add is two. PyTorch's shards make the logits twice,
    which is not counted."""
    return 6 * size.batch * size.selected_rows * size.dim


def summed(processes: int, numbers: int) -> float:
    """Bytes that each of P processes sends over a ring to sum arrays of float32."""
    return 2 * (processes - 1) / processes * numbers * FLOAT


def sent_parallel(processes: int, own: int, dim: int, parameters: int) -> int:
    """Bytes that a process sends in a step parallel on x and W, over rings: they do not depend on the classes.

    ``(P - 1) (2 b D 4 + b 8 + B 3 8 + 8) + 2 (P - 1) / P N 4`` with B = P b: features and their gradients, labels, row
    statistics, one number about stopping; the gradients of the backbone.

    :param own: b, the images of a process; ``parameters``: N, those of the backbone.
    """
    gathered = 2 * own * dim * FLOAT + own * INTEGER + processes * own * 3 * DOUBLE + INTEGER
    return (processes - 1) * gathered + round(summed(processes, parameters))


def sent_data_parallel(processes: int, own: int, size: HeadSize, parameters: int) -> int:
    """Bytes that a process sends in a step in which each has all of W: labels, loss and hits, stopping, gradients."""
    gathered = (processes - 1) * (own * INTEGER + INTEGER) + round(summed(processes, 2) * DOUBLE / FLOAT)
    return gathered + round(summed(processes, size.rows * size.dim + parameters))


# By what computes a shard: the CPU's kernels, MXNet on a GPU, PyTorch in chunks, Triton's kernels.
SHARDS: dict[str, Callable[[HeadSize], Memory]] = {
    "cpu": cpu_shard_memory, "gpu": mxnet_shard_memory, "torch": partial(torch_shard_memory, kind="cuda"),
    "torch on cpu": partial(torch_shard_memory, kind="cpu"), "triton": triton_shard_memory}
