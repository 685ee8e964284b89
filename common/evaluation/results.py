# SPDX-License-Identifier: Apache-2.0
"""What evaluations leave behind: a table on the screen, JSON beside it."""
from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recognition.errors import one_line
from recognition.evaluation.rates import Rate
from recognition.io.files import replacing


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lines with aligned columns, the first to the left, the others to the right. Names may be those of strangers."""
    shown = [[one_line(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in shown) for i in range(len(header))]
    lines = ("  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))])
             for row in shown)
    return "\n".join(line.rstrip() for line in lines)


def percent(share: float) -> str:
    """As tables of papers have it: 98.21, in percent; ``-`` for what there is none of."""
    return "-" if share != share else f"{100 * share:.2f}"


NO_FALSE_ACCEPTS = ("*: fewer pairs of two identities than one in this rate: the share accepted with no false accept "
                    "at all")


def rate_cells(rates: Sequence[Rate]) -> list[str]:
    """A table's cells of TAR: in percent, marked where the rate allows no false accept (:data:`NO_FALSE_ACCEPTS`)."""
    return [percent(rate.tar) + ("" if rate.allowed else "*") for rate in rates]


def print_rates(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table, and below it what its marks mean if it has any."""
    print(table(header, rows))
    if any(cell.endswith("*") for row in rows for cell in row[1:]):
        print(NO_FALSE_ACCEPTS)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, whole or not at all. Numbers that are not finite, which JSON has none of, are a ValueError."""
    text = json.dumps(value, indent=2, allow_nan=False)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
