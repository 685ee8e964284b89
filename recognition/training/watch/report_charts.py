# SPDX-License-Identifier: Apache-2.0
"""Charts of a report as SVG, without a library or a script. The page's style has the colours."""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH, HEIGHT = 420, 250  # pixels
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 10, 38  # margins around the plot, in pixels
COLOURS = 6  # in the page's style; lines differ by their dashes, too
DASHES = ("", "7 3", "2 3", "9 3 2 3")
MOST_POINTS = 500  # of a line: more than the pixels of the plot


@dataclass
class Line:
    """A line through points. ``low`` and ``high`` are a band around it; ``look`` is the number of its colour."""

    name: str
    x: np.ndarray
    y: np.ndarray
    look: int = 0
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    faint: bool = False
    steps: bool = False  # a step at each point in place of a slope between two
    dots: bool = False
    area: bool = False  # filled down to zero


@dataclass
class Axis:
    """A scale from values to places on the page. ``low < high``; with ``log`` both are above 0."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not self.log and self.high - self.low < 1e-9 * max(abs(self.low), abs(self.high), 1e-3):
            room = max(abs(self.low) * 0.05, 1e-3)
            self.low, self.high = self.low - room, self.high + room

    def share(self, values: np.ndarray) -> np.ndarray:
        """The places of values on the axis: 0 at ``low``, 1 at ``high``."""
        if self.log:
            return np.log(np.maximum(values, self.low) / self.low) / math.log(self.high / self.low)
        return (np.asarray(values, np.float64) - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Round values, about five of them."""
        if self.log:
            return [10.0**power for power in range(math.ceil(math.log10(self.low) - 1e-9),
                                                   math.floor(math.log10(self.high) + 1e-9) + 1)]
        rough = (self.high - self.low) / 5
        size = 10 ** math.floor(math.log10(rough))
        step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough * 0.999)
        first, last = math.ceil(self.low / step - 1e-6), math.floor(self.high / step + 1e-6)
        return [number * step for number in range(first, last + 1)]


def number(value: float) -> str:
    """A number in short form: 20k, 1.5M, 0.001."""
    for size, sign in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / min(size, 1e3 if sign == 'k' else size):.4g}{sign}"
    return f"{value:.4g}" if abs(value) > 1e-12 else "0"


def chart(lines: Sequence[Line], about: str, x_label: str, y_label: str = "", *, x_axis: Axis | None = None,
          y_axis: Axis | None = None, from_zero: bool = False, marks: Sequence[tuple[float, str]] = ()) -> str:
    """An ``<svg>`` of lines. By default the axes span all finite values.

    :param about: a description for screen readers.
    :param marks: places and texts of vertical lines.
    """
    x_axis = x_axis or _axis([line.x for line in lines], False)
    y_axis = y_axis or _axis([part for line in lines for part in (line.y, line.low, line.high) if part is not None],
                             from_zero)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(about)}">',
             *_grid(x_axis, y_axis, x_label, y_label)]
    for place, word in marks:
        x = _across(x_axis, np.array([place]))[0]
        parts.append(f'<path class="mark" d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}"/><text class="word" '
                     f'transform="translate({x + 4:.1f} {TOP + 4}) rotate(90)">{escape(word)}</text>')
    for line in lines:
        parts.extend(_drawn(line, x_axis, y_axis))
    return "".join([*parts, "</svg>"])


def _axis(values: Sequence[np.ndarray], from_zero: bool) -> Axis:
    together = np.concatenate([np.ravel(part) for part in values]) if values else np.zeros(0)
    finite = together[np.isfinite(together)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    if from_zero:
        return Axis(0, 1.04 * high if high > 1e-12 else 1)
    room = (high - low) * 0.03
    return Axis(low - room, high + room)


def _across(axis: Axis, values: np.ndarray) -> np.ndarray:
    return LEFT + axis.share(values) * (WIDTH - LEFT - RIGHT)


def _up(axis: Axis, values: np.ndarray) -> np.ndarray:
    return HEIGHT - BOTTOM - np.clip(axis.share(values), 0, 1) * (HEIGHT - TOP - BOTTOM)


def _grid(x_axis: Axis, y_axis: Axis, x_label: str, y_label: str) -> list[str]:
    bottom, parts = HEIGHT - BOTTOM, []
    for value, x in zip(x_axis.ticks(), _across(x_axis, np.array(x_axis.ticks()))):
        parts.append(f'<path class="grid" d="M{x:.1f} {TOP}V{bottom}"/>'
                     f'<text class="middle" x="{x:.1f}" y="{bottom + 15}">{number(value)}</text>')
    for value, y in zip(y_axis.ticks(), _up(y_axis, np.array(y_axis.ticks()))):
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
                     f'<text class="end" x="{LEFT - 5}" y="{y + 4:.1f}">{number(value)}</text>')
    parts.append(f'<text class="end" x="{WIDTH - RIGHT}" y="{HEIGHT - 6}">{escape(x_label)} →</text>')
    if y_label:
        parts.append(f'<text x="{LEFT}" y="{HEIGHT - 6}">↑ {escape(y_label)}</text>')
    return parts


def look(place: int) -> str:
    """The attributes, class and dashes, of the ``place``-th line."""
    dash = DASHES[(place // COLOURS + place) % len(DASHES)]
    return f'class="line c{place % COLOURS}"' + (f' stroke-dasharray="{dash}"' if dash else "")


def _drawn(line: Line, x_axis: Axis, y_axis: Axis) -> list[str]:
    parts = []
    if line.low is not None and line.high is not None:
        x, low, high = _thinned(line.x, line.low, line.high)
        x, low, high = _across(x_axis, x), _up(y_axis, low), _up(y_axis, high)
        fine = np.isfinite(low) & np.isfinite(high)
        outline = [*zip(x[fine], high[fine]), *zip(x[fine][::-1], low[fine][::-1])]
        if outline:
            parts.append(f'<path class="band c{line.look % COLOURS}" d="M{_points(outline)}Z"/>')
    values, heights = _thinned(line.x, line.y)
    across, up = _across(x_axis, values), _up(y_axis, heights)
    path = _stepped(across, up) if line.steps else _sloped(across, up)
    if not path:
        return parts
    if line.area:
        ground = HEIGHT - BOTTOM
        parts.append(f'<path class="band c{line.look % COLOURS}" d="{path}V{ground}H{across[0]:.1f}Z"/>')
    shape = look(line.look).replace('class="', 'class="faint ') if line.faint else look(line.look)
    parts.append(f'<path {shape} d="{path}"/>')
    if line.dots or len(values) == 1:
        fine = np.isfinite(up)
        parts.append(f'<g class="dot c{line.look % COLOURS}">' + "".join(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>' for x, y in zip(across[fine], up[fine])) + "</g>")
    return parts


def _points(points: Sequence[tuple[float, float]]) -> str:
    return "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _sloped(x: np.ndarray, y: np.ndarray) -> str:
    """A path of straight lines, interrupted where a value is not finite."""
    fine = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    pieces = np.split(fine, np.flatnonzero(np.diff(fine) > 1) + 1) if len(fine) else []
    return "".join("M" + _points(list(zip(x[piece], y[piece]))) for piece in pieces)


def _stepped(x: np.ndarray, y: np.ndarray) -> str:
    """A path of steps: horizontal from each point to the next, then vertical. Points on the same pixel are drawn once.
    """
    parts, last = [f"M{x[0]:.1f} {y[0]:.1f}"], (f"{x[0]:.1f}", f"{y[0]:.1f}")
    for here in zip(x[1:], y[1:]):
        place = (f"{here[0]:.1f}", f"{here[1]:.1f}")
        parts += [f"H{place[0]}"] * (place[0] != last[0]) + [f"V{place[1]}"] * (place[1] != last[1])
        last = place
    return "".join(parts)


def _thinned(x: np.ndarray, *values: np.ndarray) -> tuple[np.ndarray, ...]:
    """Reduce a line to about MOST_POINTS points: the lowest and the highest of ``values[0]`` in each stretch."""
    if len(x) <= MOST_POINTS:
        return (x, *values)
    keep = {0, len(x) - 1}
    for stretch in np.array_split(np.arange(len(x)), MOST_POINTS // 2):
        here = values[0][stretch]
        if np.isfinite(here).any():
            keep |= {int(stretch[np.nanargmin(here)]), int(stretch[np.nanargmax(here)])}
        else:
            keep.add(int(stretch[0]))
    chosen = np.array(sorted(keep))
    return (x[chosen], *(part[chosen] for part in values))
