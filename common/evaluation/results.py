# SPDX-License-Identifier: Apache-2.0
"""The output of evaluations: tables on the screen, and JSON files."""
from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from recognition.errors import one_line
from recognition.evaluation.rates import Rate
from recognition.io.files import require_new, write_whole


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in lines: the first column is aligned left, the others right. Cells may contain any characters."""
    shown = [[one_line(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in shown) for i in range(len(header))]
    lines = ("  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))])
             for row in shown)
    return "\n".join(line.rstrip() for line in lines)


def percent(share: float) -> str:
    """A share in percent with two digits, 98.21; ``-`` for NaN."""
    return "-" if share != share else f"{100 * share:.2f}"


NO_FALSE_ACCEPTS = ("*: fewer pairs of two identities than one in this rate: the share accepted with no false accept "
                    "at all")


def rate_cells(rates: Sequence[Rate]) -> list[str]:
    """The cells of TAR in a table: percent, marked if the FAR allows no false accept (:data:`NO_FALSE_ACCEPTS`)."""
    return [percent(rate.tar) + ("" if rate.allowed else "*") for rate in rates]


def print_rates(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table, and a line about the marks, if it has any."""
    print(table(header, rows))
    if any(cell.endswith("*") for row in rows for cell in row[1:]):
        print(NO_FALSE_ACCEPTS)


def require_results(folder: Path, names: Sequence[str], keys: Iterable[str], inputs: Iterable[Path | None] = (),
                    overwrite: bool = False) -> None:
    """Check, before any work, that a command may write its results to ``folder``: it may replace its own earlier
    results, but no other files.

    :param names: the files; the first is a JSON object, and its ``keys`` show that the command wrote it
    :raises UserError: without ``overwrite``, if a file exists that may be somebody else's
    """
    try:
        found = json.loads((folder / names[0]).read_text(encoding="utf-8"))
        own = isinstance(found, dict) and found.keys() >= set(keys)
    except (OSError, ValueError, RecursionError):
        own = False
    require_new([folder / name for name in names], inputs, overwrite or own)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, whole or not at all.

    :raises ValueError: if a number is not finite: JSON has no such numbers.
    """
    text = json.dumps(value, indent=2, allow_nan=False)
    write_whole(path, text + "\n")
