# SPDX-License-Identifier: Apache-2.0
"""The numbers of a run, which do not depend on where its processes are, and the bytes that go between hosts."""
from __future__ import annotations

import json

import pytest

from faults import bed_run
from faults.bed import Bed
from recognition.plan.head_costs import sent_parallel

OVERHEAD = 0.03  # of the kernel's count above the formula: headers of TCP and IP, acknowledgements, signs of life


@pytest.mark.parametrize("engine", ["Horovod", "torch"])
def test_the_place_of_the_processes_changes_no_bit(bed: Bed, engine: str, models: str) -> None:
    """Four processes on one host, on two and on four (Horovod: three have names that lead to them) end with the same
    loss, and with the same bits in every file of the state: parameters, W, momentum and statistics."""
    if engine == "torch":
        pytest.importorskip("torch")
    spread = ((1, 4), (2, 2), (4, 1)) if engine == "torch" else ((1, 4), (2, 2))
    found = {}
    for hosts, each in spread:
        trainer = f"--max-steps 3 {models}/{hosts}"
        line = bed_run.line([bed[f"node{number}"] for number in range(1, hosts + 1)], each, trainer=trainer,
                            engine={"torch": "PyTorch"}.get(engine, engine))
        done = bed["node1"].run(line)
        assert done.returncode == 0, done.stderr
        folder = bed["node1"].path(f"{models.split()[1]}/{hosts}/small-arcface-small")
        manifest = json.loads((folder / "state/step-000000003/manifest.json").read_text())
        losses = [json.loads(text).get("loss") for text in (folder / "history.jsonl").read_text().splitlines()]
        found[hosts] = losses, {name: sha256 for name, (_, sha256) in manifest["files"].items()}
        assert len(manifest["shards"]) == 4
    assert all(numbers == found[1] for numbers in found.values()), found


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
