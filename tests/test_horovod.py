# SPDX-License-Identifier: Apache-2.0
"""Horovod as the set-up builds it: two real processes under horovodrun with Gloo."""
from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WORKER = """
import numpy as np
from recognition.engines.mxnet.imports import mx
import horovod.mxnet as hvd

hvd.init()
rank = hvd.rank()
assert hvd.size() == 2 and hvd.gloo_enabled()

total = hvd.allreduce(mx.nd.full((3, 5), rank + 1), average=False)
np.testing.assert_array_equal(total.asnumpy(), np.full((3, 5), 3))

gathered = hvd.allgather(mx.nd.full((rank + 1, 4), rank))  # parts of different length
np.testing.assert_array_equal(gathered.asnumpy()[:, 0], [0, 1, 1])

part = hvd.reducescatter(mx.nd.arange(8).reshape((4, 2)), op=hvd.Sum)
np.testing.assert_array_equal(part.asnumpy(), 2 * np.arange(8).reshape(4, 2)[2 * rank:2 * rank + 2])
print(f"rank {rank} agrees", flush=True)
"""


def test_collectives_between_two_processes(tmp_path: Path) -> None:
    if importlib.util.find_spec("horovod") is None:
        if os.environ.get("REQUIRE_HOROVOD") or os.environ.get("CI"):
            pytest.fail("Horovod is not installed, and this run must not go without it")
        pytest.skip("Horovod is not installed: `make test` builds it")
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    launch = [sys.executable, "-m", "horovod.runner.launch", "--gloo", "-np", "2", "--network-interface", "lo"]
    process = subprocess.Popen(
        [*launch, sys.executable, str(worker)], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )
    try:
        output, _ = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)  # horovodrun ends its workers
        output, _ = process.communicate(timeout=300)
        pytest.fail(f"no end within 120 s:\n{output}")
    assert process.returncode == 0, output
    assert "rank 0 agrees" in output and "rank 1 agrees" in output
