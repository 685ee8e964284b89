# SPDX-License-Identifier: Apache-2.0
"""Gradients in half size between two real processes (``gradient_numbers``), and who refuses it."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from recognition.config.options import Config
from recognition.engines.choose import choose_engine
from recognition.errors import UserError
from recognition.networks import build_symbol
from recognition.plan.planning import METHODS, backbone_cost, planned_run
from recognition.processes.communicator import SingleProcess
from recognition.training.parts import make_backbone

ROOT = Path(__file__).resolve().parents[3]
WORKER = """
import sys
import numpy as np
from recognition.engines.choose import choose_engine
from recognition.engines.interface import Computing, Updating
from recognition.networks import sym
from recognition.networks.initialise import initialise
from recognition.processes.communicator import SingleProcess

name, devices = sys.argv[1], int(sys.argv[2])
engine, shape, batch = choose_engine(name), (3, 16, 16), 4
x = sym.Convolution((sym.Variable("data") - 127.5) / 128, num_filter=5, kernel=(3, 3), stride=(2, 2), name="conv0")
graph = sym.FullyConnected(x, num_hidden=6, name="fc1").graph()
computing = Computing((("cpu", 0),) * devices, batch // devices)

def gradients(communicator, rank, **options):
    made = engine.backbone(graph, initialise(graph, shape, 1), shape, computing, Updating(**options), communicator)
    random = np.random.RandomState(rank)
    made.forward(random.randint(0, 256, (batch, *shape)).astype(np.uint8))
    sent = communicator.bytes_sent
    made.backward((random.standard_normal((batch, 6)) / 100).astype(np.float32))
    assert made.finite()
    return made.to_host(made.replicas[0].gradients), communicator.bytes_sent - sent

with engine.communicator("device") as communicator:
    assert communicator.size == 2
    _, plain = gradients(communicator, communicator.rank)
    own = [gradients(SingleProcess(), rank)[0] for rank in range(2)]
    # Two roundings to 11 or 8 bits of numbers that are the largest of their array at most.
    for numbers, tolerance in (("float32", 1e-6), ("float16", 2.0**-10), ("bfloat16", 2.0**-7)):
        if (name, numbers) == ("mxnet", "bfloat16"):
            continue
        found, sent = gradients(communicator, communicator.rank, gradient_numbers=numbers)
        assert sent == (plain if numbers == "float32" else plain / 2) > 0, (sent, plain)
        for array in found:
            wanted = own[0][array].astype(np.float64) + own[1][array]
            assert found[array].dtype == np.float32
            np.testing.assert_allclose(found[array], wanted, rtol=0, atol=tolerance * np.abs(wanted).max(),
                                       err_msg=array)
            of_all = communicator.all_gather(found[array][None])
            assert (of_all[0] == of_all[1]).all(), array
    print("right", flush=True)
"""


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_gradients_of_two_processes(engine: str, devices: int, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """The sums against float64, the same bits in both processes, half the bytes (``gradient_numbers``)."""
    if engine == "mxnet":
        request.getfixturevalue("horovod")
    (tmp_path / "worker.py").write_text(WORKER)
    run = subprocess.run(
        [sys.executable, "-m", "recognition.launch", "-np", "2", "--", sys.executable, str(tmp_path / "worker.py"),
         engine, str(devices)], env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=120)
    assert run.returncode == 0 and run.stdout.count("right") == 2, run.stdout + run.stderr


@pytest.mark.parametrize("numbers, why", [("float16", "but parameter servers add float32 alone"),
                                          ("bfloat16", "which Horovod with MXNet cannot add")])
def test_who_refuses_it(monkeypatch: pytest.MonkeyPatch, numbers: str, why: str) -> None:
    monkeypatch.setattr("recognition.engines.mxnet.backbone.KVStoreCommunicator", SingleProcess)
    config = Config(net_name="fmobilefacenet", net_output="GDC", count_flops=False, gradient_numbers=numbers)
    with pytest.raises(UserError, match=f"^gradient_numbers: found {numbers}, {why}"):
        make_backbone(config, build_symbol(config), choose_engine("mxnet"), SingleProcess())


def test_the_plan_counts_half() -> None:
    config = Config(net_name="fmobilefacenet", net_output="GDC", network="y1", emb_size=128)
    cost = backbone_cost(config)
    full, half = (METHODS["parallel"].cost(planned_run(Config(**{**vars(config), "gradient_numbers": numbers}), 100, 2,
                                                       cost)).sent for numbers in ("float32", "bfloat16"))
    assert full - half == 2 * cost.parameters  # 2 (P - 1) / P of 2 bytes each
