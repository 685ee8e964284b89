# SPDX-License-Identifier: Apache-2.0
"""``history.jsonl``: what the log lines say, for programs; a line is one JSON object."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from recognition.files import replacing


class History:
    """Appends records to a file. A run that goes on from step n drops what was written after n first."""

    def __init__(self, path: Path, step: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in _complete_lines(path) if json.loads(line)["step"] <= step] if step else []
        with replacing(path) as temporary:
            temporary.write_text("".join(kept))
        self._file = open(path, "a")  # noqa: SIM115 (closed by close)

    def write(self, kind: str, step: int, **values: Any) -> None:
        self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _complete_lines(path: Path) -> list[str]:
    """Lines up to the first that a kill cut short."""
    lines = []
    for line in path.read_text().splitlines(keepends=True) if path.exists() else []:
        try:
            json.loads(line)
        except ValueError:
            break
        lines.append(line)
    return lines
