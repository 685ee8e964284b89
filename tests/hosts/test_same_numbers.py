# SPDX-License-Identifier: Apache-2.0
"""The numbers of a run, which do not depend on where its processes are, and the bytes that go between hosts."""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from faults.hosts import bed_run
from faults.hosts.bed import Bed
from recognition.plan.head_costs import sent_parallel

SUM_ORDER = 2e-5  # relative and absolute: three steps of float32 sums over four processes
OVERHEAD = 0.06  # of the kernel's count above the formula: headers of TCP and IP, acknowledgements (more of them on a
# busy machine, which reads in smaller pieces), signs of life


def end_of(run: Path) -> tuple[list[float], dict[str, np.ndarray]]:
    """The losses in a run's history, and all arrays of its state of step 3."""
    folder = run / "state" / "step-000000003"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert len(manifest["shards"]) == 4
    arrays = {path.name: np.load(path) for path in folder.glob("*.npy")}
    with np.load(folder / "backbone.npz") as rest:
        arrays.update(rest)
    records = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if "loss" in record], arrays


@pytest.mark.usefixtures("names")
@pytest.mark.parametrize("engine", ["Horovod", "servers", "torch"])
def test_the_place_of_the_processes_changes_no_number(bed: Bed, engine: str, models: str) -> None:
    """Four processes on one host, on two and on four have the same loss, W, parameters, momentum and statistics: to the
    last bit with PyTorch; with Horovod, which joins gradients to larger sums as they happen to come, and servers, which
    add up what comes as it comes, up to the order in which float32 numbers are added."""
    if engine == "torch":
        pytest.importorskip("torch")
    tolerance = 0 if engine == "torch" else SUM_ORDER
    found = {}
    for hosts, each in ((1, 4), (2, 2), (4, 1)):
        line = bed_run.line([bed[f"node{number}"] for number in range(1, hosts + 1)], each,
                            trainer=f"--max-steps 3 --verbose 50 {models}/{hosts}",
                            engine={"torch": "PyTorch"}.get(engine, engine))
        done = bed["node1"].run(line)
        assert done.returncode == 0, done.stderr
        found[hosts] = end_of(bed["node1"].path(f"{models.split()[1]}/{hosts}/small-arcface-small"))
    (losses, arrays), *others = found.values()
    assert losses
    for hosts, (other_losses, other_arrays) in found.items():
        most = {kind: max(float(np.abs(array - arrays[name]).max()) for name, array in other_arrays.items()
                          if name.startswith(kind)) for kind in ("centres", "momentum", "parameter", "auxiliary")}
        print(f"{engine}, {hosts} x {4 // hosts}: losses {other_losses}; most that differs from 1 x 4: {most}")
    for other_losses, other_arrays in others:
        np.testing.assert_allclose(other_losses, losses, rtol=tolerance)
        assert other_arrays.keys() == arrays.keys()
        for name, array in arrays.items():
            np.testing.assert_allclose(other_arrays[name], array, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("engine", ["mxnet", "torch"])
def test_the_kernel_counts_between_hosts_what_the_formula_says(bed: Bed, engine: str) -> None:
    """With a hundred times as many classes, too."""
    if engine == "torch":
        pytest.importorskip("torch")
    wanted = sent_parallel(2, 32, 512, 1000000)
    for classes in (1000, 100000):
        done = bed["node1"].run(
            ".venv/bin/python -m recognition.launch -np 2 --hosts node1:1,node2:1 --folders node2=/srv/node2/trainer "
            f"--interface eth0 -- .venv/bin/python -m bench.exchange --work --interface eth0 --engine {engine} "
            f"--classes {classes}")
        assert done.returncode == 0, done.stderr
        counted, kernel = map(int, done.stdout.split()[-2:])
        print(engine, classes, wanted, counted, kernel)
        assert counted == wanted and wanted <= kernel <= (1 + OVERHEAD) * wanted
