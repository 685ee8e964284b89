# SPDX-License-Identifier: Apache-2.0
"""What the checks of ``bench.gpu`` find: lines of a log, the same as JSON, and tables in Markdown. JSON and tables are
written anew after each finding."""
from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from recognition.engines.torch.imports import torch
from recognition.io.files import write_whole


class Setting(NamedTuple):
    """Where and how large to check."""

    device: torch.device
    folder: Path  # for what checks write
    arcface_torch: Path | None = None  # a folder with its files, to compare with

    @property
    def gpu(self) -> bool:
        return self.device.type == "cuda"


class Report:
    """Collects findings of checks, and prints each as it comes."""

    def __init__(self, folder: Path, about: dict[str, Any], limit: float = np.inf) -> None:
        """:param folder: gets ``log.txt``, ``found.json`` and ``tables.md``.
        :param limit: seconds that all checks may take together.
        """
        self._folder, self._began, self._limit, self._check = folder, time.monotonic(), limit, ""
        self._content: dict[str, Any] = {**about, "checks": {}, "tables": {}}
        self._log = open(folder / "log.txt", "w", encoding="utf-8")  # noqa: SIM115 - to the end of the process
        self.failed: list[str] = []
        self.say(", ".join(f"{key} {value}" for key, value in about.items()))

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    @property
    def left(self) -> float:
        """Seconds until the limit."""
        return self._limit - self.seconds

    def say(self, line: str) -> None:
        line = f"{self.seconds:6.1f} s  {line}"
        print(line, flush=True)
        print(line, file=self._log, flush=True)

    def begin(self, check: str) -> None:
        self._check = check
        self._content["checks"][check] = {}

    def _add(self, name: str, finding: dict[str, Any], line: str, good: bool = True) -> None:
        self._content["checks"][self._check][name] = {**finding, "good": good}
        if not good:
            self.failed.append(f"{self._check}: {name}")
        self.say(f"{'ok  ' if good else 'BAD '} {self._check}: {name}: {line}")
        self._write()

    def _write(self) -> None:
        self._content["seconds"] = round(self.seconds, 1)
        write_whole(self._folder / "found.json", json.dumps(self._content, indent=1) + "\n")

    def row(self, table: str, cells: Mapping[str, str | float]) -> None:
        """Add a row to the table of that title; ``cells`` by the heads of their columns."""
        self._content["tables"].setdefault(table, []).append(
            {head: cell if isinstance(cell, str) else f"{cell:.4g}" for head, cell in cells.items()})
        self._write()
        write_whole(self._folder / "tables.md", self.tables())

    def tables(self) -> str:
        """All tables in Markdown."""
        return "\n".join(markdown(title, rows) for title, rows in self._content["tables"].items())

    def print_tables(self) -> None:
        """Print all tables as they stand in ``tables.md``, without the time of lines."""
        for line in self.tables().splitlines():
            print(line, flush=True)
            print(line, file=self._log, flush=True)

    def value(self, check: str, name: str) -> float | None:
        """A figure that :meth:`measured` got in this run; None if there is none."""
        found = self._content["checks"].get(check, {}).get(name, {})
        return found.get("value")

    def close(self, name: str, found: Any, wanted: Any, tolerance: float, digits_of: str = "largest") -> None:
        """A check that arrays are alike: their largest difference, or the norm of it, over that of ``wanted``."""
        found, wanted = (np.asarray(a, np.float64) for a in (found, wanted))
        size = np.linalg.norm if digits_of == "norm" else (lambda a: np.abs(a).max(initial=0))
        error = float(size(found - wanted) / max(size(wanted), 1e-30))
        self._add(name, {"error": error, "tolerance": tolerance, "of": digits_of},
                  f"{error:.1e} of the {digits_of}, at most {tolerance:.0e}", bool(error <= tolerance))

    def true(self, name: str, value: bool, why: str = "") -> None:
        self._add(name, {"why": why}, why or str(value), bool(value))

    def measured(self, name: str, value: float, unit: str, most: float = np.inf) -> None:
        """A figure, which is bad if it exceeds ``most``."""
        limit = "" if most == np.inf else f", at most {most:.4g}"
        self._add(name, {"value": value, "unit": unit}, f"{value:.4g} {unit}{limit}", value <= most)


def markdown(title: str, rows: Sequence[Mapping[str, str]]) -> str:
    """A table; a cell that a row does not have is empty."""
    heads = list(dict.fromkeys(head for row in rows for head in row))
    lines = [heads, ["---"] * len(heads), *([row.get(head, "") for head in heads] for row in rows)]
    return "\n".join([f"**{title}**", "", *(f"| {' | '.join(line)} |" for line in lines), ""])


def judged(value: float, least: float | None = None, most: float | None = None) -> str:
    """A figure beside its target, if it has one."""
    figure = f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    if least is None and most is None:
        return figure
    reached = (least is None or value >= least) and (most is None or value <= most)
    target = f"at least {least:g}" if least is not None else f"at most {most:g}"
    return f"{figure} ({target}: {'reached' if reached else 'missed'})"


def kernels_usable(setting: Setting, report: Report, why_not: Callable[[], str]) -> bool:
    """Report whether Triton's kernels can be used: on a CPU in Triton's interpreter, on a GPU unless ``why_not`` says
    a reason."""
    why = "" if importlib.util.find_spec("triton") else "Triton is not installed"
    if setting.gpu and not why:
        why = why_not()
    report.true("the kernels can be used", not why, why)
    return not why
