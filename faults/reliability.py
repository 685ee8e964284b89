# SPDX-License-Identifier: Apache-2.0
"""The table of docs/records/reliability.md: faults of the trainer, numbers of trials, promises and results.

    python -m faults.reliability            # writes the table anew from the records in docs/records/reliability/

A harness of faults ends with :func:`report`, which prints its rows. Started with ``--record`` it also writes them to
``docs/records/reliability/<name>.json`` and writes the table anew. Nobody writes a row by hand.
"""
from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from recognition.errors import UserError
from recognition.io.files import write_whole

RECORDS = Path(__file__).resolve().parents[1] / "docs" / "records"
BEGIN, END = "<!-- table -->", "<!-- end of the table -->"


@dataclass(frozen=True)
class Row:
    """The row of a fault."""

    fault: str  # what was done
    tried: int  # number of trials
    promised: str  # the trainer's promise
    kept: int  # number of trials in which it kept the promise
    happened: str  # the results, with figures

    def cells(self) -> list[str]:
        kept = "" if self.kept == self.tried else f"**kept {self.kept} of {self.tried} times**; "
        return [self.fault, f"{self.tried:,}", self.promised, kept + self.happened]


def harness_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """The parser of ``python -m faults.NAME``, with the flag ``--record``."""
    parser = argparse.ArgumentParser(prog=f"python -m faults.{name}", description=description,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write what was found to docs/records/reliability.md")
    return parser


def report(name: str, command: str, rows: Sequence[Row], record: bool) -> int:
    """Print the rows of a harness and, with ``record``, write them to RECORDS; returns 1 if a promise broke, else 0.

    :param name: of the class of faults, and of its file: letters, digits and hyphens.
    :param command: what to type to try it again.
    """
    for row in rows:
        print(f"{'kept' if row.kept == row.tried else 'BROKEN'}: {' | '.join(row.cells())}", flush=True)
    if record:
        found = {"command": command, "date": datetime.date.today().isoformat(), "rows": [asdict(row) for row in rows]}
        write_whole(RECORDS / "reliability" / f"{name}.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        write_table()
    return int(any(row.kept != row.tried for row in rows))


def table() -> str:
    """The records below RECORDS, in the order of their names, in Markdown."""
    lines = []
    for path in sorted((RECORDS / "reliability").glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        lines += [f"\n## {path.stem.replace('-', ' ').capitalize()}\n", f"`{found['command']}`, {found['date']}\n",
                  "| fault | tried | promised | happened |", "| --- | --- | --- | --- |"]
        for row in found["rows"]:
            lines.append("| " + " | ".join(cell.replace("|", "or") for cell in Row(**row).cells()) + " |")
    return "\n".join([*lines, ""])


def write_table() -> None:
    """Put the table between its two marks in reliability.md.

    :raises UserError: if the page has not just these two.
    """
    page = RECORDS / "reliability.md"
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end) or BEGIN in after:
        raise UserError(f"{page}: found no {BEGIN} ... {END}, expected one of each, around the table")
    write_whole(page, f"{before}{BEGIN}\n{table()}\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    write_table()


if __name__ == "__main__":
    main()
