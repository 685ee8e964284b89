# SPDX-License-Identifier: Apache-2.0
"""Galleries: files of embeddings, and the search for the nearest rows to probes.

The file is a NumPy ``.npz``: ``embeddings`` float32 ``(N, dim)`` of unit length, ``paths`` text ``(N,)``, relative to
the folder that was embedded, ``model`` text, and ``flip`` bool. It holds no pickles and is read without them.
"""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.sets.image_files import read_fitted, tell_scaled, tried_in_order
from common.sets.image_sources import find_images
from recognition.errors import UserError
from recognition.evaluation.trained_backbone import TrainedBackbone, unit_rows
from recognition.io.files import replacing
from recognition.io.npz import read_npz
from recognition.progress import progress

_PROBES_AT_ONCE = 1024
_LENGTH_TOLERANCE = 1e-3  # of the length 1 of a row: a unit vector that was rounded to float16 is within 5e-4


class Gallery(NamedTuple):
    """Embedded image files; rows of ``embeddings`` have length 1."""

    paths: list[str]
    embeddings: np.ndarray
    model: str
    flip: bool


def embed_files(backbone: TrainedBackbone, place: Path, flip: bool = True) -> tuple[Gallery, list[str]]:
    """Embed all images of a folder, or one image; returns them and a line about each file that could not be used.

    Images are read in threads, a few batches ahead. An image of another size but the same shape is scaled,
    and a line is printed about those.

    :raises UserError: if no image can be used.
    """
    paths = find_images(place)
    kept: list[str] = []
    bad: list[str] = []
    rows: list[np.ndarray] = []
    waiting: list[np.ndarray] = []
    scaled: list[Path] = []

    def embed() -> None:
        rows.append(backbone.embed(waiting, flip, unit=False))
        waiting.clear()

    pictures = tried_in_order(lambda path: read_fitted(path, *backbone.image_size, scaled), paths)
    quiet = True if len(paths) == 1 else None
    for path, image in progress(pictures, "embedding", len(paths), unit=" images", disable=quiet):
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
    tell_scaled(scaled, *backbone.image_size)
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
    """Read a file of :func:`save_gallery`.

    :raises UserError: if it is no such file, or if the length of a row is not 1.
    """
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
    bad = np.flatnonzero(~(np.abs(lengths - 1) <= _LENGTH_TOLERANCE))  # NaN, too
    if bad.size:
        raise UserError(f"{path}: {bad.size} of {len(paths)} embeddings are not of length 1, such as that of "
                        f"{paths[bad[0]]!s}: {lengths[bad[0]]:g}; expected a file that common.inference wrote")
    return Gallery([str(name) for name in paths], embeddings, model, flip)


def nearest(probes: np.ndarray, gallery: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The ``count`` rows of the gallery nearest to each probe, nearest first: their numbers, int64, and their cosines,
    float32, ``(P, count)`` both.

    Rows of both have length 1. Equal cosines come in the order of the gallery.
    """
    count = min(count, len(gallery))
    numbers, cosines = np.empty((len(probes), count), np.int64), np.empty((len(probes), count), np.float32)
    for low in range(0, len(probes), _PROBES_AT_ONCE):
        part = slice(low, low + _PROBES_AT_ONCE)
        found = probes[part] @ gallery.T
        numbers[part] = np.argsort(-found, axis=1, kind="stable")[:, :count]
        cosines[part] = np.take_along_axis(found, numbers[part], axis=1)
    return numbers, cosines


def check_same_network(gallery: Gallery, path: Path, backbone: TrainedBackbone, flip: bool) -> None:
    """Check that a gallery's embeddings can be compared with those of ``backbone``.

    :raises UserError: if they are those of another network, or if only one of both includes mirrors.
    """
    if (gallery.embeddings.shape[1], gallery.flip) != (backbone.dim, flip) or gallery.model != backbone.model:
        raise UserError(f"{path}: its embeddings are {gallery.embeddings.shape[1]} numbers of {gallery.model}"
                        f"{'' if gallery.flip else ' without mirrors'}, expected {backbone.dim} of {backbone.model}"
                        f"{'' if flip else ' without mirrors'}: embed the gallery again")


def distances(cosines: np.ndarray | Sequence[float]) -> np.ndarray:
    """The squared Euclidean distances of unit vectors with these cosines: 0 to 4, as in verification."""
    return np.clip(2 - 2 * np.asarray(cosines, np.float64), 0, 4)
