# SPDX-License-Identifier: Apache-2.0
"""Draws a training run: loss and verification accuracy over the steps, and the ROC curve of the last verification.

    python -m common.plot_run models/demo-arcface-demo
"""
from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recognition.command_line import Parser
from recognition.errors import UserError, command
from recognition.npz_file import read_npz

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0b6fb8", "#d1622b", "#2f8f5b", "#8a4fa3", "#b3892a", "#4c5a67")
INK, FAINT = "#30363d", "#8b949e"
FORMATS = (".png", ".svg", ".pdf")
WINDOW = 51  # points that the running mean of the loss spans at most; odd, so that one of them is its middle
RATES = ("fpr", "tpr", "pixel_fpr", "pixel_tpr")
KEYS = {"train": ("step", "loss", "lr"), "verification": ("step", "target", "accuracy", "std")}


def read_history(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Records of ``history.jsonl`` by kind, "train" and "verification". A last line that a kill cut short is left."""
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
    """``fpr`` and ``tpr``, and ``pixel_fpr`` and ``pixel_tpr`` where they are there: float64 of one axis."""
    try:
        content = read_npz(path)
        curves = {name: np.asarray(content[name], np.float64) for name in RATES if name in content}
        if curves["fpr"].shape != curves["tpr"].shape or curves["fpr"].ndim != 1:
            raise ValueError(f"fpr of shape {curves['fpr'].shape} with tpr of shape {curves['tpr'].shape}")
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: {error}; expected the arrays fpr and tpr") from error
    return curves


def draw_loss(axes: Axes, train: Sequence[dict[str, Any]]) -> None:
    """The loss as it was logged, faint, its running mean, and the last step before each change of the learning rate."""
    style(axes, "Training loss", "step")
    if not train:
        return _say(axes, "no step logged yet")
    steps, loss = (np.array([record[name] for record in train], np.float64) for name in ("step", "loss"))
    middle, mean = smoothed(steps, loss)
    axes.plot(steps, loss, color=COLOURS[0], alpha=0.3 if len(mean) < len(loss) else 1, linewidth=1)
    if len(mean) < len(loss):
        axes.plot(middle, mean, color=COLOURS[0], linewidth=1.8)
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    for before, after in zip(train, train[1:]):
        if before["lr"] != after["lr"]:
            axes.axvline(before["step"], color=FAINT, linewidth=0.8, linestyle=(0, (3, 3)))
            axes.annotate(f"lr {after['lr']:g}", (before["step"], 1), (3, -4), xycoords=axes.get_xaxis_transform(),
                          textcoords="offset points", rotation=90, va="top", fontsize=7, color=FAINT)


def smoothed(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The running mean over a twentieth of the points, WINDOW at most, and the step in the middle of each mean.

    All of the points where they are too few.
    """
    window = min(WINDOW, 1 + len(values) // 20 | 1)
    if window == 1:
        return steps, values
    mean = np.convolve(values, np.full(window, 1 / window), mode="valid")
    return steps[window // 2:window // 2 + len(mean)], mean


def draw_accuracy(axes: Axes, verifications: Sequence[dict[str, Any]]) -> None:
    """Accuracy of each target over the steps, with the standard deviation of its folds as a band."""
    style(axes, "Verification accuracy", "step")
    if not verifications:
        return _say(axes, "no verification yet")
    for colour, target in zip(_cycle(), _targets(verifications)):
        records = [record for record in verifications if record["target"] == target]
        steps, mean, std = (np.array([record[name] for record in records], np.float64)
                            for name in ("step", "accuracy", "std"))
        axes.fill_between(steps, mean - std, np.minimum(mean + std, 1), color=colour, alpha=0.14, linewidth=0)
        axes.plot(steps, mean, color=colour, marker="o", markersize=3, linewidth=1.6, label=f"{target}  {mean[-1]:.4f}")
    axes.set_ylim(top=1.005)
    axes.set_xlim(left=0)
    legend(axes)


def draw_roc(axes: Axes, curves: dict[str, dict[str, np.ndarray]], areas: dict[str, float]) -> None:
    """True accept rate at each false accept rate, on the field's logarithmic axis; pixel similarity dashed."""
    style(axes, "ROC curve of the last verification", "false accept rate")
    if not curves:
        return _say(axes, "no verification yet")
    floor = min(curve["fpr"][curve["fpr"] > 0].min(initial=1) for curve in curves.values())
    for colour, (target, curve) in zip(_cycle(), curves.items()):
        area = f"  AUC {areas[target]:.4f}" if target in areas else ""
        axes.step(np.maximum(curve["fpr"], floor), curve["tpr"], where="post", color=colour, linewidth=1.6,
                  label=target + area)
        if {"pixel_fpr", "pixel_tpr"} <= curve.keys():
            axes.step(np.maximum(curve["pixel_fpr"], floor), curve["pixel_tpr"], where="post", color=colour,
                      linewidth=1.1, linestyle=(0, (3, 2)), alpha=0.75, label=f"{target}, pixel similarity")
    axes.set_xscale("log")
    highest = max(curve["fpr"].max(initial=floor) for curve in curves.values())  # 1, but of the lowest rates alone
    axes.set_xlim(min(floor, 0.1 * highest), 10 ** np.ceil(np.log10(highest)))
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("true accept rate", color=INK, fontsize=9)
    legend(axes)


def draw_run(folder: Path, output: Path) -> dict[str, dict[str, Any]]:
    """Draw the run whose history and ROC curves lie in ``folder`` to ``output``, a .png, .svg or .pdf.

    Returns the last verification of each target.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("matplotlib is not installed: pip install 'matplotlib>=3.8'") from error
    history = read_history(folder / "history.jsonl")
    last = {record["target"]: record for record in history["verification"]}
    paths = {target: folder / f"roc-{target}.npz" for target in _targets(history["verification"])}
    curves = {target: read_roc(path) for target, path in paths.items() if path.exists()}
    figure = Figure(figsize=(15, 4.4), dpi=120, layout="constrained", facecolor="white")
    loss, accuracy, roc = figure.subplots(1, 3)
    figure.suptitle(folder.resolve().name, color=INK, fontsize=12, x=0.01, ha="left", weight="bold")
    draw_loss(loss, history["train"])
    draw_accuracy(accuracy, history["verification"])
    draw_roc(roc, curves, {target: record["auc"] for target, record in last.items() if "auc" in record})
    temporary = output.with_name(f".{output.name}.writing")
    try:
        figure.savefig(temporary, format=output.suffix[1:].lower())
        os.replace(temporary, output)
    except OSError as error:
        raise UserError(f"{output}: cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return last


def _targets(verifications: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(record["target"] for record in verifications))


def _cycle() -> list[str]:
    return [*COLOURS] * 8


def style(axes: Axes, title: str, x_label: str) -> None:
    """Title, label and colours that all pictures have."""
    axes.set_title(title, loc="left", color=INK, fontsize=10.5)
    axes.set_xlabel(x_label, color=INK, fontsize=9)
    axes.tick_params(colors=INK, labelsize=8, length=3)
    axes.grid(True, color="#e6e9ec", linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FAINT)


def legend(axes: Axes) -> None:
    """In the corner where accuracies and ROC curves leave room."""
    axes.legend(loc="lower right", fontsize=8, framealpha=0.85, edgecolor="none", labelcolor=INK)


def _say(axes: Axes, what: str) -> None:
    axes.text(0.5, 0.5, what, transform=axes.transAxes, ha="center", va="center", color=FAINT)


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m common.plot_run", description="Draw a training run.")
    parser.add_argument("folder", type=Path, metavar="MODEL_DIR", help="the folder of the run's checkpoints")
    parser.add_argument("--output", type=Path, help="picture: .png, .svg or .pdf (default: MODEL_DIR/run.png)")
    args = parser.parse_args(argv)
    output = args.output or args.folder / "run.png"
    if output.suffix.lower() not in FORMATS:
        raise UserError(f"--output: found {str(output)!r}, expected a name that ends with {', '.join(FORMATS)}")
    for target, record in draw_run(args.folder, output).items():
        area = f", area under the ROC curve {record['auc']:.4f}" if "auc" in record else ""
        print(f"{target}: accuracy {record['accuracy']:.5f}+-{record['std']:.5f} after step {record['step']}{area}")
    print(f"picture: {output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
