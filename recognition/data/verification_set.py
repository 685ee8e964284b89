# SPDX-License-Identifier: Apache-2.0
"""Verification sets: ``<target>.bin`` files, which are pickles of (encoded images, issame), read without running them.

A pickle can name any function and have it called. Here all opcodes are checked first. Then each name in the pickle gets
a stand-in of ours, which only keeps bytes, or is refused.
"""
from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, NamedTuple

import numpy as np

from recognition.config.devices import processors
from recognition.config.memory import available_memory
from recognition.data.images.image import MOST_RECORD_PIXELS, decode_rgb, fit, write_planes
from recognition.data.images.image_header import image_size as size_of
from recognition.data.records.recordio import PathLike
from recognition.errors import UserError, naming
from recognition.io.array_stand_in import ArrayStandIn, TypeStandIn
from recognition.io.files import regular, replacing
from recognition.io.pickles import load_restricted

MAX_IMAGES = 1 << 20
MOST_UNFOLDED = 100  # bytes of all images together, in sizes of the file: pairs may share images
MOST_PIXELS = 1 << 33  # of all images together, 600,000 for each image of 7,000 pairs: a minute or two of decoding
_IMAGES_PER_TASK = 64
_MOST_THREADS = 8
_EXPECTED = "expected a pickle of (encoded images, issame)"
_OPCODES = frozenset((
    "PROTO", "FRAME", "STOP", "MARK", "POP", "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2",
    "LONG", "LONG1", "FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8", "BYTEARRAY8", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "EMPTY_LIST", "LIST", "APPEND",
    "APPENDS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "GET", "BINGET", "LONG_BINGET", "PUT",
    "BINPUT", "LONG_BINPUT", "MEMOIZE", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD"))


class VerificationSet(NamedTuple):
    """The pairs of one set: pair p is images 2 p and 2 p + 1."""

    name: str  # the file's name without .bin
    images: np.ndarray  # uint8 (2 P, 3, H, W) RGB
    issame: np.ndarray  # bool (P,)


def load_bin(path: PathLike, image_size: tuple[int, int] = (112, 112)) -> VerificationSet:
    """Read a verification set and decode it to images of ``image_size`` (height, width).

    Images may be bytes, numpy uint8 arrays of encoded bytes, or strings of Python 2. Images of another size are
    scaled as the recipes do, see :func:`recognition.data.images.image.fit`.

    :raises UserError: if the file is no verification set, or an image cannot be used.
    """
    encoded, issame = _unpickle(Path(path))
    height, width = image_size
    needed, free = 3 * height * width * len(encoded), available_memory()
    if needed > free:
        raise UserError(f"{path}: {len(encoded)} images of {height} x {width} take {needed >> 20} MB, expected at most "
                        f"the {free >> 20} MB of memory that this machine has free")
    images = np.empty((len(encoded), 3, height, width), np.uint8)

    def decode(first: int) -> None:
        for i in range(first, min(first + _IMAGES_PER_TASK, len(encoded))):
            with naming(f"{path}: image {i}"):
                write_planes(fit(decode_rgb(_image_bytes(encoded[i]), MOST_RECORD_PIXELS), height, width), images[i])

    _check_pixels(path, encoded)
    pool = ThreadPoolExecutor(min(processors(), _MOST_THREADS), thread_name_prefix="decode")
    try:
        for _ in pool.map(decode, range(0, len(encoded), _IMAGES_PER_TASK)):  # in order: raises the first error
            pass
    finally:
        pool.shutdown(cancel_futures=True)
    return VerificationSet(Path(path).stem, images, issame)


def read_bin(path: PathLike) -> tuple[list[bytes], np.ndarray]:
    """The 2 P images of a verification set, still encoded, and issame, bool ``(P,)``."""
    encoded, issame = _unpickle(Path(path))
    images: list[bytes] = []
    copies: dict[int, bytes] = {}  # by id: one copy of an array that pairs share
    for i, item in enumerate(encoded):
        with naming(f"{path}: image {i}"):
            if id(item) not in copies:
                copies[id(item)] = _image_bytes(item)
            images.append(copies[id(item)])
    return images, issame


def save_bin(path: PathLike, encoded_images: Sequence[bytes], issame: Sequence[bool]) -> None:
    """Write a verification set of plain bytes and booleans. ``pickle.load`` of any Python 3 reads it."""
    if len(encoded_images) != 2 * len(issame):
        raise ValueError(f"{len(encoded_images)} images for {len(issame)} pairs")
    with replacing(Path(path)) as temporary, open(temporary, "wb") as file:
        pickle.dump(([bytes(image) for image in encoded_images], [bool(same) for same in issame]), file, protocol=3)


def _unpickle(path: Path) -> tuple[list[Any], np.ndarray]:
    """The 2 P images, still encoded, and issame as bool ``(P,)``."""
    try:
        with open(path, "rb", opener=regular) as file:
            # bytearrays of protocol 2 are text, then bytes
            content = load_restricted(file, _OPCODES, _known(_Bytes(2 * os.fstat(file.fileno()).st_size)))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except Exception as error:  # a broken pickle may raise anything
        raise UserError(f"{path}: {_one_line(error)}; {_EXPECTED}") from error
    parts = content.values() if isinstance(content, ArrayStandIn) else content
    images = parts[0].rows() if _has_two(parts) and isinstance(parts[0], ArrayStandIn) else (
        parts[0] if _has_two(parts) else None)
    if not isinstance(images, (tuple, list)):
        raise UserError(f"{path}: found {_describe(content)}; {_EXPECTED}")
    issame = parts[1].values() if isinstance(parts[1], ArrayStandIn) else parts[1]
    if not isinstance(issame, (tuple, list)) or not all(map(_is_truth, issame)):
        raise UserError(f"{path}: issame is {_describe(parts[1])}, expected a list of booleans or whole numbers")
    if not 0 < len(images) == 2 * len(issame) <= MAX_IMAGES:
        raise UserError(f"{path}: {len(images)} images for {len(issame)} pairs, expected two a pair and at most "
                        f"{MAX_IMAGES} images")
    _check_size(path, images)
    return list(images), np.array([bool(same) for same in issame])


def _has_two(content: object) -> bool:
    return isinstance(content, (tuple, list)) and len(content) == 2


def _is_truth(value: object) -> bool:
    """True for what says yes or no: truth values and whole numbers, of which all but 0 say yes, as the recipes take
    them."""
    return isinstance(value, (bool, int)) or (isinstance(value, float) and value.is_integer())


def _check_size(path: Path, images: Sequence[Any]) -> None:
    """Limit the bytes of all images together. A file of kilobytes can name one image a million times, and it would be
    decoded as often.

    :raises UserError: if they are more than MOST_UNFOLDED times the file's size.
    """
    total = sum(len(image.data if isinstance(image, ArrayStandIn) else image) for image in images
                if isinstance(image, (ArrayStandIn, bytes, bytearray)))
    size = path.stat().st_size
    if total > MOST_UNFOLDED * size:
        raise UserError(f"{path}: {total} bytes of images in a file of {size}, expected at most {MOST_UNFOLDED} times "
                        "its size: pairs share them too often")


def _check_pixels(path: PathLike, images: Sequence[Any]) -> None:
    """Limit the pixels of all images together: a hundred bytes a picture can take hours of decoding.

    :raises UserError: if they are more than MOST_PIXELS.
    """
    total = 0
    for image in images:
        with contextlib.suppress(ValueError):  # decoding raises it again, with the image's number
            height, width = size_of(_image_bytes(image)) or (0, 0)
            total += height * width
    if total > MOST_PIXELS:
        raise UserError(f"{path}: its images have {total:,} pixels together, expected at most {MOST_PIXELS:,}")


class _Bytes:
    """A maker of byte strings, of at most ``left`` bytes together: a pickle can encode one text again and again."""

    def __init__(self, left: int) -> None:
        self._left = left

    def encoded(self, text: str, encoding: str) -> bytes:
        """The replacement for ``_codecs.encode``, by which protocol 2 writes bytes."""
        if encoding not in ("latin1", b"latin1"):
            raise ValueError(f"it has text in {encoding!r}")
        self._spend(len(text))
        return text.encode("latin1")

    def copied(self, data: bytes = b"") -> bytes:
        if not isinstance(data, (bytes, bytearray)):  # a number would make that many zeros
            raise ValueError(f"it makes bytes from {_describe(data)}")
        self._spend(len(data))
        return bytes(data)

    def _spend(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise ValueError("it unfolds to more than its own size")


def _known(made: _Bytes) -> dict[str, Callable[..., Any]]:
    """The replacements for the names that byte strings and numpy arrays need, in all their spellings."""
    names: dict[str, Callable[..., Any]] = {
        "numpy.ndarray": _refuse_call,  # only an argument of _reconstruct
        "numpy.dtype": TypeStandIn,
        "numpy.core.multiarray._reconstruct": lambda *_: ArrayStandIn(),
        "numpy.core.multiarray.scalar": lambda dtype, data: ArrayStandIn((), dtype, data).values()[0],
        "numpy.core.numeric._frombuffer": lambda data, dtype, shape, _: ArrayStandIn(shape, dtype, data),
        "_codecs.encode": made.encoded,
        "builtins.bytes": made.copied,
        "builtins.bytearray": made.copied,
    }
    newer = {name.replace("numpy.core.", "numpy._core."): function for name, function in names.items()}
    older = {name.replace("builtins.", "__builtin__."): function for name, function in names.items()}
    return {**newer, **older}


def _refuse_call(*_: object) -> None:
    raise ValueError("it calls numpy.ndarray")


def _image_bytes(item: object) -> bytes:
    if isinstance(item, ArrayStandIn) and item.is_bytes:
        item = item.data
    if not isinstance(item, (bytes, bytearray)):
        raise ValueError(f"found {_describe(item)}, expected bytes or a numpy array of uint8")
    return bytes(item)


def _describe(value: object) -> str:
    if isinstance(value, ArrayStandIn):
        return f"numpy array of shape {value.shape}"
    size = f" of {len(value)}" if isinstance(value, (bytes, bytearray, str, tuple, list)) else ""
    return type(value).__name__.strip("_") + size


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
