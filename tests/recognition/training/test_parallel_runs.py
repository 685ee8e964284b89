# SPDX-License-Identifier: Apache-2.0
"""The same run on one device and on several."""
from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest

from recognition.data.augment import Augmentation
from recognition.data.loader import BatchLoader
from recognition.data.order import EpochOrder
from recognition.data.sets.dataset import open_dataset
from recognition.engines.cpu.shard import CpuShard
from recognition.head.margin import Margin
from recognition.head.shard import split_classes
from recognition.head.sharded import ShardedHead
from recognition.networks import sym
from recognition.networks.graph import Graph
from recognition.networks.initialise import initialise
from recognition.processes.communicator import SingleProcess

GLOBAL_BATCH, DIM = 12, 16


def network() -> Graph:
    """No batch norm and no dropout: what a replica computes does not depend on the images of the others."""
    x = (sym.Variable("data") - 127.5) * 0.0078125
    x = sym.Convolution(x, num_filter=8, kernel=(5, 5), stride=(4, 4), name="conv0")
    gamma = sym.Variable("relu0_gamma", init='["constant", {"value": 0.25}]')
    x = sym.LeakyReLU(x, act_type="prelu", name="relu0", gamma=gamma)
    x = sym.Convolution(x, num_filter=16, kernel=(3, 3), stride=(3, 3), name="conv1")
    return sym.FullyConnected(x, num_hidden=DIM, name="fc1").graph()


def run(replicated: Callable[..., Any], tiny_set: Path, devices: int, margin: Margin,
        steps: int = 6) -> tuple[list[float], dict[str, np.ndarray]]:
    dataset = open_dataset(tiny_set)
    symbol = network()
    backbone = replicated(symbol, *initialise(symbol, (3, 112, 112), 1), devices, GLOBAL_BATCH // devices,
                          (3, 112, 112), SingleProcess(), mu=0.9, wd=5e-4)
    shards = [CpuShard(start, stop, DIM, normalised=margin.normalised, scale=margin.scale)
              for start, stop in split_classes(dataset.num_classes, devices)]
    head = ShardedHead(shards, margin, SingleProcess())
    losses = []
    with BatchLoader(dataset, EpochOrder(len(dataset), 0), Augmentation(), GLOBAL_BATCH) as batches:
        for batch, _ in zip(batches, range(steps)):
            result = head.forward_backward(backbone.forward(batch.images), batch.labels)
            backbone.backward(result.d_features)
            head.step(0.01)
            backbone.step(0.01)
            losses.append(result.loss)
    parameters, _ = backbone.parameters()
    return losses, {**parameters, "centres": np.concatenate([shard.centres for shard in shards])}


@pytest.mark.parametrize("margin", [Margin(normalised=False), Margin(64, 1, 0.5)], ids=["softmax", "arcface"])
def test_one_two_and_three_devices_agree(replicated: Callable[..., Any], tiny_set: Path, margin: Margin) -> None:
    """Six steps. Sums over the batch are taken in another order: 1e-6 a step, which ArcFace's s = 64 amplifies."""
    losses, arrays = run(replicated, tiny_set, 1, margin)
    for devices in (2, 3):
        other_losses, others = run(replicated, tiny_set, devices, margin)
        assert other_losses == pytest.approx(losses, rel=1e-4)
        for name, array in arrays.items():
            np.testing.assert_allclose(others[name], array, rtol=0, atol=2e-4 * np.abs(array).max(), err_msg=name)
