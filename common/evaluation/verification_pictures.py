# SPDX-License-Identifier: Apache-2.0
"""Pictures of a verification: ROC curves, histograms of the distances, and the worst pairs."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from common.drawing.plots import COLOURS, FAINT, INK, draw_roc, new_figure, save, style
from recognition.data.verification_set import VerificationSet
from recognition.evaluation.verification import Result
from recognition.io.files import write_whole

TILE, GAP, LINE = 112, 6, 18  # pixels of a contact sheet: an image, the space between two, a line of text
COLUMNS, MOST = 6, 24  # pairs of a contact sheet, of each kind
WIDTH = COLUMNS * (2 * TILE + GAP) + GAP
NO_MATPLOTLIB = "no curves: matplotlib is not installed: pip install 'matplotlib>=3.8'"


def draw_curves(results: dict[str, Result], path: Path) -> bool:
    """Draw the ROC curves of all sets to a .png; returns False if matplotlib is missing."""
    if not (figure := new_figure(6.4, 4.8)):
        return False
    axes = figure.subplots()
    draw_roc(axes, {name: {"fpr": result.roc.fpr, "tpr": result.roc.tpr} for name, result in results.items()},
             {name: result.auc for name, result in results.items()})
    axes.set_title("ROC curve", loc="left", color=INK, fontsize=10.5)
    save(figure, path)
    return True


def draw_histograms(results: dict[str, Result], path: Path) -> bool:
    """Draw a histogram for each set: distances of pairs of one identity and of two, and the mean threshold of the
    folds. Returns False if matplotlib is missing."""
    columns = min(3, len(results))
    rows = -(-len(results) // columns)
    if not (figure := new_figure(4.6 * columns, 3.4 * rows)):
        return False
    charts = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (name, result) in zip(charts, results.items()):
        style(axes, name, "squared distance")
        bins = np.linspace(0, max(float(result.distances.max()), 1e-6), 61)
        for issame, colour, label in ((True, COLOURS[0], "one identity"), (False, COLOURS[1], "two identities")):
            axes.hist(result.distances[result.issame == issame], bins, color=colour, alpha=0.55, label=label)
        axes.axvline(float(np.mean(result.best_thresholds)), color=INK, linewidth=1, linestyle=(0, (3, 3)),
                     label="threshold")
        axes.set_ylabel("pairs", color=INK, fontsize=9)
        axes.legend(loc="best", fontsize=8, framealpha=0.85, edgecolor="none", labelcolor=INK)
    for axes in charts[len(results):]:
        axes.set_axis_off()
    save(figure, path)
    return True


def worst_pairs(result: Result) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the farthest pairs of one identity and of the nearest of two, worst first, MOST of each.

    They need not be errors: in a set without errors they are the pairs that came closest to one.
    """
    numbers = np.arange(len(result.issame))
    same, different = numbers[result.issame], numbers[~result.issame]
    return (same[np.argsort(-result.distances[same], kind="stable")][:MOST],
            different[np.argsort(result.distances[different], kind="stable")][:MOST])


def draw_contact_sheet(chosen: VerificationSet, result: Result, path: Path) -> None:
    """Draw the worst pairs of one identity and of two as images side by side, each with its number and distance.

    An error, a pair on the wrong side of its fold's threshold, is red.
    """
    folds = len(result.accuracies)
    sizes = np.full(folds, len(result.issame) // folds) + (np.arange(folds) < len(result.issame) % folds)
    errors = (result.distances < np.repeat(result.best_thresholds, sizes)) != result.issame
    parts = []
    for title, pairs in zip(("one identity, farthest first", "two identities, nearest first"), worst_pairs(result)):
        count = int(np.count_nonzero(errors & (result.issame == result.issame[pairs[0]])))
        parts += [_title(f"{chosen.name}: {title}; {count} errors in the set"), *_rows(chosen, result, errors, pairs)]
    encoded = cv2.imencode(".png", np.concatenate(parts))[1]
    write_whole(path, encoded.tobytes())


def _text(canvas: np.ndarray, text: str, x: int, y: int, colour: Sequence[int], size: float = 0.42) -> None:
    cv2.putText(canvas, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, size, tuple(colour), 1, cv2.LINE_AA)


def _bgr(colour: str) -> list[int]:
    return [int(colour[i : i + 2], 16) for i in (5, 3, 1)]


def _title(text: str) -> np.ndarray:
    canvas = np.full((LINE + 2 * GAP, WIDTH, 3), 255, np.uint8)
    _text(canvas, text, GAP, LINE, _bgr(INK), 0.5)
    return canvas


def _rows(chosen: VerificationSet, result: Result, errors: np.ndarray, pairs: np.ndarray) -> list[np.ndarray]:
    rows = []
    for start in range(0, len(pairs), COLUMNS):
        canvas = np.full((TILE + LINE + GAP, WIDTH, 3), 255, np.uint8)
        for place, pair in enumerate(pairs[start : start + COLUMNS].tolist()):
            x = GAP + place * (2 * TILE + GAP)
            for i in (0, 1):
                image = np.ascontiguousarray(chosen.images[2 * pair + i].transpose(1, 2, 0)[..., ::-1])
                if image.shape[:2] != (TILE, TILE):
                    image = cv2.resize(image, (TILE, TILE), interpolation=cv2.INTER_AREA)
                canvas[:TILE, x + i * TILE : x + (i + 1) * TILE] = image
            colour = _bgr("#c0271d") if errors[pair] else _bgr(FAINT)
            _text(canvas, f"pair {pair}: {result.distances[pair]:.3f}", x, TILE + LINE - 4, colour)
        rows.append(canvas)
    return rows
