# SPDX-License-Identifier: Apache-2.0
"""The report of :mod:`common.drop`: numbers, a table of identities, one of images, and a picture."""
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.sets.sub_centres import Choice
from recognition.io.files import writing

THRESHOLDS = (50, 55, 60, 65, 70, 75, 80, 85, 90)  # degrees, compared in the report
EDGES = np.arange(0, 181, 2)  # of the histogram, degrees
COLUMNS = ("identity", "new_identity", "images", "kept", "dropped", "dominant", "dominant_share")
OWN, OTHER, INK = "#0b6fb8", "#d1622b", "#30363d"


def write_report(folder: Path, choice: Choice, origin: Mapping[str, str], names: Sequence[str] = ()) -> dict[str, Any]:
    """Write ``drop.json``, ``drop-identities.tsv``, ``drop-images.npz`` and, if matplotlib is there, ``drop.png``.

    Returns the content of ``drop.json``.

    :param origin: data, model and centres; ``names``: of all identities, if there are names.
    """
    report = summary(choice, origin)
    with writing(folder):
        (folder / "drop.json").write_text(json.dumps(report, indent=1) + "\n")
        write_identities(folder / "drop-identities.tsv", choice, names)
        np.savez(folder / "drop-images.npz", record=choice.records, identity=choice.labels, sub_centre=choice.nearest,
                 angle=choice.angles, kept=choice.kept)
        draw_angles(folder / "drop.png", report)
    return report


def summary(choice: Choice, origin: Mapping[str, str]) -> dict[str, Any]:
    """The numbers of the report for its JSON file."""
    other = choice.nearest != choice.dominant[choice.labels]
    kept, images = choice.kept, choice.counts.sum(axis=1)
    left = int(np.count_nonzero(choice.kept_counts))
    thresholds = sorted({*THRESHOLDS, choice.threshold})
    return {
        **origin, "k": choice.counts.shape[1], "threshold": choice.threshold,
        "images": {"all": len(kept), "kept": int(kept.sum()), "dropped": int((~kept).sum()),
                   "of_other_sub_centres": int(other.sum()),
                   "dropped_of_other_sub_centres": int((other & ~kept).sum())},
        "identities": {"all": len(images), "kept": left, "dropped": int(np.count_nonzero(images)) - left,
                       "without_images": int(np.count_nonzero(images == 0))},
        "thresholds": [{"degrees": degrees, "kept": int((choice.angles < degrees).sum())} for degrees in thresholds],
        "histogram": {"edges": EDGES.tolist(), "dominant": _histogram(choice.angles[~other]),
                      "other": _histogram(choice.angles[other])},
    }


def _histogram(angles: np.ndarray) -> list[int]:
    return np.histogram(angles, EDGES)[0].tolist()


def write_identities(path: Path, choice: Choice, names: Sequence[str]) -> None:
    """Write a line for each identity, with tabs between COLUMNS (and ``name``). ``new_identity`` is empty for one that
    is not in the new set; ``dominant_share`` is the share of its images nearest to its dominant sub-centre.
    """
    images, kept, dominant = choice.counts.sum(axis=1), choice.kept_counts, choice.dominant
    shares = choice.counts.max(axis=1) / np.maximum(images, 1)
    new = np.where(kept > 0, np.cumsum(kept > 0) - 1, -1)
    with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write("\t".join((*COLUMNS, *(["name"] if names else []))) + "\n")
        for i, row in enumerate(zip(new.tolist(), images.tolist(), kept.tolist(), (images - kept).tolist(),
                                    dominant.tolist(), shares.tolist())):
            numbered, *counts, share = row
            cells = [i, numbered if numbered >= 0 else "", *counts, f"{share:.4f}", *names[i : i + 1]]
            file.write("\t".join(map(str, cells)) + "\n")


def draw_angles(path: Path, report: Mapping[str, Any]) -> None:
    """Draw the histogram of a report's angles with its threshold to a .png; do nothing without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    histogram, images = report["histogram"], report["images"]
    edges, width = np.array(histogram["edges"]), histogram["edges"][1] - histogram["edges"][0]
    figure = Figure(figsize=(8, 4), dpi=100, layout="constrained", facecolor="white")
    axes = figure.subplots()
    below = np.zeros(len(edges) - 1)
    for part, colour, label in (("dominant", OWN, "nearest to the dominant sub-centre"),
                                ("other", OTHER, "nearest to another sub-centre")):
        counts = np.array(histogram[part])
        axes.bar(edges[:-1], counts, width, bottom=below, align="edge", color=colour, label=label)
        below += counts
    axes.axvline(report["threshold"], color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_title(f"{images['kept']} of {images['all']} images within {report['threshold']:g} degrees", loc="left",
                   color=INK, fontsize=10.5)
    axes.set_xlabel("angle from the dominant sub-centre, degrees", color=INK, fontsize=9)
    axes.set_ylabel("images", color=INK, fontsize=9)
    axes.set_ylim(0, 1.06 * below.max())
    drawn = np.flatnonzero(below)
    axes.set_xlim(edges[drawn[0]] - width, max(edges[drawn[-1]] + 2 * width, report["threshold"] + width))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(path, format="png")
