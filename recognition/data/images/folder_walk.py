# SPDX-License-Identifier: Apache-2.0
"""The walk through a folder of images, which counts by its kind what is no image."""
from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from recognition.errors import one_line

# Of the formats that are decoded: JPEG, PNG, WebP, BMP, PBM, PGM, PPM, TIFF.
EXTENSIONS = frozenset((".bmp", ".dib", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".pjp", ".pjpeg", ".png",
                        ".pnm", ".ppm", ".tif", ".tiff", ".webp"))
_MOST_KINDS = 8  # named in a line
_logger = logging.getLogger(__name__)


class LeftOut:
    """Counts of what was left out of a folder, by kind."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()

    def add(self, kind: str, number: int = 1) -> None:
        if number:
            self.kinds[kind] += number

    def forget(self, kind: str, number: int) -> None:
        """Take back so many of a kind."""
        self.kinds[kind] -= number
        self.kinds += Counter()  # keeps what is above 0

    def tell(self, place: Path) -> None:
        """Log a line about all of it, if there is something."""
        if not self.kinds:
            return
        shown = [f"{number} {kind}" for kind, number in self.kinds.most_common(_MOST_KINDS)]
        rest = sum(self.kinds.values()) - sum(number for _, number in self.kinds.most_common(_MOST_KINDS))
        _logger.warning("%s: left out: %s", one_line(place), one_line(", ".join(shown))
                        + (f", {rest} of other kinds" if rest else ""))


def is_image(name: str) -> bool:
    """True for the name of a file that ends like an image and is not hidden."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS and not name.startswith(".")


def images_below(folder: Path, left_out: LeftOut, endings: Iterable[str] | None = None,
                 folders: list[str] | None = None) -> list[Path]:
    """The images at any depth in a folder. Links to folders are not followed, what is hidden is left out.

    :param endings: of names, instead of those of images
    :param folders: gets the folders that are walked
    """
    found: list[Path] = []
    wanted = tuple(endings) if endings is not None else None
    for root, below, names in os.walk(folder, onerror=lambda _: left_out.add("folders that cannot be read")):
        left_out.add("links to folders", sum(os.path.islink(os.path.join(root, name)) for name in below))
        left_out.add("hidden folders", sum(name.startswith(".") for name in below))
        below[:] = [name for name in below if not name.startswith(".")]
        if folders is not None:
            folders.append(root)
        for name in names:
            if not name.startswith(".") and (name.endswith(wanted) if wanted else is_image(name)):
                found.append(Path(root, name))
            else:
                left_out.add(kind_of(name))
    return found


def kind_of(name: str) -> str:
    """The kind, in words, of a file that is no image."""
    if name.startswith("."):
        return "hidden files"
    ending = os.path.splitext(name)[1].lower()
    return f"files that end in {ending}" if ending else "files without an ending"


def natural(name: str) -> tuple[list, str]:
    """A sort key that puts s2 before s10. The digits are the odd elements of the split, of any length: of two numbers
    without leading zeros the longer one is greater."""
    parts = re.split(r"0*([0-9]+)", name)
    return [(len(part), part) if i % 2 else part for i, part in enumerate(parts)], name


def people(source: Path, left_out: LeftOut) -> list[str]:
    """The names of the folders in ``source``, links to folders, too; names that begin with a dot are left out."""
    found = []
    for entry in os.scandir(source):
        if entry.is_dir() and not entry.name.startswith("."):
            found.append(entry.name)
        elif entry.is_dir():
            left_out.add("hidden folders")
        else:
            left_out.add("images beside the folders of people" if is_image(entry.name) else kind_of(entry.name))
    return found
