# SPDX-License-Identifier: Apache-2.0
"""Readers of the files that a run leaves for pictures and reports: history, starts, ROC curves and scores."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from recognition.errors import UserError
from recognition.io.npz import read_npz

MOST_POINTS_OF_MEAN = 51  # points in the running mean of the loss; odd, so that one of them is in the middle
CURVES = ("fpr", "tpr", "pixel_fpr", "pixel_tpr")
KEYS = {"train": ("step", "loss", "lr"), "verification": ("step", "target", "accuracy", "std")}
Record = dict[str, Any]
Roc = dict[str, np.ndarray]


def read_history(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Read the records of ``history.jsonl``, by kind such as "train" and "verification". A last line that a kill cut
    short is skipped.

    :raises UserError: if the file cannot be read, or has a line that is no record, or no record.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read: {reason}; expected the history of a training run") from error
    records: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KEYS}
    for number, line in enumerate(lines[:-1], 1):
        try:
            record = json.loads(line)
            kind = record["kind"]
            if not set(KEYS.get(kind, ())) <= record.keys():
                raise KeyError(kind)
            records.setdefault(kind, []).append(record)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            kinds = " or ".join(f"{kind} with {', '.join(keys)}" for kind, keys in KEYS.items())
            raise UserError(f"{path}: line {number}: found {line[:60]!r}, expected an object of {kinds}") from error
    if not any(records.values()):
        raise UserError(f"{path}: nothing to draw yet, the run has not logged a step")
    return records


def read_roc(path: Path) -> dict[str, np.ndarray]:
    """Read ``fpr`` and ``tpr``, and ``pixel_fpr`` and ``pixel_tpr`` if the file has them: float64 (n,) each.

    :raises UserError: if the file cannot be read or lacks the first two.
    """
    try:
        content = read_npz(path)
        curves = {name: np.asarray(content[name], np.float64) for name in CURVES if name in content}
        if curves["fpr"].shape != curves["tpr"].shape or curves["fpr"].ndim != 1:
            raise ValueError(f"fpr of shape {curves['fpr'].shape} with tpr of shape {curves['tpr'].shape}")
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: {error}; expected the arrays fpr and tpr") from error
    return curves


def smoothed(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The running mean over a twentieth of the points, at most MOST_POINTS_OF_MEAN: the step in the middle of each
    mean, and the means. Too few points are returned as they are."""
    window = min(MOST_POINTS_OF_MEAN, 1 + len(values) // 20 | 1)
    if window == 1:
        return steps, values
    mean = np.convolve(values, np.full(window, 1 / window), mode="valid")
    return steps[window // 2:window // 2 + len(mean)], mean


def read_starts(path: Path) -> list[Record]:
    """Read the records of ``run.json``, one for each start of the run; none if there is no such file.

    :raises UserError: if the file holds something else.
    """
    if not path.exists():
        return []
    try:
        starts = json.loads(path.read_text(encoding="utf-8"))["starts"]
        if not (isinstance(starts, list) and all(isinstance(start, dict) for start in starts)):
            raise TypeError("starts is no list of objects")
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{path}: {error}; expected an object with the key starts, as a run writes it") from error
    return starts


def read_scores(path: Path) -> Roc:
    """Read ``distances`` float64 (P,), ``issame`` bool (P,) and ``threshold`` float64 (1,); none from an older run that
    did not store them.

    :raises UserError: if the file cannot be read or holds something else.
    """
    try:
        content = read_npz(path)
        if "distances" not in content:
            return {}
        found = {"distances": np.asarray(content["distances"], np.float64),
                 "issame": np.asarray(content["issame"], bool),
                 "threshold": np.asarray(content["threshold"], np.float64).reshape(1)}
        if found["distances"].shape != found["issame"].shape or found["distances"].ndim != 1:
            raise ValueError(f"distances of shape {found['distances'].shape}, issame of {found['issame'].shape}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: {error}; expected the arrays distances, issame and threshold") from error
    return found
