# SPDX-License-Identifier: Apache-2.0
"""What the checks of ``bench.gpu`` find: lines of a log, and the same as JSON, written anew after each of them."""
from __future__ import annotations

import json
import time
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

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self._folder, self._began, self._check = folder, time.monotonic(), ""
        self._content: dict[str, Any] = {**about, "checks": {}}
        self._log = open(folder / "log.txt", "w", encoding="utf-8")  # noqa: SIM115 - to the end of the process
        self.failed: list[str] = []
        self.say(", ".join(f"{key} {value}" for key, value in about.items()))

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    def say(self, line: str) -> None:
        line = f"{self.seconds:6.1f} s  {line}"
        print(line, flush=True)
        print(line, file=self._log, flush=True)

    def begin(self, check: str) -> None:
        self._check = check
        self._content["checks"][check] = {}

    def _add(self, name: str, finding: dict[str, Any], line: str, good: bool = True) -> None:
        self._content["checks"][self._check][name] = {**finding, "good": good}
        self._content["seconds"] = round(self.seconds, 1)
        if not good:
            self.failed.append(f"{self._check}: {name}")
        self.say(f"{'ok  ' if good else 'BAD '} {self._check}: {name}: {line}")
        write_whole(self._folder / "found.json", json.dumps(self._content, indent=1) + "\n")

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
