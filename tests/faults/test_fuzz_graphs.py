# SPDX-License-Identifier: Apache-2.0
"""The short form of faults.fuzz_graphs: changed networks, run by MXNet; and those that ended the process once."""
from __future__ import annotations

import json
import math
import mmap
import os

import pytest

from faults import fuzz_graphs

SLICE = {"op": "slice", "name": "part", "attrs": {"begin": "(2,)", "end": "(None,)"}, "inputs": [[0, 0, 0]]}


def test_changed_networks() -> None:
    last, row = fuzz_graphs.fuzz(math.inf, first=0, most=25)
    assert last == 25 and row.kept == row.tried > 0, row.happened
    assert fuzz_graphs.RAN in row.happened


def test_the_network_itself_runs() -> None:
    """Also from a process that has taken more addresses than a run may."""
    assert fuzz_graphs.alone(fuzz_graphs.network()) == fuzz_graphs.RAN
    with mmap.mmap(-1, 8 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ):
        assert fuzz_graphs.alone(fuzz_graphs.network()) == fuzz_graphs.RAN
    assert json.dumps(fuzz_graphs.changed(fuzz_graphs.network(), 3)) != json.dumps(fuzz_graphs.network())


@pytest.mark.parametrize("last, outcome", [
    ({"op": "Reshape", "name": "flat", "attrs": {"shape": "(0, -1)"}, "inputs": [[1, 0, 0]]}, "refused by its shapes"),
    ({"op": "BatchNorm", "name": "norm", "inputs": [[0, 0, 0], [1, 0, 0], [1, 0, 0]]}, fuzz_graphs.REFUSED),
])
def test_what_ended_the_process_once(last: dict[str, object], outcome: str) -> None:
    nodes = [{"op": "null", "name": "data", "inputs": []}, SLICE, last]
    assert fuzz_graphs.alone({"nodes": nodes, "heads": [[2, 0, 0]]}) == outcome


def test_a_process_that_is_ended_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz_graphs, "run", lambda graph: os.abort())
    _, row = fuzz_graphs.fuzz(math.inf, first=0, most=1)
    assert row.kept == row.tried - 1 and "seed 0: ended by SIGABRT" in row.happened
