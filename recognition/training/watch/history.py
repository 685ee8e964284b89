# SPDX-License-Identifier: Apache-2.0
"""``history.jsonl``: what the log lines say, for programs; a line is one JSON object.

The file stays below a size: where it would grow beyond, the older half of its records becomes half as dense, so that a
run of any length can be drawn from its begin to its end.
"""
from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from recognition.io.files import replacing, writing

MOST = 64 << 20  # bytes: 400,000 records of 20 steps each


class History:
    """Appends records to a file. A run that goes on from step n drops what was written after n first."""

    def __init__(self, path: Path, step: int, most: int = MOST) -> None:
        """:param most: bytes of the file."""
        self._path, self._most = path, most
        with writing(path):
            kept = _lines_up_to(path, step) if step and path.exists() else []
            with replacing(path) as temporary:
                temporary.write_text("".join(kept), encoding="utf-8")
            self._open()

    def _open(self) -> None:
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)
        self._size = os.fstat(self._file.fileno()).st_size

    def write(self, kind: str, step: int, **values: Any) -> None:
        line = json.dumps({"kind": kind, "step": step, **values}) + "\n"
        with writing(self._path):
            if self._size + len(line) > self._most:
                self._thin()
            self._file.write(line)
            self._file.flush()
        self._size += len(line)  # JSON's default is ASCII: a character is a byte

    def _thin(self) -> None:
        """Drop every second record of the older half, of each kind (and verification target) apart."""
        self._file.close()
        lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
        seen: Counter[tuple[str, str]] = Counter()
        kept = []
        for line in lines[: len(lines) // 2]:
            record = json.loads(line)
            kind = record["kind"], str(record.get("target"))
            kept += [] if seen[kind] % 2 else [line]
            seen[kind] += 1
        with replacing(self._path) as temporary:
            temporary.write_text("".join(kept + lines[len(lines) // 2 :]), encoding="utf-8")
        self._open()

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
        except (ValueError, TypeError, KeyError, RecursionError):
            break
    return kept
