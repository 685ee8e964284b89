# SPDX-License-Identifier: Apache-2.0
"""Sources of images of people: a folder of folders, or a list file."""
from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from recognition.errors import UserError, one_line

EXTENSIONS = frozenset((".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))
_EXPECTED = "expected 'path<TAB>label' or 'flag<TAB>path<TAB>label' (flag 1: the image is aligned)"
_logger = logging.getLogger(__name__)


class Identity(NamedTuple):
    """A person: the name of the folder or the label in the list, and the image files."""

    name: str
    images: list[Path]


def read_identities(source: Path) -> list[Identity]:
    """Read the identities in ``source``, a folder of folders or a list file, and their images, in natural order.

    :raises UserError: if there are none, or if a name or a line is not valid.
    """
    found = _read_folder(source) if source.is_dir() else _read_list(source)
    if not found:
        kinds = " ".join(sorted(EXTENSIONS))
        raise UserError(f"{source}: no images there, expected a folder of images ({kinds}) for each person"
                        if source.is_dir() else f"{source}: no lines there, {_EXPECTED}")
    for name in found:
        if any(ord(letter) < 32 or ord(letter) == 127 for letter in name):
            raise UserError(f"{source}: found a person named {name!r}, expected names without control characters: they "
                            "become lines of a file")
    return [Identity(name, found[name]) for name in sorted(found, key=_natural)]


def find_images(place: Path) -> list[Path]:
    """The image files at any depth in a folder, sorted; or ``place`` itself, if it is a file.

    :raises UserError: if there are none.
    """
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise UserError(f"{place}: not found, expected an image or a folder of images")
    found = sorted(Path(root, name) for root, _, names in os.walk(place) for name in names
                   if os.path.splitext(name)[1].lower() in EXTENSIONS and not name.startswith("."))
    if not found:
        raise UserError(f"{place}: no images there, expected files that end in {' '.join(sorted(EXTENSIONS))}")
    return found


def _natural(name: str) -> tuple[list, str]:
    """A sort key that puts s2 before s10. The digits are the odd elements of the split, of any length: of two numbers
    without leading zeros the longer one is greater."""
    parts = re.split(r"0*([0-9]+)", name)
    return [(len(part), part) if i % 2 else part for i, part in enumerate(parts)], name


def each_identity(source: Path) -> Iterator[Identity]:
    """Yield the identities of :func:`read_identities` one by one. For a folder only the names are in memory at once."""
    if not source.is_dir():
        yield from read_identities(source)
        return
    for name in sorted(_people(source), key=_natural):
        if images := images_below(source / name):
            yield Identity(name, images)


def _read_folder(source: Path) -> dict[str, list[Path]]:
    found = {name: images_below(source / name) for name in _people(source)}
    return {name: images for name, images in found.items() if images}


def _people(source: Path) -> list[str]:
    """The folders in ``source``; names that begin with a dot are left out."""
    return [entry.name for entry in os.scandir(source) if entry.is_dir() and not entry.name.startswith(".")]


def images_below(folder: Path) -> list[Path]:
    """Images at any depth, in natural order; names that begin with a dot are left out."""
    images = [Path(root, name) for root, _, names in os.walk(folder) for name in names
              if os.path.splitext(name)[1].lower() in EXTENSIONS and not name.startswith(".")]
    return sorted(images, key=lambda path: _natural(str(path)))


def _read_list(source: Path) -> dict[str, list[Path]]:
    """Read lines ``path label`` (label: any word) or, as in InsightFace's .lst, ``flag<TAB>path<TAB>label``.

    Paths are relative to the list's folder, and may not lead out of it by ``..``. Absolute paths, which InsightFace's
    lists have, are allowed; a line is logged about them. Images keep the order of the list.
    """
    try:
        text = source.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise UserError(f"{source}: cannot be read: {error.strerror}") from error
    found: dict[str, list[Path]] = {}
    named: list[str] = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            path, label = _parse_line(source, number, line.strip("\r"))
            if "\0" in path or _leads_out(path):
                raise UserError(f"{source}: line {number}: found {path[:80]!r}, expected a path below the list's "
                                "folder, or an absolute one")
            named.append(path)
            found.setdefault(label, []).append(source.parent / path)
    for image, times in Counter(image for images in found.values() for image in images).most_common(1):
        if times > 1:
            raise UserError(f"{source}: {image} is listed {times} times, expected once")
    absolute = [path for path in named if os.path.isabs(path)]
    if absolute:
        _logger.warning("%s: %d of its %d images have absolute paths, which are read wherever they lead; the first: %s",
                        one_line(source), len(absolute), len(named), one_line(absolute[0]))
    return found


def _leads_out(path: str) -> bool:
    """True for a relative path that leads out of its folder by ``..``."""
    return not os.path.isabs(path) and os.path.normpath(path).split(os.sep)[0] == os.pardir


def _parse_line(source: Path, number: int, line: str) -> tuple[str, str]:
    fields = line.split("\t") if "\t" in line else line.rsplit(None, 1)
    fields = [field.strip() for field in fields]
    where = f"{source}: line {number}"
    if len(fields) == 2 and all(fields):
        return fields[0], fields[1]
    if len(fields) < 3 or not fields[2].isdecimal() or fields[0] not in ("0", "1"):
        raise UserError(f"{where}: found {line[:80]!r}, {_EXPECTED}")
    if fields[0] == "0":
        raise UserError(f"{where}: flag 0, {fields[1]} is not aligned yet; expected aligned images, flag 1")
    return fields[1], fields[2]
