# SPDX-License-Identifier: Apache-2.0
"""A reader of NumPy's ``.npz`` for untrusted files: it never takes more memory than the file has bytes, whatever sizes
the headers give."""
from __future__ import annotations

import io
import math
import os
import tokenize
import zipfile
from pathlib import Path

import numpy as np

_FORMATS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of a file by name; they are read-only. Archives of ``np.savez_compressed`` are refused.

    :raises ValueError: with what was found, if it is no such file.
    :raises OSError: if the file cannot be read.
    """
    left = os.path.getsize(path)
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                left -= info.file_size
                if info.compress_type != zipfile.ZIP_STORED:
                    raise ValueError(f"{info.filename[:60]!r} is compressed, expected np.savez to have written it")
                if left < 0:
                    raise ValueError("it unfolds to more than its own size")
                arrays[info.filename[:-4] if info.filename.endswith(".npy") else info.filename] = _array(
                    archive.read(info))
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError) as error:  # RuntimeError: a password
        raise ValueError(f"not a zip archive that can be read: {error}") from error
    return arrays


def _array(data: bytes) -> np.ndarray:
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version not in _FORMATS:
        raise ValueError(f"an array in version {version} of the format, expected 1.0 or 2.0")
    try:
        shape, in_columns, dtype = _FORMATS[version](file)
    except (SyntaxError, TypeError, KeyError, RecursionError, MemoryError, tokenize.TokenError) as error:
        raise ValueError(f"a header of an array that cannot be read: {error}") from error
    if any(type(side) is not int or side < 0 for side in shape):  # True is an integer to NumPy's own check
        raise ValueError(f"an array of shape {str(shape)[:60]}, expected whole numbers")
    count = math.prod(shape)
    if dtype.hasobject or dtype.itemsize == 0 or count * dtype.itemsize != len(data) - file.tell() or len(
            shape) > 32:
        raise ValueError(f"an array of {str(dtype)[:40]} {str(shape)[:60]} with {len(data) - file.tell()} bytes")
    flat = np.frombuffer(data, dtype, count, file.tell())
    return flat.reshape(shape, order="F" if in_columns else "C")
