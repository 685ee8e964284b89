# SPDX-License-Identifier: Apache-2.0
"""The list of the images in a folder of folders, and the index file that keeps it.

A walk through millions of files takes minutes. The index holds the time of change of every folder that was walked, so
that it is known without a walk whether the list still holds: a file that comes or goes changes its folder's time.
"""
from __future__ import annotations

import io
import json
import os
import time
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np

from recognition.data.images.folder_walk import LeftOut, images_below, natural, people
from recognition.errors import UserError
from recognition.io.files import reading, write_whole
from recognition.io.npz import read_npz

VERSION = 1
_FRESH_NS = 2 * 10 ** 9  # a folder changed so shortly before it was listed may change again within its clock's grain
_NEVER = -1  # the time of change of such a folder: it equals none


@dataclass(frozen=True)
class Names:
    """Names of files, one after another in few bytes: Python's objects for millions of them would take gigabytes."""

    text: np.ndarray  # uint8, all names
    ends: np.ndarray  # int64 (n,), where each ends

    def name(self, i: int) -> bytes:
        return self.text[self.ends[i - 1] if i else 0 : self.ends[i]].tobytes()


def names_of(names: Sequence[bytes]) -> Names:
    """The names, packed."""
    return Names(np.frombuffer(b"".join(names), np.uint8), np.cumsum([len(name) for name in names], dtype=np.int64))


class Listing(NamedTuple):
    """The images of a folder of folders: identities in natural order of their names, images likewise in each."""

    root: Path
    people: Names  # (C,), the folders of identities
    folders: Names  # (F,), all folders that were walked, from the root on
    modified: np.ndarray  # int64 (F,), their times of change in ns
    files: Names  # (n,), the names of the images
    places: np.ndarray  # int32 (n,), the folder of each
    labels: np.ndarray  # int32 (n,)
    left_out: LeftOut

    def path(self, image: int) -> Path:
        """The file of an image."""
        inside = os.path.join(self.folders.name(int(self.places[image])), self.files.name(image))
        return self.root / os.fsdecode(inside)

    def changed(self) -> str:
        """The first folder that has changed since it was listed; empty if none has."""
        for i, then in enumerate(self.modified.tolist()):
            name = os.fsdecode(self.folders.name(i))
            try:
                if os.stat(self.root / name).st_mtime_ns != then:
                    return name or "."
            except OSError:
                return name
        return ""

    def digest(self) -> str:
        """A digest of the names of all images, in order, and of their labels."""
        found = sha256()
        for part in (self.folders.text, self.folders.ends, self.files.text, self.files.ends, self.places, self.labels):
            found.update(np.ascontiguousarray(part).data)
        return found.hexdigest()[:16]


def list_images(root: Path) -> Listing:
    """Walk through the folder. Links to folders are not followed below a person; what is no image is counted.

    :raises UserError: if it cannot be read, or if no sub-folder has an image.
    """
    began, left_out = time.time_ns(), LeftOut()
    persons: list[bytes] = []
    folders, numbers = [str(root)], {str(root): 0}
    text, ends, places, labels = bytearray(), array("q"), array("i"), array("i")  # no object for each image
    with reading(root):
        for name in sorted(people(root, left_out), key=natural):
            images = images_below(root / name, left_out, folders=folders)
            numbers.update((folders[n], n) for n in range(len(numbers), len(folders)))
            left_out.add("people without images", not images)
            for image in sorted(images, key=lambda path: natural(str(path))):
                text += os.fsencode(image.name)
                ends.append(len(text))
                places.append(numbers[str(image.parent)])
                labels.append(len(persons))
            persons += [os.fsencode(name)] if images else []
        times = [os.stat(folder).st_mtime_ns for folder in folders]
    left_out.forget("files that end in .bin", len(list(root.glob("*.bin"))))  # sets to verify on
    if not persons:
        raise UserError(f"{root}: no train.rec there, expected a folder of train.rec, train.idx and property, or a "
                        "folder with a folder of images for each person")
    return Listing(
        root, names_of(persons),
        names_of([os.fsencode(os.path.relpath(folder, root)) if n else b"" for n, folder in enumerate(folders)]),
        np.array([then if then < began - _FRESH_NS else _NEVER for then in times], np.int64),
        Names(np.frombuffer(bytes(text), np.uint8), np.array(ends, np.int64)), np.array(places, np.int32),
        np.array(labels, np.int32), left_out)


def write_index(path: Path, listing: Listing) -> None:
    """Write the index file.

    :raises UserError: if it cannot be written.
    """
    arrays = {"modified": listing.modified, "places": listing.places, "labels": listing.labels}
    for name in ("people", "folders", "files"):
        names: Names = getattr(listing, name)
        arrays.update({f"{name}_text": names.text, f"{name}_ends": names.ends})
    note = json.dumps({"version": VERSION, "left_out": listing.left_out.kinds}).encode()
    content = io.BytesIO()
    arrays["note"] = np.frombuffer(note, np.uint8)
    np.savez(content, **arrays)  # type: ignore[arg-type]
    write_whole(path, content.getvalue())


def read_index(path: Path, root: Path) -> Listing:
    """Read the index file of the folder ``root``. It is not believed: names that lead out of the folder are refused.

    :raises ValueError: if it is no such file.
    :raises OSError: if it cannot be read.
    """
    found = read_npz(path)
    try:
        note = json.loads(found["note"].tobytes())
        if note["version"] != VERSION:
            raise ValueError(f"version {note['version']}, expected {VERSION}")
        left_out = LeftOut()
        left_out.kinds = Counter({str(kind): int(number) for kind, number in note["left_out"].items()})
        names = [_checked_names(found[f"{name}_text"], found[f"{name}_ends"])
                 for name in ("people", "folders", "files")]
        listing = Listing(root, names[0], names[1], found["modified"], names[2], found["places"], found["labels"],
                          left_out)
        _check(listing)
    except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"not an index of images: {error!r}") from error
    return listing


def _checked_names(text: np.ndarray, ends: np.ndarray) -> Names:
    if text.dtype != np.uint8 or ends.dtype != np.int64 or text.ndim != 1 or ends.ndim != 1 or not len(ends):
        raise ValueError("names of other types")
    if ends[0] < 0 or (np.diff(ends) < 0).any() or ends[-1] != len(text):
        raise ValueError("names of impossible lengths")
    return Names(text, ends)


def _check(listing: Listing) -> None:
    """:raises ValueError: if numbers lead beyond lists, or names out of the folder."""
    images, folders, persons = (len(names.ends) for names in (listing.files, listing.folders, listing.people))
    for numbers, dtype, count, below in ((listing.modified, np.int64, folders, 1 << 63),
                                         (listing.places, np.int32, images, folders),
                                         (listing.labels, np.int32, images, persons)):
        if numbers.dtype != dtype or numbers.shape != (count,) or int(numbers.max()) >= below:
            raise ValueError("lists that do not fit together")
    names = listing.files.text.tobytes()
    nul = b"\0" in names or b"\0" in listing.folders.text.tobytes()
    if listing.places.min() < 0 or listing.labels.min() < 0 or b"/" in names or nul:
        raise ValueError("places that cannot be")
    for i in range(folders):
        folder = listing.folders.name(i)
        if folder.startswith(b"/") or b".." in folder.split(b"/"):
            raise ValueError("a name that leads out of the folder")
