# SPDX-License-Identifier: Apache-2.0
"""Image files: work on them by many threads, and the search for broken and repeated images."""
from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import Callable, TypeVar

import numpy as np

from common.sets.image_sources import Identity
from recognition.data.images.image import fit
from recognition.data.images.image_files import read_image
from recognition.data.images.jpeg_damage import CUT
from recognition.data.images.jpeg_segments import END, JUNK, is_jpeg, segments
from recognition.errors import UserError, naming, one_line
from recognition.progress import clear_of_bars, progress

S = TypeVar("S")
T = TypeVar("T")


def jpeg_damage(encoded: bytes) -> str:
    """The first problem between the segments of a JPEG, which decoders ignore; empty for a sound JPEG and for other
    formats."""
    if not is_jpeg(encoded):
        return ""
    for marker, start, *_ in segments(encoded):
        if marker == JUNK:
            found = encoded[start : start + 1 + (encoded[start] == 0xFF)]
            return f"byte {start} should begin a segment, and is 0x{found.hex()}"
        if marker == END:
            return ""
    return CUT


def in_order(function: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """``map`` in threads, in order, at most a few results ahead of the caller."""
    threads = min(16, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[T]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 8 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def tried_in_order(function: Callable[[S], T], items: Iterable[S]) -> Iterator[tuple[S, T | UserError]]:
    """Like :func:`in_order`: each item with its result, or with the UserError that it raised."""

    def one(item: S) -> tuple[S, T | UserError]:
        try:
            return item, function(item)
        except UserError as error:
            return item, error

    return in_order(one, items)


def read_fitted(path: Path, height: int, width: int, scaled: list[Path]) -> np.ndarray:
    """The pixels of an image of a network's shape, uint8 ``(height, width, 3)`` RGB.

    :param scaled: gets the path of an image of another size
    :raises UserError: if the image is broken, or of another shape
    """
    image = read_image(path)[1]
    if image.shape[:2] != (height, width):
        scaled.append(path)
    with naming(path):
        return fit(image, height, width)


def tell_scaled(scaled: Sequence[Path], height: int, width: int) -> None:
    """Print a line about images of another size: they may be whole photographs, which no network was trained on."""
    if scaled:
        with clear_of_bars():
            print(f"mind: {len(scaled)} images are not {height} x {width}, such as {one_line(min(scaled))}, and were "
                  "scaled: if they are not aligned faces, align them first: python -m common.face_align")


def usable_images(identities: Sequence[Identity], skip_broken: bool = False) -> list[Identity]:
    """The identities without images that repeat another of the same person, pixel by pixel: a verification pair of two
    such images shows nothing. Prints how many, and how many images two people share.

    :param skip_broken: leave broken images out, with a line each.
    :raises UserError: at the first broken image without ``skip_broken``, or if no image is left.
    """
    paths = [image for identity in identities for image in identity.images]
    owners = np.repeat(np.arange(len(identities)), [len(identity.images) for identity in identities])
    digests, kept = np.zeros(len(paths), np.uint64), np.ones(len(paths), bool)
    for i, (_, found) in enumerate(progress(tried_in_order(_digest, paths), "checking", len(paths), unit=" images")):
        if isinstance(found, int):
            digests[i] = found
        elif skip_broken:
            kept[i] = False
            with clear_of_bars():
                print(f"left out: {one_line(found)}")
        else:
            raise found
    repeats = _repeats(np.flatnonzero(kept), digests, owners)
    if repeats.size:
        kept[repeats] = False
        print(f"left out: {repeats.size} images that repeat another of the same person, such as "
              f"{one_line(paths[repeats[0]])}")
    shared = _repeats(np.flatnonzero(kept), digests)
    if shared.size:
        print(f"mind: {shared.size} images are there under more than one person, such as "
              f"{one_line(paths[shared[0]])}")
    if not kept.any():
        raise UserError(f"none of the {len(paths)} images can be used")
    usable: list[list[Path]] = [[] for _ in identities]
    for i in np.flatnonzero(kept).tolist():
        usable[owners[i]].append(paths[i])
    return [Identity(identity.name, images) for identity, images in zip(identities, usable) if images]


def _digest(path: Path) -> int:
    """A digest of the pixels of an image, of 64 bits."""
    _, image = read_image(path)
    return int.from_bytes(blake2b(image.data, digest_size=8, key=repr(image.shape).encode()).digest(), "little")


def _repeats(indices: np.ndarray, *keys: np.ndarray) -> np.ndarray:
    """The elements of the rising ``indices`` at which all ``keys`` equal those at an earlier one, in rising order."""
    order = indices[np.lexsort([key[indices] for key in keys])]  # stable: the first of equal ones stays in front
    same = np.ones(max(len(order) - 1, 0), bool)
    for key in keys:
        same &= key[order[1:]] == key[order[:-1]]
    return np.sort(order[1:][same])
