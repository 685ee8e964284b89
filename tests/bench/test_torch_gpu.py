# SPDX-License-Identifier: Apache-2.0
"""The parts of ``python -m bench.gpu``, in their small form on the CPU: they find what is right right, and faults."""
from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from bench.gpu import __main__ as command
from bench.gpu import batch_norm, demo, heads, networks
from bench.gpu.report import Report, Setting
from recognition.engines.torch.imports import torch
from recognition.engines.torch.shard import TorchShard
from recognition.networks import sym
from recognition.networks.initialise import initialise

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(torch.device("cpu"), tmp_path)


@pytest.fixture
def report(tmp_path: Path) -> Report:
    made = Report(tmp_path, {"device": "none"})
    made.begin("here")
    return made


def found_in(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "found.json").read_text())


def test_a_report_is_a_log_and_json_after_each_line(report: Report, tmp_path: Path) -> None:
    report.close("near", [1.0, 2.00002], [1, 2], 1e-4)
    assert report.failed == [] and found_in(tmp_path)["checks"]["here"]["near"]["good"]
    report.close("far", [3.0, 4.0], [3.0, 4.5], 1e-1, "norm")
    report.close("not a number", [np.nan], [1.0], 1e-1)
    report.true("no", False, "since not")
    report.measured("too much", 3.0, "s", 2.0)
    report.measured("some", 3.0, "s")
    names = ["near", "far", "not a number", "no", "too much", "some"]
    checks = found_in(tmp_path)["checks"]["here"]
    assert [name for name in names if not checks[name]["good"]] == ["not a number", "no", "too much"]
    assert checks["far"]["error"] == pytest.approx(0.5 / np.hypot(3, 4.5))
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert len(lines) == 7 and "device none" in lines[0] and "BAD  here: no: since not" in lines[4]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "small_or_large", lambda setting: heads.Size(300, 16, 16))


def test_heads_pass_in_all_kinds(setting: Setting, report: Report, few: None) -> None:
    heads.kinds_against_float64(setting, report)
    heads.states_and_bits(setting, report)
    assert report.failed == []
    checks = found_in(setting.folder)["checks"]["here"]
    assert len(checks) == 3 * len(heads.KINDS) + 6


def test_a_head_that_is_off_fails(setting: Setting, report: Report, few: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient that is 1e-4 too large, and a margin that the reference does not know."""
    gradient = TorchShard.gradient
    monkeypatch.setattr(TorchShard, "gradient", lambda *args: gradient(*args) * np.float32(1.0001))
    kind = dataclasses.replace(heads.ARCFACE, m2=0.51)
    monkeypatch.setattr(heads, "KINDS", {"arcface": heads.KINDS["arcface"]})
    heads.kinds_against_float64(setting, report)
    assert report.failed == ["here: arcface: gradient by x"]
    make = heads.make
    monkeypatch.setattr(heads, "make", lambda setting, size, _: make(setting, size, heads.Kind(kind)))
    heads.kinds_against_float64(setting, report)
    assert "here: arcface: loss" in report.failed


def small(name: str) -> tuple[Any, tuple[Any, Any]]:
    """A few layers in place of a network of the recipes."""
    data = sym.Variable("data") / 255
    for number in range(2):
        data = sym.Convolution(data, kernel=(4, 4), stride=(4, 4), num_filter=8, no_bias=True, name=f"conv{number}")
        data = sym.LeakyReLU(sym.BatchNorm(data, fix_gamma=False, name=f"bn{number}"), act_type="prelu",
                             name=f"relu{number}")
    graph = sym.FullyConnected(data, num_hidden=16, name="fc1").graph()
    return graph, initialise(graph, networks.SIDE, 0)


def test_networks_pass(setting: Setting, report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "made", small)
    networks.against_float64(setting, report)
    networks.states_and_bits(setting, report)
    networks.in_16_bits(setting, report)
    gradients = found_in(setting.folder)["checks"]["here"]["y1, PReLUs as lines: gradients"]
    assert gradients["good"] and gradients["tolerance"] == 2e-4
    assert report.failed == []


def test_only_prelus_become_lines() -> None:
    _, (parameters, _) = networks.made("y1")
    changed = [name for name, array in networks.straight(parameters).items() if (array != parameters[name]).any()]
    assert len(changed) > 10 and all("relu" in name for name in changed)


@pytest.mark.slow
def test_runs_of_the_demo_set(setting: Setting, report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # threads that wait for each other take long on a busy machine
    demo.resumed(setting, report)
    assert report.failed == [], (setting.folder / "log.txt").read_text()
    assert "the same bits as without the stop" in found_in(setting.folder)["checks"]["here"]


def test_a_command_that_fails_or_hangs_is_bad(report: Report) -> None:
    assert demo._command(report, [sys.executable, "-c", "print('so far'); raise SystemExit(3)"], 60) is None
    assert demo._command(report, [sys.executable, "-c", "import time; time.sleep(60)"], 0.5) is None
    assert len(report.failed) == 2


def test_a_check_that_breaks_is_bad_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``main``; the limit of time, too: what would begin too late is bad."""
    ran = []
    monkeypatch.setattr(command, "CHECKS", {"breaks": lambda setting, report: 1 / 0, "next": lambda setting, report: (
        ran.append(setting), report.measured("size", 3, "MB"))})
    monkeypatch.setattr(sys, "argv", ["bench.gpu", "--device", "cpu", "--output", str(tmp_path / "found"), "--only",
                                      "breaks", "next"])
    assert command.main() == 1 and len(ran) == 1
    checks = found_in(tmp_path / "found")["checks"]
    assert not checks["breaks"]["done"]["good"] and checks["next"]["size"]["good"]
    assert "ZeroDivisionError" in (tmp_path / "found" / "log.txt").read_text()
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--limit", "1"])
    assert command.main() == 1 and len(ran) == 1
    assert not found_in(tmp_path / "found")["checks"]["next"]["begun"]["good"]


def test_it_runs_from_a_checkout(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "bench.gpu", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and all(name in "".join(done.stdout.split())
                                            for name in command.CHECKS)


def test_batch_norms_pass_and_those_of_a_network_are_counted(setting: Setting, report: Report) -> None:
    """r50: 25 with PReLU, 24 units with a sum; alone are the first of each unit, four projections, and the last."""
    pytest.importorskip("triton", reason="Triton is not installed")
    batch_norm.against_float64(setting, report)
    batch_norm.cost(setting, report)
    batch_norm.cuts(setting, report)
    assert report.failed == []
    counts: dict[str, int] = {}
    for (_, _, kind), count in batch_norm.maps_of("r50").items():
        counts[str(kind)] = counts.get(str(kind), 0) + count
    assert counts == {"with PReLU": 25, "with a sum": 24, "alone": 29}
