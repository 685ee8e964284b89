# SPDX-License-Identifier: Apache-2.0
"""The formulas of the head's costs: against arrays that shards hold, the sampler, and MXNet's plan of the old way."""
from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from recognition.engines.cpu.shard import CpuShard
from recognition.engines.mxnet.imports import mx
from recognition.engines.mxnet.shard import MxnetShard
from recognition.head.margin import Margin
from recognition.head.sampling import ClassSampler
from recognition.head.sharded import ShardedHead
from recognition.optim.adamw import AdamW
from recognition.plan import head_costs
from recognition.plan.head_costs import HeadSize
from recognition.processes.communicator import SingleProcess

CLASSES, BATCH, DIM = 4000, 48, 96
# Beside what a shard holds between steps there is what lives within one: not seen from outside.
WITHIN = ("gradients, temporaries", "features")


def held_by(shard: Any) -> tuple[int, int]:
    """Bytes of all NumPy and of all MXNet arrays that a shard refers to, each once: views count as what they view."""
    host: dict[int, int] = {}
    device: dict[int, int] = {}
    for value in vars(shard).values():
        for array in value if isinstance(value, tuple) else (value,):
            if isinstance(array, np.ndarray):
                whole = array.base if isinstance(array.base, np.ndarray) else array
                host[id(whole)] = whole.nbytes
            elif isinstance(array, mx.nd.NDArray):
                device[id(array)] = array.size * np.dtype(array.dtype).itemsize
    return sum(host.values()), sum(device.values())


def after_a_step(shard: Any, ratio: float, optimizer: str = "sgd") -> Any:
    head = ShardedHead([shard], Margin(64), SingleProcess(), sampler=ClassSampler(ratio),
                       adamw=AdamW() if optimizer == "adamw" else None)
    random = np.random.default_rng(0)
    head.forward_backward(random.standard_normal((BATCH, DIM)).astype(np.float32), random.integers(0, CLASSES, BATCH))
    head.step(0.1)
    return shard


def size_of(ratio: float, sub_centres: int, optimizer: str = "sgd") -> HeadSize:
    return HeadSize(CLASSES, head_costs.selected_classes(CLASSES, ratio, BATCH, 1), BATCH, DIM, sub_centres,
                    head_costs.MOMENTS[optimizer])


def between_steps(planned: head_costs.Memory) -> int:
    return sum(size for part, size in planned.items() if part not in WITHIN)


@pytest.mark.parametrize("ratio", [1.0, 0.1])
@pytest.mark.parametrize("sub_centres", [1, 3])
@pytest.mark.parametrize("kind", ["cpu", "gpu"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_shard_holds_what_is_planned(optimizer: str, kind: str, sub_centres: int, ratio: float) -> None:
    """Within 3 %: small arrays of labels and columns, the features that a shard keeps, the draw's own numbers. The
    sampled rows of the second moment live within the update."""
    options: dict[str, Any] = {"normalised": True, "scale": 64.0, "sub_centres": sub_centres}
    shard = CpuShard(0, CLASSES, DIM, **options) if kind == "cpu" else MxnetShard(mx.cpu(), 0, CLASSES, DIM, **options)
    size = size_of(ratio, sub_centres, optimizer)
    planned = head_costs.SHARDS[kind](size)
    second = size.selected_centres if optimizer == "adamw" and planned["sampled rows"] else 0
    held = sum(held_by(after_a_step(shard, ratio, optimizer)))
    assert held == pytest.approx(between_steps(planned) - second, rel=0.03)
    state = shard.state()
    assert planned["class centres W"] == state.centres.nbytes
    assert planned["their moments"] == state.momentum.nbytes + state.second_moment.nbytes


def test_a_shard_whose_centres_live_on_the_host() -> None:
    shard = MxnetShard(mx.cpu(), 0, CLASSES, DIM, normalised=True, scale=64.0, on_host=True)
    on_host, on_device = held_by(after_a_step(shard, 0.1))
    device, host, _ = head_costs.placed_memory(size_of(0.1, 1), "gpu", "gpu", "cpu")
    assert on_device == pytest.approx(between_steps(device), rel=0.1)  # features that a shard keeps; the draw varies
    assert on_host == pytest.approx(host - size_of(0.1, 1).selected_centres, rel=0.03)  # what is on its way
    device, host, _ = head_costs.placed_memory(size_of(1.0, 1), "gpu", "gpu", "cpu")
    assert not any(device.values()) and host == sum(head_costs.cpu_shard_memory(size_of(1.0, 1)).values())


@pytest.mark.parametrize(("classes", "ratio", "batch", "shards"), [
    (5000, 0.1, 64, 2), (5000, 0.013, 100, 1), (1000, 0.01, 400, 4), (100, 0.1, 4000, 4)])
def test_selected_classes_as_the_sampler_draws_them(classes: int, ratio: float, batch: int, shards: int) -> None:
    """Within five standard deviations, with labels that are all different and spread evenly, as the formula counts."""
    labels = np.arange(batch) * (classes * shards) // batch
    drawn = ClassSampler(ratio)(labels, 0, 0, classes)
    expected = classes if drawn is None else len(drawn)
    found = head_costs.selected_classes(classes, ratio, batch, shards)
    assert abs(found - expected) <= 5 * (classes * ratio * (1 - ratio)) ** 0.5


def old_head(classes: int, dim: int) -> mx.sym.Symbol:
    """A margin softmax as the public data-parallel recipe has it."""
    unit, label = mx.sym.L2Normalization(mx.sym.var("x")), mx.sym.var("label")
    weight = mx.sym.L2Normalization(mx.sym.var("weight", shape=(classes, dim)))
    cosines = mx.sym.FullyConnected(unit * 64, weight, no_bias=True, num_hidden=classes)
    target = mx.sym.pick(cosines, label, axis=1)
    shift = mx.sym.expand_dims(mx.sym.cos(mx.sym.arccos(target / 64) + 0.5) * 64 - target, 1)
    hot = mx.sym.one_hot(label, depth=classes)
    return mx.sym.SoftmaxOutput(cosines + mx.sym.broadcast_mul(hot, shift), label)


@pytest.mark.parametrize(("batch", "dim"), [(64, 512), (256, 512), (256, 32)])
def test_the_old_way_as_mxnet_plans_it(batch: int, dim: int) -> None:
    """Within 10 %: a block may serve both a copy of W and logits. W, gradient and momentum are not in MXNet's plan."""
    classes = 50_000
    symbol = old_head(classes, dim)
    executor = symbol.simple_bind(mx.cpu(), grad_req={"x": "write", "weight": "write", "label": "null"}, x=(batch, dim),
                                  label=(batch,))
    plan = int(re.search(r"Total (\d+) MB", executor.debug_str())[1]) * 2**20
    size = HeadSize(classes, classes, batch, dim)
    assert sum(head_costs.old_memory(size).values()) == pytest.approx(3 * size.centres + plan, rel=0.1)


def test_what_is_sent_does_not_grow_with_classes_unless_all_have_all_of_w() -> None:
    small, large = (HeadSize(classes, classes, 64, 512) for classes in (1000, 1_000_000))
    assert head_costs.sent_parallel(1, 64, 512, 10**6) == head_costs.sent_data_parallel(1, 64, small, 10**6) == 0
    grown = head_costs.sent_data_parallel(4, 64, large, 0) - head_costs.sent_data_parallel(4, 64, small, 0)
    assert grown == 2 * 3 * (large.centres - small.centres) // 4
    # by hand: two processes of one image of two features, no backbone: features, gradients, labels, statistics, a stop
    assert head_costs.sent_parallel(2, 1, 2, 0) == 8 + 8 + 8 + 2 * 24 + 8
    assert head_costs.sent_parallel(2, 1, 2, 10) == 80 + 40


def test_operations_of_three_products() -> None:
    assert head_costs.head_operations(HeadSize(7, 5, 3, 2, sub_centres=2)) == 3 * 2 * (3 * 10 * 2)
