# SPDX-License-Identifier: Apache-2.0
"""``history.jsonl``: what the log lines say, for programs; a line is one JSON object."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from recognition.files import replacing, writing


class History:
    """Appends records to a file. A run that goes on from step n drops what was written after n first."""

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        with writing(path):
            kept = _lines_up_to(path, step) if step and path.exists() else []
            with replacing(path) as temporary:
                temporary.write_text("".join(kept), encoding="utf-8")
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)

    def write(self, kind: str, step: int, **values: Any) -> None:
        with writing(self._path):
            self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
            self._file.flush()

    def close(self) -> None:
        with writing(self._path):
            self._file.close()


def _lines_up_to(path: Path, step: int) -> list[str]:
    """The lines of steps up to ``step``, before the first that a kill cut short or that is no record."""
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step and line.endswith("\n"):
                kept.append(line)
        except (ValueError, TypeError, KeyError):
            break
    return kept
