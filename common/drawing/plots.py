# SPDX-License-Identifier: Apache-2.0
"""The common style of this project's pictures, and the ROC curve, drawn by matplotlib."""
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from recognition.io.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0b6fb8", "#d1622b", "#2f8f5b", "#8a4fa3", "#b3892a", "#4c5a67")
INK, FAINT = "#30363d", "#8b949e"


def new_figure(width: float, height: float) -> Figure | None:
    """A white figure, its sides in inches; None if matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    return Figure(figsize=(width, height), dpi=120, layout="constrained", facecolor="white")


def save(figure: Figure, path: Path) -> None:
    """Write a figure to a .png."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def draw_roc(axes: Axes, curves: dict[str, dict[str, np.ndarray]], areas: dict[str, float]) -> None:
    """Draw the true accept rate over the false accept rate, with a logarithmic axis; pixel similarity is dashed."""
    style(axes, "ROC curve of the last verification", "false accept rate")
    if not curves:
        return say(axes, "no verification yet")
    floor = min(curve["fpr"][curve["fpr"] > 0].min(initial=1) for curve in curves.values())
    for colour, (target, curve) in zip(colours(), curves.items()):
        area = f"  AUC {areas[target]:.4f}" if target in areas else ""
        axes.step(np.maximum(curve["fpr"], floor), curve["tpr"], where="post", color=colour, linewidth=1.6,
                  label=target + area)
        if {"pixel_fpr", "pixel_tpr"} <= curve.keys():
            axes.step(np.maximum(curve["pixel_fpr"], floor), curve["pixel_tpr"], where="post", color=colour,
                      linewidth=1.1, linestyle=(0, (3, 2)), alpha=0.75, label=f"{target}, pixel similarity")
    axes.set_xscale("log")
    highest = max(curve["fpr"].max(initial=floor) for curve in curves.values())  # 1, unless only low rates are known
    axes.set_xlim(min(floor, 0.1 * highest), 10 ** np.ceil(np.log10(highest)))
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("true accept rate", color=INK, fontsize=9)
    legend(axes)


def style(axes: Axes, title: str, x_label: str) -> None:
    """Set the title, the label and the colours that all pictures have."""
    axes.set_title(title, loc="left", color=INK, fontsize=10.5)
    axes.set_xlabel(x_label, color=INK, fontsize=9)
    axes.tick_params(colors=INK, labelsize=8, length=3)
    axes.grid(True, color="#e6e9ec", linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FAINT)


def legend(axes: Axes) -> None:
    """Put the legend in the corner where accuracies and ROC curves leave room."""
    axes.legend(loc="lower right", fontsize=8, framealpha=0.85, edgecolor="none", labelcolor=INK)


def colours() -> list[str]:
    return [*COLOURS] * 8


def say(axes: Axes, what: str) -> None:
    axes.text(0.5, 0.5, what, transform=axes.transAxes, ha="center", va="center", color=FAINT)
