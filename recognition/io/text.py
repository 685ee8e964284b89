# SPDX-License-Identifier: Apache-2.0
"""Text files of people: UTF-8, with or without a byte order mark, in which bytes that are no UTF-8 survive; or UTF-16
with its mark, which Windows' shell writes."""
from __future__ import annotations

import codecs
from pathlib import Path
from typing import TextIO

from recognition.io.files import reading


def open_text(path: Path) -> TextIO:
    """Open a text file for reading. A byte order mark, which Windows' editors write, is left out."""
    with open(path, "rb") as file:
        wide = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    return open(path, encoding="utf-16", errors="replace") if wide else open(
        path, encoding="utf-8-sig", errors="surrogateescape")


def read_text(path: Path) -> str:
    """The text of a file, as :func:`open_text` reads it.

    :raises UserError: if it cannot be read.
    """
    with reading(path), open_text(path) as file:
        return file.read()
