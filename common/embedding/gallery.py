# SPDX-License-Identifier: Apache-2.0
"""Embeddings of image files, in a file; and the nearest of a gallery to probes.

The file is a NumPy ``.npz``: ``embeddings`` float32 ``(N, dim)`` of unit length, ``paths`` text ``(N,)``, counted from
the folder that was embedded, ``model`` text, and ``flip`` bool. It holds no pickles and is read without them.
"""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from common.sets.image_files import in_order, read_image
from common.sets.image_sources import find_images
from recognition.data.image import fit
from recognition.errors import UserError
from recognition.evaluation.trained_backbone import TrainedBackbone, unit_rows
from recognition.io.files import replacing
from recognition.io.npz import read_npz

_ROWS = 1024  # probes compared at once
_UNIT = 1e-3  # how far from 1 a length may be: what float16 leaves of a unit vector is, by its rounding, within 5e-4


class Gallery(NamedTuple):
    """Embedded image files; rows of ``embeddings`` have length 1."""

    paths: list[str]
    embeddings: np.ndarray
    model: str
    flip: bool


def embed_files(backbone: TrainedBackbone, place: Path, flip: bool = True) -> tuple[Gallery, list[str]]:
    """Embed all images of a folder, or one image, and a line about each file that could not be used.

    Images are read in threads, a few batches ahead. One of another size is scaled if it has the same shape.
    """
    paths = find_images(place)
    kept: list[str] = []
    bad: list[str] = []
    rows: list[np.ndarray] = []
    waiting: list[np.ndarray] = []

    def embed() -> None:
        rows.append(backbone.embed(waiting, flip, unit=False))
        waiting.clear()

    def read(path: Path) -> np.ndarray | UserError:
        try:
            return fit(read_image(path)[1], *backbone.image_size)
        except UserError as error:
            return error
        except ValueError as error:
            return UserError(f"{path}: {error}")

    pictures = zip(paths, in_order(read, paths))
    quiet = True if len(paths) == 1 else None
    for path, image in tqdm(pictures, "embedding", len(paths), unit=" images", disable=quiet):
        if isinstance(image, UserError):
            bad.append(str(image))
            continue
        kept.append(str(path.relative_to(place)) if place.is_dir() else str(path))
        waiting.append(image)
        if len(waiting) >= 4 * backbone.batch_size:
            embed()
    if waiting:
        embed()
    if not kept:
        raise UserError(f"{place}: none of its {len(paths)} images can be used; the first: {bad[0]}")
    try:
        return Gallery(kept, unit_rows(np.concatenate(rows)), backbone.model, flip), bad
    except ValueError as error:
        raise UserError(f"{place}: {error}; the images count from 0: {kept[0]}, ...") from error


def save_gallery(path: Path, gallery: Gallery) -> None:
    if path.suffix != ".npz":
        raise UserError(f"{path}: expected a name that ends in .npz")
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, embeddings=gallery.embeddings, paths=np.array(gallery.paths), model=np.array(gallery.model),
                 flip=np.array(gallery.flip))


def load_gallery(path: Path) -> Gallery:
    """Read what :func:`save_gallery` wrote. Raises UserError if it is no such file, or a row's length is not 1."""
    try:
        file = read_npz(path)
        paths, embeddings = file["paths"], file["embeddings"]
        model, flip = str(file["model"]), bool(file["flip"])
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError) as error:
        raise UserError(f"{path}: not a file of embeddings: {error}; expected one that common.inference "
                        "wrote") from error
    if embeddings.ndim != 2 or embeddings.dtype != np.float32 or paths.shape != embeddings.shape[:1] or not len(paths):
        raise UserError(f"{path}: found embeddings {embeddings.dtype} {embeddings.shape} and {paths.shape} paths, "
                        "expected float32 of one row a path")
    lengths = np.sqrt(np.einsum("nd,nd->n", embeddings, embeddings, dtype=np.float64))
    bad = np.flatnonzero(~(np.abs(lengths - 1) <= _UNIT))  # NaN, too
    if bad.size:
        raise UserError(f"{path}: {bad.size} of {len(paths)} embeddings are not of length 1, such as that of "
                        f"{paths[bad[0]]!s}: {lengths[bad[0]]:g}; expected a file that common.inference wrote")
    return Gallery([str(name) for name in paths], embeddings, model, flip)


def nearest(probes: np.ndarray, gallery: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The ``count`` rows of the gallery nearest to each probe, nearest first: numbers and cosines ``(P, count)``.

    Rows of both have length 1. Of equals the first in the gallery comes first.
    """
    count = min(count, len(gallery))
    numbers, cosines = np.empty((len(probes), count), np.int64), np.empty((len(probes), count), np.float32)
    for low in range(0, len(probes), _ROWS):
        found = probes[low : low + _ROWS] @ gallery.T
        order = np.argsort(-found, axis=1, kind="stable")[:, :count]
        numbers[low : low + _ROWS], cosines[low : low + _ROWS] = order, np.take_along_axis(found, order, axis=1)
    return numbers, cosines


def check_same_network(gallery: Gallery, path: Path, backbone: TrainedBackbone, flip: bool) -> None:
    """Raise UserError unless a gallery's embeddings can be compared with those of ``backbone``."""
    if (gallery.embeddings.shape[1], gallery.flip) != (backbone.dim, flip) or gallery.model != backbone.model:
        raise UserError(f"{path}: its embeddings are {gallery.embeddings.shape[1]} numbers of {gallery.model}"
                        f"{'' if gallery.flip else ' without mirrors'}, expected {backbone.dim} of {backbone.model}"
                        f"{'' if flip else ' without mirrors'}: embed the gallery again")


def distances(cosines: np.ndarray | Sequence[float]) -> np.ndarray:
    """Squared Euclidean distances of unit vectors, which verification thresholds: 0 to 4."""
    return np.clip(2 - 2 * np.asarray(cosines, np.float64), 0, 4)
