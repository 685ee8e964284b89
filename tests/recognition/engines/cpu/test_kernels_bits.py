# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

STEPS = """
import numpy as np
from recognition.head.margin import Margin
from recognition.optim.adamw import AdamW
from recognition.processes.communicator import SingleProcess
from recognition.engines.cpu.shard import CpuShard
from recognition.head.sharded import ShardedHead
random = np.random.RandomState(0)
for adamw in (None, AdamW()):
    head = ShardedHead([CpuShard(0, 50, 32, normalised=True, scale=64)], Margin(64, 1, 0.5), SingleProcess(),
                       adamw=adamw)
    for _ in range(4):
        result = head.forward_backward(random.standard_normal((8, 32)).astype(np.float32), random.randint(0, 50, 8))
        head.step(0.1)
    print(result.d_features.tobytes().hex(), head.shards[0].centres.tobytes().hex())
"""


def test_code_from_the_compiler_and_from_the_cache_give_the_same_bits(tmp_path: Path) -> None:
    """A run that goes on loads from the cache what the run that stopped had compiled."""
    root, environment = Path(__file__).resolve().parents[4], {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    outputs = [subprocess.run([sys.executable, "-c", STEPS], cwd=root, env=environment, check=True, text=True,
                              capture_output=True, timeout=120).stdout for _ in range(2)]
    assert any(tmp_path.rglob("*.nbc"))
    assert outputs[0] == outputs[1]
