# SPDX-License-Identifier: Apache-2.0
"""What evaluations leave behind: a table on the screen, JSON beside it."""
from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recognition.files import replacing


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lines with aligned columns, the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = ("  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))])
             for row in (header, *rows))
    return "\n".join(line.rstrip() for line in lines)


def percent(share: float) -> str:
    """As tables of papers have it: 98.21, in percent; ``-`` for what there is none of."""
    return "-" if share != share else f"{100 * share:.2f}"


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, whole or not at all. Numbers that are not finite, which JSON has none of, are a ValueError."""
    text = json.dumps(value, indent=2, allow_nan=False)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
