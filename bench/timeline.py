# SPDX-License-Identifier: Apache-2.0
"""Draws the timeline of a training step for each of some profiles of `train_parall.py --profile N`.

    python -m bench.timeline "one after the other=a/profile.json" "overlapped=b/profile.json" --output steps.png

The upper lane has the phases of the loop, for which the Python thread waits, the lower lane MXNet's operators. All
profiles have the same scale of time; each begins at the phase `data` of its median step.
"""
from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from recognition.errors import UserError, command

FIRST_PHASE = "data"
COLOURS = {"data": "#b3892a", "forward": "#0b6fb8", "head": "#8a4fa3", "backward": "#d1622b", "update W": "#2f8f5b",
           "check": "#8b949e", "update": "#4c5a67"}
OPERATORS, WAITING = "#7fa8c9", ("WaitForVar", "DeleteVariable")  # the latter take no processor time


class Span(NamedTuple):
    """A phase or an operator from ``start`` to ``end``, in milliseconds."""

    name: str
    start: float
    end: float


def read_spans(path: Path) -> tuple[list[Span], list[Span]]:
    """Read the phases and operators of a trace in Chrome's format, sorted by their start."""
    try:
        events = json.loads(path.read_text())["traceEvents"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: cannot be read: {error}; expected what --profile writes") from error
    open_at: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    found: dict[str, list[Span]] = {"step": [], "operator": []}
    for event in events:
        kind, category = event.get("ph"), event.get("cat")
        if category not in found or kind not in ("bBeE" if category == "step" else "BE"):
            continue
        key = (category, event["name"], event.get("pid"), event.get("tid"))
        if kind in "bB":
            open_at[key].append(event["ts"])
        elif open_at[key]:
            found[category].append(Span(event["name"], open_at[key].pop() / 1000, event["ts"] / 1000))
    if not any(span.name == FIRST_PHASE for span in found["step"]):
        raise UserError(f"{path}: found no phase {FIRST_PHASE!r}, expected the profile of a training run")
    return tuple(sorted(spans, key=lambda span: span.start) for spans in found.values())  # type: ignore[return-value]


def median_step(phases: list[Span]) -> tuple[float, float]:
    """The start of the step of median length, and the start of the next one, in milliseconds."""
    starts = [span.start for span in phases if span.name == FIRST_PHASE]
    lengths = np.diff(starts)
    if not len(lengths):
        raise UserError("a profile of one step, expected two at least")
    place = int(np.argmin(np.abs(lengths - statistics.median(lengths))))
    return starts[place], starts[place + 1]


def idle(operators: list[Span], start: float, end: float) -> float:
    """The milliseconds from ``start`` to ``end`` in which no operator runs."""
    covered, reached = 0.0, start
    for _, low, high in operators:
        low, high = max(low, reached), min(high, end)
        if high > low:
            covered, reached = covered + high - low, high
    return end - start - covered


def draw(profiles: dict[str, Path], output: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(profiles), figsize=(10, 1.5 * len(profiles) + 0.9), sharex=True, squeeze=False)
    for axis, (title, path) in zip(axes[:, 0], profiles.items()):
        phases, operators = read_spans(path)
        operators = [span for span in operators if span.name not in WAITING]
        start, end = median_step(phases)
        for span in phases:
            if start <= span.start < end and span.name in COLOURS:
                axis.broken_barh([(span.start - start, span.end - span.start)], (1.1, 0.8), color=COLOURS[span.name])
        axis.broken_barh([(span.start - start, span.end - span.start) for span in operators
                          if span.end > start and span.start < end], (0.1, 0.8), color=OPERATORS, linewidth=0)
        axis.axvline(end - start, color="#30363d", linewidth=1)
        axis.set_yticks([0.5, 1.5], ["MXNet", "loop"])
        axis.set_title(f"{title}: {end - start:.0f} ms a step, MXNet idle for {idle(operators, start, end):.0f} ms",
                       fontsize=9, loc="left")
        for side in ("top", "right", "left"):
            axis.spines[side].set_visible(False)
    axes[-1, 0].set_xlabel("milliseconds")
    axes[-1, 0].set_xlim(left=0)
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=colour) for colour in (*COLOURS.values(), OPERATORS)]
    figure.legend(handles, [*COLOURS, "operators"], ncol=len(handles), loc="upper center", fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.93))
    figure.savefig(output, dpi=90)


@command
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profiles", nargs="+", metavar="TITLE=FILE")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.png")
    args = parser.parse_args()
    draw({title: Path(path) for title, _, path in (text.partition("=") for text in args.profiles)}, args.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
