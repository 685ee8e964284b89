# SPDX-License-Identifier: Apache-2.0
"""``fc7_lr_mult`` and ``fc7_wd_mult`` act as they are named."""
from __future__ import annotations

import numpy as np

from recognition.engines.cpu.shard import CpuShard
from recognition.head.margin import Margin
from recognition.head.sharded import ShardedHead
from recognition.processes.communicator import SingleProcess


def centres(lr: float, wd: float, lr_mult: float = 1.0, wd_mult: float = 1.0) -> np.ndarray:
    """W after two steps on the same batch."""
    shard = CpuShard(0, 7, 5, normalised=True, scale=8.0, seed=1)
    head = ShardedHead([shard], Margin(s=8.0), SingleProcess(), 0.9, wd, lr_mult, wd_mult)
    features = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)
    for _ in range(2):
        head.forward_backward(features, np.array([0, 1, 2, 3, 4, 6]))
        head.step(lr)
    return shard.state().centres.copy()


def test_the_learning_rate_of_w():
    assert (centres(0.2, 0.01, lr_mult=0.5) == centres(0.1, 0.01)).all()
    assert (centres(0.2, 0.01, lr_mult=0) == centres(0, 0.01)).all()


def test_the_decay_of_w():
    assert (centres(0.1, 0.01, wd_mult=4) == centres(0.1, 0.04)).all()
    assert (centres(0.1, 0.01, wd_mult=0) == centres(0.1, 0)).all()
    assert (centres(0.1, 0.01) != centres(0.1, 0)).any()
