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

from common.sets.named_images import with_slashes
from recognition.data.images.folder_walk import EXTENSIONS, LeftOut, images_below, is_image, natural, people
from recognition.errors import UserError, one_line
from recognition.io.text import read_text

_HEADINGS = frozenset(("path", "image", "image_path", "img_path", "file", "filename", "label", "id"))  # of tables
_EXPECTED = "expected 'path<TAB>label', 'flag<TAB>path<TAB>label' (flag 1: the image is aligned) or im2rec's list"
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
    return [Identity(name, found[name]) for name in sorted(found, key=natural)]


def find_images(place: Path, quiet: bool = False) -> list[Path]:
    """The image files at any depth in a folder, sorted; or ``place`` itself, if it is a file. A line is logged about
    what is left out, unless ``quiet``.

    :raises UserError: if there are none.
    """
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise UserError(f"{place}: not found, expected an image or a folder of images")
    left_out = LeftOut()
    found = sorted(images_below(place, left_out))
    if not quiet:
        left_out.tell(place)
    if not found:
        raise UserError(f"{place}: no images there, expected files that end in {' '.join(sorted(EXTENSIONS))}")
    return found


def each_identity(source: Path) -> Iterator[Identity]:
    """Yield the identities of :func:`read_identities` one by one. For a folder only the names are in memory at once. A
    line is logged about what is left out of a folder."""
    if not source.is_dir():
        yield from read_identities(source)
        return
    left_out = LeftOut()
    for name in sorted(people(source, left_out), key=natural):
        if images := _images_of(source / name, left_out):
            yield Identity(name, images)
    left_out.tell(source)


def _read_folder(source: Path) -> dict[str, list[Path]]:
    left_out = LeftOut()
    found = {name: _images_of(source / name, left_out) for name in people(source, left_out)}
    left_out.tell(source)
    return {name: images for name, images in found.items() if images}


def _images_of(person: Path, left_out: LeftOut) -> list[Path]:
    """Images at any depth, in natural order."""
    images = images_below(person, left_out)
    left_out.add("people without images", not images)
    return sorted(images, key=lambda path: natural(str(path)))


def _read_list(source: Path) -> dict[str, list[Path]]:
    """Read lines ``path label`` (label: any word), ``flag<TAB>path<TAB>label`` as in InsightFace's .lst, or im2rec's
    ``number<TAB>label<TAB>path``, which may have further labels behind the first. Tables of ``path,label`` with commas
    or semicolons, and with the label in front, are read, too.

    Paths are relative to the list's folder, and may not lead out of it by ``..``. Absolute paths, which InsightFace's
    lists have, are allowed; a line is logged about them. Images keep the order of the list.
    """
    text = read_text(source)
    found: dict[str, list[Path]] = {}
    named: list[str] = []
    of_im2rec = 0
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip() and not (number == 1 and _is_heading(line)):
            path, label, im2rec = _parse_line(source, number, line.strip("\r"))
            of_im2rec += im2rec
            if of_im2rec not in (0, len(named) + 1):
                raise UserError(f"{source}: line {number}: found {line[:80]!r} beside lines of another form, "
                                f"{_EXPECTED}")
            path = with_slashes(source.parent, path)
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


def _first_label(labels: list[str], where: str, line: str) -> str:
    """The first of the labels of an im2rec list, as MXNet's iterators take it: a whole number, written as a float."""
    try:
        numbers = [float(label) for label in labels]
    except ValueError:
        numbers = []
    if not numbers or not numbers[0].is_integer() or numbers[0] < 0:
        raise UserError(f"{where}: found {line[:80]!r}, expected a whole number as the first label of im2rec's list")
    return str(int(numbers[0]))


def _fields(line: str) -> list[str]:
    """The fields of a line: between tabs; or a path, which may have spaces, and a label; or between commas or
    semicolons, where that gives a path of an image and the first way does not."""
    if "\t" in line:
        return [field.strip() for field in line.split("\t")]
    ways = [line.rsplit(None, 1), line.split(None, 1), line.split(","), line.split(";")]
    for fields in ways:
        if len(fields) == 2 and sum(is_image(field.strip()) for field in fields) == 1:
            return [field.strip() for field in fields]
    return [field.strip() for field in ways[0]]


def _is_heading(line: str) -> bool:
    words = [word.strip().lower() for word in re.split("[\t,;]", line)]
    return len(words) > 1 and _HEADINGS.issuperset(words)


def _parse_line(source: Path, number: int, line: str) -> tuple[str, str, bool]:
    """The path, the label, and whether the line is one of im2rec."""
    fields = _fields(line)
    where = f"{source}: line {number}"
    if len(fields) >= 3 and fields[0].isdecimal() and is_image(fields[-1]) and not is_image(fields[1]):
        return fields[-1], _first_label(fields[1:-1], where, line), True
    if len(fields) == 2 and all(fields):
        path, label = fields if is_image(fields[0]) or not is_image(fields[1]) else fields[::-1]
        return path, label, False
    if len(fields) < 3 or not fields[2].isdecimal() or fields[0] not in ("0", "1"):
        raise UserError(f"{where}: found {line[:80]!r}, {_EXPECTED}")
    if fields[0] == "0":
        raise UserError(f"{where}: flag 0, {fields[1]} is not aligned yet; expected aligned images, flag 1")
    return fields[1], fields[2], False
