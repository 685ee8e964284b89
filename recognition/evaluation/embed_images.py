# SPDX-License-Identifier: Apache-2.0
"""Embedding of any number of images in batches: only the embeddings stay in memory."""
from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Callable

import numpy as np

from recognition.data.images.image import write_planes
from recognition.errors import UserError
from recognition.progress import progress

Embed = Callable[[np.ndarray], np.ndarray]  # uint8 (n, 3, H, W) RGB to float (n, D)


def embed_images(embed: Embed, images: Iterable[np.ndarray], count: int, batch_size: int, flip: bool = True,
                 name: str = "embedding") -> np.ndarray:
    """Embed ``count`` images: float32 ``(count, D)``, not normalised. With ``flip`` each row is the sum of the
    embeddings of the image and of its mirror, as in the verification protocol.

    :param embed: maps uint8 ``(n, 3, H, W)`` RGB to float32 ``(n, D)``
    :param images: uint8 ``(H, W, 3)`` RGB, all of one size
    :raises UserError: if an embedding is not finite, with the number of the image.
    """
    found, done = np.empty((0, 0), np.float32), 0
    with progress(total=count, desc=name, unit=" images") as bar:
        for rows in embed_batches(embed, islice(images, count), batch_size, flip, name):
            if not done:
                found = np.empty((count, rows.shape[1]), np.float32)
            found[done : done + len(rows)] = rows
            done += len(rows)
            bar.update(len(rows))
    if done != count:
        raise ValueError(f"{done} images, {count} were announced")
    return found


def embed_batches(embed: Embed, images: Iterable[np.ndarray], batch_size: int, flip: bool = True,
                  name: str = "embedding") -> Iterator[np.ndarray]:
    """Like :func:`embed_images`, of any number of images: yields float32 ``(n, D)``, n at most ``batch_size``."""
    done, rest, embed = 0, iter(images), with_mirrors(embed) if flip else embed
    while batch := list(islice(rest, batch_size)):
        planes = np.empty((len(batch), 3, *batch[0].shape[:2]), np.uint8)
        for image, target in zip(batch, planes):
            write_planes(np.ascontiguousarray(image), target)
        rows = embed(planes)
        if not np.isfinite(rows).all():
            bad = done + int(np.argmin(np.isfinite(rows).all(axis=1)))
            raise UserError(f"{name}: the embedding of image {bad} is not finite")
        yield rows
        done += len(rows)


def with_mirrors(embed: Embed) -> Embed:
    """``embed`` of images plus that of their mirrors, as in the verification protocol."""
    return lambda planes: embed(planes) + embed(np.ascontiguousarray(planes[..., ::-1]))


def normalised(rows: np.ndarray, names: Callable[[int], str] = lambda row: f"embedding {row}") -> np.ndarray:
    """Divide each row of ``(N, D)`` by its Euclidean norm: float32, in place if the rows are float32.

    :raises UserError: with its name from ``names``, if a row is zero or not finite.
    """
    rows = np.ascontiguousarray(rows, np.float32)
    for start in range(0, len(rows), 4096):
        block = rows[start : start + 4096]
        norms = np.sqrt(np.einsum("nd,nd->n", block, block, dtype=np.float64))
        good = np.isfinite(norms) & (norms > 0)
        if not good.all():
            bad = int(np.argmin(good))
            raise UserError(f"{names(start + bad)} has the norm {norms[bad]:g}, expected a direction")
        block /= norms[:, None].astype(np.float32)
    return rows
