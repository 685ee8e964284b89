# SPDX-License-Identifier: Apache-2.0
"""MXNet's parameter server: a scheduler, a server and two workers on the loopback interface."""
from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# The scheduler and the server do their work inside the import of MXNet, and end there.
NODE = """
import numpy as np
from recognition.engines.mxnet.imports import mx

store = mx.kv.create("dist_sync")
assert store.num_workers == 2
value = mx.nd.zeros((3, 4))
store.init("weight", value)
for step in (1, 2, 3):
    store.push("weight", mx.nd.full((3, 4), step * (store.rank + 1)))
    store.pull("weight", out=value)
    np.testing.assert_array_equal(value.asnumpy(), np.full((3, 4), 3 * step))
print(f"worker {store.rank} agrees", flush=True)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_two_workers_push_and_pull() -> None:
    cluster = {
        "DMLC_PS_ROOT_URI": "127.0.0.1",
        "DMLC_PS_ROOT_PORT": str(free_port()),
        "DMLC_NODE_HOST": "127.0.0.1",
        "DMLC_NUM_SERVER": "1",
        "DMLC_NUM_WORKER": "2",
        "PYTHONPATH": str(ROOT),
    }
    nodes = [
        subprocess.Popen(
            [sys.executable, "-c", NODE], env={**os.environ, **cluster, "DMLC_ROLE": role}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for role in ("scheduler", "server", "worker", "worker")
    ]
    try:
        outputs = [node.communicate(timeout=120)[0] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0, 0, 0], outputs
    assert sorted(outputs[2:]) == ["worker 0 agrees\n", "worker 1 agrees\n"]
