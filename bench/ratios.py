# SPDX-License-Identifier: Apache-2.0
"""The results of benches in files: ratios to the alternative that was measured in the same run.

A bench writes them to the FILE of ``--json``, beside the table that it prints; ``bench.short`` reads them.
"""
from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recognition.errors import UserError
from recognition.io.files import write_whole


def bench_parser(description: str | None) -> argparse.ArgumentParser:
    """The parser of a bench: the lines of its description stay, and ``--json`` names the file of its ratios."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the ratios there, too")
    return parser


def write_ratios(path: Path | None, ratios: Mapping[str, float]) -> None:
    """Write ``{name of the ratio: ratio}``; do nothing without a path.

    :raises UserError: if the file cannot be written.
    """
    if path:
        write_whole(path, json.dumps(dict(ratios), indent=1) + "\n")


def read_ratios(path: Path, expected: Sequence[str]) -> dict[str, float]:
    """Read the expected ratios, in this order.

    :raises UserError: if there is no such file, or if a ratio is missing or no finite number above 0.
    """
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"no ratios: {error}") from error
    for name in expected:
        ratio = found.get(name) if isinstance(found, dict) else None
        if not isinstance(ratio, (int, float)) or not 0 < ratio < math.inf:
            raise UserError(f"found the ratio {ratio} of {name!r}, expected a number above 0")
    return {name: float(found[name]) for name in expected}
