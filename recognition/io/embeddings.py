# SPDX-License-Identifier: Apache-2.0
"""A folder of the embeddings of a training set, rows of which are read when they are used: they may exceed memory.

``embeddings.npy`` holds a unit vector an image, float16 or float32 (N, D); ``keys.npy`` the images' keys, int64 (N,)
rising, as the set numbers them; ``embeddings.json`` the model, whether mirrors were added, and the digest of the set.
"""
from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from recognition.errors import UserError
from recognition.io.files import regular, write_whole
from recognition.io.stored_array import StoredArray, open_npy

ROWS, KEYS, NOTE = "embeddings.npy", "keys.npy", "embeddings.json"
NUMBERS = np.float16  # a unit vector is rounded by 5e-4 of each number at most
_ROWS_IN_PRINT = 64


class StoredEmbeddings:
    """The embeddings in a folder."""

    def __init__(self, folder: Path) -> None:
        """:raises UserError: if a file is missing or is not what the module says."""
        self.folder = folder
        self._rows, keys = _open(folder / ROWS), _open(folder / KEYS)
        if len(self._rows.shape) != 2 or self._rows.dtype not in (np.float16, np.float32):
            raise UserError(f"{folder / ROWS}: found {self._rows.dtype} {self._rows.shape}, expected float16 or "
                            "float32 of a row an image")
        if keys.shape != self._rows.shape[:1] or keys.dtype != np.int64:
            raise UserError(f"{folder / KEYS}: found {keys.dtype} {keys.shape}, expected int64 of {len(self._rows)} "
                            "keys")
        self.keys = np.asarray(keys)
        if (np.diff(self.keys) <= 0).any():
            raise UserError(f"{folder / KEYS}: found keys in another order, expected each once and rising")
        self.note = _note(folder / NOTE)
        self.dim = self._rows.shape[1]

    @property
    def digest(self) -> str:
        """The digest of the set that was embedded."""
        return str(self.note.get("digest", ""))

    def missing(self, keys: np.ndarray) -> np.ndarray:
        """The ones of ``keys``, int64 (n,), that have no row."""
        places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return keys[self.keys[places] != keys] if len(self.keys) else keys

    def of(self, keys: np.ndarray) -> np.ndarray:
        """The rows of images with these ``keys``, int64 (n,), which are there: float32 (n, D)."""
        return self._rows[np.searchsorted(self.keys, keys)].astype(np.float32)

    def fingerprint(self) -> str:
        """A digest that differs for other embeddings: of keys and note, and of some of the rows."""
        found = hashlib.sha256(json.dumps([self.note, self._rows.shape], sort_keys=True).encode())
        found.update(self.keys.tobytes())
        count = min(_ROWS_IN_PRINT, len(self.keys))
        found.update(self._rows[np.linspace(0, max(len(self.keys) - 1, 0), count).astype(np.int64)].tobytes())
        return found.hexdigest()[:16]


def write_embeddings(folder: Path, keys: np.ndarray, dim: int, rows: Iterable[np.ndarray],
                     note: dict[str, Any]) -> None:
    """Write the files of a folder that is there: ``rows`` are parts (n, dim) of unit vectors, in the order of ``keys``,
    int64 (N,) rising."""
    with open(folder / ROWS, "wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(NUMBERS)), "fortran_order": False,
                  "shape": (len(keys), dim)}
        np.lib.format.write_array_header_1_0(file, header)
        for part in rows:
            file.write(np.ascontiguousarray(part, NUMBERS).data)
    np.save(folder / KEYS, np.asarray(keys, np.int64))
    write_whole(folder / NOTE, json.dumps(note, indent=1) + "\n")


def _open(path: Path) -> StoredArray:
    try:
        return open_npy(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}; expected a folder of common.embed_set") \
            from None
    except ValueError as error:
        raise UserError(f"{path}: {error}; expected an array that common.embed_set wrote") from None


def _note(path: Path) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8", opener=regular) as file:
            found = json.load(file)
        if not isinstance(found, dict):
            raise ValueError("no object")
        return found
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not the note of common.embed_set: {error}") from None
