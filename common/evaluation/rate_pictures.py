# SPDX-License-Identifier: Apache-2.0
"""Curves of rates: TAR over FAR, and the share identified over the rank."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common.drawing.plots import COLOURS, INK, draw_roc, legend, new_figure, save, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_rates(curves: Mapping[str, tuple[np.ndarray, np.ndarray]], path: Path,
               ranks: Mapping[str, np.ndarray] | None = None) -> bool:
    """Draw ROC curves, (FAR, TAR) by name, and the CMC curves ``ranks``, if there are some, to a .png.

    Returns False if matplotlib is missing.
    """
    charts = 2 if ranks else 1
    if not (figure := new_figure(6.4 * charts, 4.8)):
        return False
    axes = figure.subplots(1, charts, squeeze=False)[0]
    draw_roc(axes[0], {name: {"fpr": far, "tpr": tar} for name, (far, tar) in curves.items()}, {})
    axes[0].set_title("ROC curve", loc="left", color=INK, fontsize=10.5)
    if ranks:
        _draw_ranks(axes[1], ranks)
    save(figure, path)
    return True


def _draw_ranks(axes: Axes, ranks: Mapping[str, np.ndarray]) -> None:
    style(axes, "CMC curve", "rank")
    for colour, (name, curve) in zip([*COLOURS] * 4, ranks.items()):
        axes.plot(np.arange(1, len(curve) + 1), curve, color=colour, linewidth=1.6, label=name)
    axes.set_xscale("log")
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("share of probes identified", color=INK, fontsize=9)
    legend(axes)
