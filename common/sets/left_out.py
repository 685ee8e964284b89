# SPDX-License-Identifier: Apache-2.0
"""Lines about what a command leaves out."""
from __future__ import annotations

from collections.abc import Sequence

from recognition.errors import one_line

MOST_LINES = 10  # on the screen


def tell(lines: Sequence[str], what: str = "left out") -> None:
    """Print the first lines, each behind ``what``."""
    for line in lines[:MOST_LINES]:
        print(f"{what}: {one_line(line)}")
