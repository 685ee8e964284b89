# SPDX-License-Identifier: Apache-2.0
"""Images that a list names otherwise than they are in their folder: by absolute paths, other endings, backslashes."""
from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from recognition.data.images.folder_walk import is_image
from recognition.errors import UserError


def below(folder: Path, name: str) -> str:
    """The name of an image as a path below the folder: an absolute path into it becomes relative, and backslashes are
    those of :func:`with_slashes`. Any other name stays."""
    name = with_slashes(folder, name)
    for place in (folder.absolute(), folder.resolve()):
        if name.startswith("/") and place in Path(name).parents:
            return str(Path(name).relative_to(place))
    return name


def leads_out(name: str) -> bool:
    """True for the name of :func:`below` that is no path below a folder: lists are not trusted."""
    return name.startswith("/") or ".." in name.split("/") or "\0" in name


def with_slashes(folder: Path, name: str) -> str:
    """A name in which the backslashes of Windows are slashes, unless the folder has a file of that very name."""
    known = "\\" not in name or "\0" in name or os.path.lexists(folder / name)
    return name if known else name.replace("\\", "/")


def with_other_endings(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Names of images that are not in ``folder``, and those of the same images under the other ending that is there.
    LFW's lists say .jpg, whatever a tree holds.

    :raises UserError: if several images have that name but for the ending
    """
    found: dict[str, str] = {}
    listed: dict[Path, dict[str, list[str]]] = {}
    for name in names:
        if "\0" in name or os.path.lexists(folder / name):
            continue
        place = (folder / name).parent
        if place not in listed:
            stems = listed[place] = {}
            for other in sorted(os.listdir(place)) if place.is_dir() else ():
                if is_image(other):
                    stems.setdefault(os.path.splitext(other)[0], []).append(other)
        base = os.path.basename(name)
        there = listed[place].get(os.path.splitext(base)[0] if is_image(base) else base, [])
        if len(there) > 1:
            raise UserError(f"{folder / name}: not found, and there are {' and '.join(there[:3])}, expected one image")
        if there:
            found[name] = str(Path(name).with_name(there[0]))
    return found
