# SPDX-License-Identifier: Apache-2.0
"""Files of MegaFace's devkit: features in ``.bin``, lists of images, noise lists.

A ``.bin`` is a matrix of OpenCV: four int32 (rows, columns, bytes in a step, type 5 for float32), then float32. The
feature of image ``a/b.jpg`` is ``a/b.jpg<suffix>``, such as ``a/b.jpg_arcface_112x112.bin``.
"""
from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from common.sets.image_files import in_order
from common.sets.named_images import below, leads_out
from recognition.data.images.folder_walk import LeftOut, images_below
from recognition.errors import UserError, one_line
from recognition.evaluation.embed_images import normalised
from recognition.io.files import reading
from recognition.io.text import read_text

HEADER_NUMBERS, FLOAT32_TYPE = 4, 5
_ROWS_AT_ONCE = 8192


def read_feature(path: Path, dim: int = 0) -> np.ndarray:
    """Read one feature, float32 ``(D,)``.

    :raises UserError: if the file holds none, or one that has not ``dim`` numbers; 0: any number.
    """
    with reading(path):
        content = path.read_bytes()
    start = 4 * HEADER_NUMBERS
    head = np.frombuffer(content[:start], "<i4") if len(content) >= start else np.zeros(HEADER_NUMBERS, np.int32)
    count = int(head[0]) * int(head[1])
    if head[3] != FLOAT32_TYPE or min(head[:2]) < 1 or len(content) != start + 4 * count:
        raise UserError(f"{path}: found {len(content)} bytes that begin with {head.tolist()}, expected rows, columns, "
                        "step, 5 as int32 and rows x columns float32")
    if dim and count != dim:
        raise UserError(f"{path}: found {count} numbers, expected {dim} as in the first feature")
    return np.frombuffer(content, "<f4", offset=start).astype(np.float32)


def encode_feature(feature: np.ndarray) -> bytes:
    """The content of the file of one feature, ``(D,)``, in the devkit's format."""
    head = np.array([len(feature), 1, 4, FLOAT32_TYPE], "<i4")
    return head.tobytes() + np.asarray(feature, "<f4").tobytes()


def read_features(folder: Path, images: Sequence[str], suffix: str) -> Iterator[np.ndarray]:
    """Yield the images' features, normalised, float32 ``(n, D)`` with n at most _ROWS_AT_ONCE. Threads read them."""
    paths = [folder / f"{image}{suffix}" for image in images]
    dim = len(read_feature(paths[0]))
    for low in range(0, len(paths), _ROWS_AT_ONCE):
        part = paths[low : low + _ROWS_AT_ONCE]
        rows = np.empty((len(part), dim), np.float32)
        for row, feature in zip(rows, in_order(lambda path: read_feature(path, dim), part)):
            row[...] = feature
        yield normalised(rows, lambda row, part=part: f"{part[row]}: its feature")  # type: ignore[misc]


def list_images(folder: Path, suffix: str, listed: Path | None) -> list[str]:
    """The images whose features are in ``folder``: those of a list (a path a line, or the devkit's JSON with "path"),
    or all.

    :raises UserError: if there are none, or if the list is malformed.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: not found, expected a folder of features")
    if listed is None:
        left_out = LeftOut()
        found = [os.path.relpath(path, folder)[: -len(suffix)] for path in images_below(folder, left_out, [suffix])]
        left_out.tell(folder)
        if not found:
            raise UserError(f"{folder}: found no file that ends with {suffix!r}, expected features")
        return sorted(found)
    return read_paths(listed, folder)


def read_paths(listed: Path, folder: Path) -> list[str]:
    """The paths in a list, a path a line or the devkit's JSON with "path"; ``folder`` is what they count from, and
    what absolute ones must lead into.

    :raises UserError: if there are none, or if one leads out of the folder.
    """
    text = read_text(listed)
    if text.lstrip().startswith("{"):
        try:
            lines = json.loads(text)["path"]
        except (ValueError, KeyError, RecursionError) as error:
            raise UserError(f"{listed}: {error}; expected JSON with a list \"path\"") from error
        if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
            raise UserError(f"{listed}: found a \"path\" that is no list of texts")
    else:
        lines = text.splitlines()
    images = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        image = below(folder, line.strip())
        if leads_out(image):
            raise UserError(f"{listed}: line {number}: found {line[:80]!r}, expected a path below {folder}")
        images.append(image)
    if not images:
        raise UserError(f"{listed}: found no lines, expected images")
    return images


def read_noises(path: Path) -> set[str]:
    """Read the images of a noise list: the last of the fields between tabs in each line; lines with # are comments."""
    return {line.split("\t")[-1].strip() for line in read_text(path).splitlines() if line.strip() and line[0] != "#"}


def without_noises(images: Sequence[str], path: Path | None, by_name: bool) -> list[str]:
    """The images that are not in a noise list. The list has paths, or, with ``by_name``, perhaps names of files alone,
    as that of FaceScrub. Prints how many are left out: fewer than it names, if the protocol lacks some of those.

    :raises UserError: if the list has none of them: it may belong to another set, or the paths may differ; or all.
    """
    if path is None:
        return list(images)
    noises = read_noises(path)
    kept = [image for image in images
            if image not in noises and not (by_name and image.rsplit("/", 1)[-1] in noises)]
    if len(kept) == len(images):
        raise UserError(f"{path}: none of its {len(noises)} images is among the {len(images)} with features, expected "
                        f"names such as {images[0]}")
    if not kept:
        raise UserError(f"{path}: names all of the {len(images)} images")
    print(one_line(f"{path}: {len(images) - len(kept)} images left out; it names {len(noises)}"))
    return kept
