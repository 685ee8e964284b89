# SPDX-License-Identifier: Apache-2.0
"""``history.jsonl``: the content of the log lines for programs. Each line is a JSON object.

The file has a size limit. Before it is exceeded, every second record of the older half is dropped, so that a run of any
length can be drawn from its start to its end.
"""
from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from recognition.io.files import write_whole, writing

MOST_BYTES = 64 << 20  # 400,000 records, each for 20 steps


class History:
    """A file to which records are appended. A run that resumes from step n first drops the records after n."""

    def __init__(self, path: Path, step: int, most_bytes: int = MOST_BYTES) -> None:
        """:param step: the step that the run resumes from; with 0 no older record is kept."""
        self._path, self._most_bytes = path, most_bytes
        with writing(path):
            kept = _lines_up_to(path, step) if step and path.exists() else []
            write_whole(path, "".join(kept))
            self._open()

    def _open(self) -> None:
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)
        self._size = os.fstat(self._file.fileno()).st_size

    def write(self, kind: str, step: int, **values: Any) -> None:
        line = json.dumps({"kind": kind, "step": step, **values}) + "\n"
        with writing(self._path):
            if self._size + len(line) > self._most_bytes:
                self._thin()
            self._file.write(line)
            self._file.flush()
        self._size += len(line)  # JSON's default is ASCII: a character is a byte

    def _thin(self) -> None:
        """Drop every second record of the older half, counted for each kind and verification target by itself."""
        self._file.close()
        lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
        seen: Counter[tuple[str, str]] = Counter()
        kept = []
        for line in lines[: len(lines) // 2]:
            record = json.loads(line)
            series = record["kind"], str(record.get("target"))
            kept += [] if seen[series] % 2 else [line]
            seen[series] += 1
        write_whole(self._path, "".join(kept + lines[len(lines) // 2 :]))
        self._open()

    def close(self) -> None:
        with writing(self._path):
            self._file.close()


def _lines_up_to(path: Path, step: int) -> list[str]:
    """The lines of steps up to ``step``. Reading ends at a line that is no record; a kill may have cut it short."""
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step and line.endswith("\n"):
                kept.append(line)
        except (ValueError, TypeError, KeyError, RecursionError):
            break
    return kept
