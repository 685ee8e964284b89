# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path
from typing import Callable

import pytest

Train = Callable[..., "tuple[int, str, str]"]


@pytest.mark.parametrize("engine, steps, taken", [("mxnet", 3, 3), ("mxnet", 50, 5), ("torch", 3, 3)],
                         indirect=["engine"])
def test_a_profile_of_some_steps(engine: str, train_apart: Train, tmp_path: Path, steps: int, taken: int) -> None:
    """The eight steps of the run less the first three, if fewer are left than were asked for."""
    status, out, err = train_apart("a", "--devices", "cpu", "--per-batch-size", "4", "--max-steps", "8", "--verbose",
                                   "100", "--ckpt", "0", "--profile", str(steps))
    assert status == 0, err
    folder = tmp_path / "a" / "tiny-arcface-tiny"
    files = f"{folder / 'profile.json'} (Chrome's trace format), {folder / 'profile.txt'}"
    assert f"profile of {taken} steps: {files}" in out
    events = json.loads((folder / "profile.json").read_text())["traceEvents"]
    begun = [event["name"] for event in events if event["ph"] in ("b", "B") or event.get("cat") == "user_annotation"]
    for phase in ("data", "forward", "head", "backward", "update W", "update"):
        assert begun.count(phase) == taken
    table = (folder / "profile.txt").read_text()
    operators = {"mxnet": ("Convolution", "multi_sgd_mom_update"), "torch": ("convolution", "aten::add_")}[engine]
    assert all(operator in table for operator in operators)
    shares = [float(line.split()[-1].rstrip("%")) for line in table.splitlines()[1:7]]
    assert 0 < sum(shares) < 101
