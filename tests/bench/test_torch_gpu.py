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
from bench.gpu import batch_norm, demo, fused, heads, networks, torch_compile, updates, where, whole
from bench.gpu import command as the_command
from bench.gpu.report import Report, Setting, judged
from bench.gpu.where import Span
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
    assert report.value("here", "some") == 3 and report.value("here", "none") is None


def test_tables_are_markdown_with_empty_cells_where_a_row_has_none(report: Report, tmp_path: Path,
                                                                   capsys: pytest.CaptureFixture[str]) -> None:
    report.row("Heads", {"way": "ours", "ms": 14.8})
    report.row("Heads", {"way": "theirs", "GB": "22.6"})
    report.row("Others", {"way": "x"})
    wanted = """**Heads**

| way | ms | GB |
| --- | --- | --- |
| ours | 14.8 |  |
| theirs |  | 22.6 |

**Others**

| way |
| --- |
| x |
"""
    assert (tmp_path / "tables.md").read_text() == wanted
    report.print_tables()
    assert capsys.readouterr().out.endswith(wanted) and found_in(tmp_path)["tables"]["Others"] == [{"way": "x"}]


def test_figures_are_judged_by_their_targets() -> None:
    assert [judged(3.84, least=2), judged(0.61, most=0.6), judged(14.8), judged(1856.0, most=20)] == [
        "3.84 (at least 2: reached)", "0.61 (at most 0.6: missed)", "14.8", "1856 (at most 20: missed)"]


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


def test_updates_pass_and_one_that_is_off_fails(setting: Setting, report: Report,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    updates.against_others(setting, report)
    assert report.failed == [] and len(found_in(setting.folder)["checks"]["here"]) == len(updates.SHAPES)
    right = updates.AdamWOptimiser
    monkeypatch.setattr(updates, "AdamWOptimiser", lambda weights, names, adamw, wd: right(weights, names, adamw, 0.06))
    updates.against_others(setting, report)
    assert len(report.failed) == len(updates.SHAPES)


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
    assert demo.run_command(report, [sys.executable, "-c", "print('so far'); raise SystemExit(3)"], 60) is None
    assert demo.run_command(report, [sys.executable, "-c", "import time; time.sleep(60)"], 0.5) is None
    assert len(report.failed) == 2


def test_a_check_that_breaks_is_bad_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``main``; the limit of time, too: what would begin too late is left out, and named."""
    ran = []
    checks = {"breaks": lambda setting, report: 1 / 0, "next": lambda setting, report: (
        ran.append(setting), report.measured("size", 3, "MB"))}
    monkeypatch.setattr(command, "CHECKS", {name: command.Check(check, 0) for name, check in checks.items()})
    monkeypatch.setattr(sys, "argv", ["bench.gpu", "--device", "cpu", "--output", str(tmp_path / "found"), "--only",
                                      "breaks", "next"])
    assert command.main() == 1 and len(ran) == 1
    checks = found_in(tmp_path / "found")["checks"]
    assert not checks["breaks"]["done"]["good"] and checks["next"]["size"]["good"]
    assert "ZeroDivisionError" in (tmp_path / "found" / "log.txt").read_text()
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--limit", "-1"])
    assert command.main() == 0 and len(ran) == 1
    assert "--only breaks next" in (tmp_path / "found" / "log.txt").read_text().splitlines()[-1]


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


def test_kernels_are_grouped_by_their_names() -> None:
    kernels = [Span("exponentials", 0, 3), Span("sm90_xmma_fprop_implicit_gemm_f16", 3, 5), Span("Memcpy HtoD", 5, 6),
               Span("nvjet_hsh_128x256", 6, 10), Span("multi_tensor_apply_kernel", 10, 11), Span("update", 11, 13),
               Span("merge_sums", 13, 14), Span("elementwise_kernel", 14, 16)]
    assert where.grouped(kernels) == {
        "head: logits": 3, "head: update": 2, "batch norm, PReLU, sums": 1, "convolutions": 2, "other products": 4,
        "optimiser, checks": 1, "copies": 1, "others": 2}


def test_gaps_are_where_no_kernel_runs_and_belong_to_the_phase_that_launched_late() -> None:
    """Kernels of two streams: the second begins before the first ends, and the third lies in the second."""
    kernels = [Span("c", 20, 30), Span("a", 0, 10), Span("b", 5, 25), Span("d", 33, 40), Span("e", 140, 150),
               Span("f", 250, 260), Span("g", 360, 400)]
    idle = where.gaps(kernels)
    assert idle == [(30, 33), (40, 140), (150, 250), (260, 360)]
    phases = [Span("head", 100, 139), Span("forward", 0, 90), Span("backward", 240, 300)]
    assert where.late_by_phase(idle, phases) == {"head": 100, "backward": 100, where.BETWEEN: 100}
    parts = where.parts_of(kernels)
    assert parts[where.IN_GRAPHS] == 3 and parts[where.HOST] == 300
    assert where.gaps([]) == [] and where.late_by_phase(idle, []) == {where.BETWEEN: 300}


def test_phases_are_no_kernels_wherever_a_profile_shows_them() -> None:
    @dataclasses.dataclass
    class Event:
        name: str
        device_type: Any
        time_range: Any

    kinds, time = torch.autograd.DeviceType, dataclasses.make_dataclass("Time", ["start", "end"])
    events = [Event("phase: head", kinds.CPU, time(0, 9)), Event("phase: head", kinds.CUDA, time(2, 8)),
              Event("update", kinds.CUDA, time(3, 7)), Event("aten::add", kinds.CPU, time(1, 2))]
    assert where.spans_of(events, gpu=True) == ([Span("update", 3, 7)], [Span("head", 0, 9)])
    assert where.spans_of(events, gpu=False)[0] == [Span("aten::add", 1, 2)]


@pytest.fixture
def few_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (networks, whole, torch_compile):
        monkeypatch.setattr(module, "made", small)


def test_steps_are_timed_in_turn_and_their_time_is_taken_apart(setting: Setting, report: Report,
                                                               few_layers: None) -> None:
    whole.side_by_side(setting, report)
    where.where(setting, report)
    assert report.failed == []
    content = found_in(setting.folder)
    assert [row["way"] for row in content["tables"][whole.TABLE]] == ["ours", *whole.MORE]
    (title,) = [title for title in content["tables"] if title.startswith("Where a step goes")]
    assert any("phase forward" in row["part"] for row in content["tables"][title])


def test_a_step_is_held_against_arcface_torch_and_its_targets(report: Report, tmp_path: Path) -> None:
    case = whole.Case("r50", 128, 1_000_000, 2, 0.6)
    ours, other = whole.Measured(25, 24, 26, 9, 8), whole.Measured(100, 99, 101, 18, 17)
    whole.tell(report, case, "arcface_torch", other, other, 0.01)
    whole.tell(report, case, "ours", ours, other, 0.01)
    (row,) = found_in(tmp_path)["tables"][whole.TABLE][1:]
    assert (row["images/s"], row["share of the product's peak"]) == ("5120", "40 %")
    assert row["times as fast as arcface_torch"] == "4 (at least 2: reached)"
    assert row["of its peak"] == "0.5 (at most 0.6: reached)"


def test_two_steps_that_do_not_fit_together_are_timed_one_after_the_other(
        setting: Setting, report: Report, few_layers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def full(setting: Setting, makers: Any) -> Any:
        tried.append(list(makers))
        if len(makers) > 1:
            raise torch.OutOfMemoryError
        return dict.fromkeys(makers, whole.Measured(2, 1, 3, 4, 5))

    monkeypatch.setattr(Setting, "gpu", True)
    monkeypatch.setattr(whole, "measure", full)
    monkeypatch.setattr(whole, "card_peaks", lambda *place: 1e12)
    monkeypatch.setattr(whole, "CASES", whole.SMALL)
    whole.side_by_side(setting._replace(arcface_torch=setting.folder), report)
    assert tried == [["ours", "arcface_torch"], [""], [""]]
    assert [row["way"] for row in found_in(setting.folder)["tables"][whole.TABLE]] == ["ours", "arcface_torch"]


def test_a_pass_is_compiled_without_breaks(few_layers: None) -> None:
    found = torch_compile.compiled_passes("r50", 2, torch.device("cpu"), backend="eager")
    assert (found["graphs"], found["breaks"]) == (1, 0) and found["ms"] > 0


def test_why_a_network_was_not_compiled_is_told() -> None:
    found, why = torch_compile._in_a_process(["r50", "--device", "nowhere"], 120)
    assert found == {} and why.startswith("RuntimeError")
    assert torch_compile._in_a_process(["r50"], 0)[1].startswith("not compiled after")


def test_phases_of_a_profile_are_read() -> None:
    lines = ["phase          median ms   of time", "data                0.012      0.1%",
             "look ahead          1.500     10.0%", "", "  Name   Self CPU %", "aten::add  99.0%"]
    assert the_command.phases_of("\n".join(lines)) == {"data": 0.012, "look ahead": 1.5}


@pytest.mark.slow
def test_the_command_is_timed_and_one_rank_has_the_bits_of_none(setting: Setting, report: Report,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    the_command.by_the_command(setting, report)
    the_command.one_rank(setting, report)
    assert report.failed == [], (setting.folder / "log.txt").read_text()
    content = found_in(setting.folder)
    assert len(content["tables"]["The command"]) == 2
    assert "the same bits with a launcher" in content["checks"]["here"]


def test_heads_are_timed(setting: Setting, report: Report) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    fused.kernels_cost(setting, report)
    assert report.failed == []
    (title,) = [title for title in found_in(setting.folder)["tables"] if title.startswith("The head alone")]
    assert len(found_in(setting.folder)["tables"][title]) == 4 * len(fused.SMALL)
