# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.timeline import Span, draw, idle, median_step, read_spans
from recognition.errors import UserError

PHASES = (("data", 0, 1), ("forward", 1, 5), ("update", 5, 6))
OPERATORS = (("Convolution", 1, 3), ("FullyConnected", 2, 4), ("WaitForVar", 4, 5))


def profile(path: Path, lengths: tuple[int, ...]) -> Path:
    """Steps that begin after 0, lengths[0], ... ms, as MXNet's profiler writes them, in microseconds."""
    events, start = [{"ph": "M", "name": "process_name", "args": {"name": "cpu/0"}}], 100
    for length in lengths:
        for category, kinds, spans in (("step", "be", PHASES), ("operator", "BE", OPERATORS)):
            for name, low, high in spans:
                events += [{"name": name, "cat": category, "ph": kind, "ts": 1000 * (start + at), "pid": 1, "tid": 2}
                           for kind, at in zip(kinds, (low, high))]
        start += length
    path.write_text(json.dumps({"traceEvents": events}))
    return path


def test_spans_and_the_median_step(tmp_path: Path) -> None:
    phases, operators = read_spans(profile(tmp_path / "p.json", (10, 7, 30, 9)))
    assert phases[:3] == [Span("data", 100, 101), Span("forward", 101, 105), Span("update", 105, 106)]
    assert [span.name for span in operators] == 4 * ["Convolution", "FullyConnected", "WaitForVar"]
    assert median_step(phases) == (100, 110)
    with pytest.raises(UserError, match="a profile of one step"):
        median_step(phases[:3])


def test_idle_counts_what_no_operator_covers() -> None:
    spans = [Span("a", 1, 3), Span("b", 2, 4), Span("c", 2, 3), Span("d", 6, 20)]
    assert idle(spans, 0, 10) == pytest.approx(3)  # 0 to 1, 4 to 6
    assert idle(spans, 7, 9) == 0
    assert idle([], 2, 5) == 3


def test_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    paths = {name: profile(tmp_path / name, (10, 10, 10)) for name in ("one", "two")}
    draw(paths, tmp_path / "steps.png")
    assert (tmp_path / "steps.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("content, message", [
    ("", "cannot be read"), ("[]", "cannot be read"), ('{"traceEvents": []}', "found no phase 'data'")])
def test_what_is_no_profile(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_spans(path)
