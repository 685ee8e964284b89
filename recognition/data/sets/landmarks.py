# SPDX-License-Identifier: Apache-2.0
"""Landmarks of the images of a training set: eyes, nose, corners of the mouth, the left one of the image first.

They lie in a file beside the set, ``landmarks.npz`` in the folder of records and ``FOLDER.landmarks.npz`` beside a
folder of folders: ``points`` float16 ``(K, 5, 2)``, x and y in pixels of the image with key k, NaN where they are not
known; and ``of``, a text that changes with the set. float16 is exact to 0.03 of a pixel in images of 112 x 112.
"""
from __future__ import annotations

from pathlib import Path

import numpy as np

from recognition.data.sets.image_set import ImageSet
from recognition.errors import UserError
from recognition.io.files import replacing
from recognition.io.npz import read_npz

_EXPECTED = "expected landmarks as common.find_landmarks writes them"


def write_landmarks_of(path: Path, of: str, points: np.ndarray) -> None:
    """Write the file; ``points``: float ``(K, 5, 2)``."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, of=np.array(of), points=np.asarray(points, np.float16))


def landmarks_of(dataset: ImageSet) -> tuple[np.ndarray | None, str]:
    """The landmarks of a set by key, float16 ``(K, 5, 2)``, None if there is no file of them; and a line about it.

    :raises UserError: if a file is none of landmarks, or of another state of its set.
    """
    found, about = [], []
    for part in dataset.parts:
        points = None if part.landmarks_place is None else read_landmarks_of(*part.landmarks_place)
        found.append(points)
        if points is None:
            about.append(f"{part.path}: no landmarks beside it, masks lie as on a face that fits the template")
        else:
            known = np.isfinite(_rows(points, part.keys)[:, 0, 0]).sum()
            about.append(f"{part.path}: masks follow the landmarks of {known} of {len(part)} images, on others they "
                         "lie as on a face that fits the template")
    if all(points is None for points in found):
        return None, "\n".join(about)
    if len(found) > 1:  # there a key is an image's number among the images of all sets
        rows = [_rows(points, part.keys) for points, part in zip(found, dataset.parts)]
        return np.concatenate(rows), "\n".join(about)
    return found[0], about[0]


def _rows(points: np.ndarray | None, keys: np.ndarray) -> np.ndarray:
    """The landmarks of images by their keys: float16 ``(n, 5, 2)``."""
    rows = np.full((len(keys), 5, 2), np.nan, np.float16)
    if points is not None:
        there = keys < len(points)
        rows[there] = points[keys[there]]
    return rows


def read_landmarks_of(path: Path, of: str) -> np.ndarray | None:
    """The landmarks in a file, float16 ``(K, 5, 2)``; None if there is no file.

    :raises UserError: if it is none of landmarks, or of another set than ``of`` says.
    """
    try:
        arrays = read_npz(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path}: {error}; {_EXPECTED}") from error
    points, made_of = arrays.get("points"), arrays.get("of")
    if points is None or made_of is None or points.dtype != np.float16 or points.shape[1:] != (5, 2):
        raise UserError(f"{path}: found the arrays {', '.join(map(str, arrays)) or 'none'}, {_EXPECTED}")
    if str(made_of) != of:
        raise UserError(f"{path}: found landmarks of another state of the set, expected of this one: make them anew")
    return points
