# SPDX-License-Identifier: Apache-2.0
"""Draws a training run: loss and verification accuracy over the steps, and the ROC curve of the last verification.

    python -m common.plot_run models/demo-arcface-demo
"""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.drawing.plots import COLOURS, FAINT, INK, colours, draw_roc, legend, say, style
from recognition.config.command_line import Parser
from recognition.errors import UserError, command
from recognition.io.files import regular, replacing, require_new
from recognition.training.watch.run_files import read_history, read_roc, smoothed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".png", ".svg", ".pdf")
SOFTWARE = "python -m common.plot_run"  # what a .png says that drew it






def draw_loss(axes: Axes, train: Sequence[dict[str, Any]]) -> None:
    """Draw the loss, faint, its running mean, and a mark at the last step before each change of the learning rate."""
    style(axes, "Training loss", "step")
    if not train:
        return say(axes, "no step logged yet")
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




def draw_accuracy(axes: Axes, verifications: Sequence[dict[str, Any]]) -> None:
    """Draw the accuracy of each target over the steps, with the standard deviation of its folds as a band."""
    style(axes, "Verification accuracy", "step")
    if not verifications:
        return say(axes, "no verification yet")
    for colour, target in zip(colours(), _targets(verifications)):
        records = [record for record in verifications if record["target"] == target]
        steps, mean, std = (np.array([record[name] for record in records], np.float64)
                            for name in ("step", "accuracy", "std"))
        axes.fill_between(steps, mean - std, np.minimum(mean + std, 1), color=colour, alpha=0.14, linewidth=0)
        axes.plot(steps, mean, color=colour, marker="o", markersize=3, linewidth=1.6, label=f"{target}  {mean[-1]:.4f}")
    axes.set_ylim(top=1.005)
    axes.set_xlim(left=0)
    legend(axes)




def draw_run(folder: Path, output: Path) -> dict[str, dict[str, Any]]:
    """Draw the history and the ROC curves in the ``folder`` of a run to ``output``, a .png, .svg or .pdf.

    Returns the last verification of each target.

    :raises UserError: if matplotlib is not installed, or if a file cannot be read or written.
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
    with replacing(output) as temporary:
        form = output.suffix[1:].lower()
        figure.savefig(temporary, format=form, metadata={"Software": SOFTWARE} if form == "png" else None)
    return last


def is_own(picture: Path) -> bool:
    """True for a .png that this command drew."""
    try:
        with open(picture, "rb", opener=regular) as file:
            return b"tEXtSoftware\0" + SOFTWARE.encode() in file.read(512)
    except OSError:
        return False


def _targets(verifications: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(record["target"] for record in verifications))










@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m common.plot_run", description="Draw a training run.")
    parser.add_argument("folder", type=Path, metavar="MODEL_DIR", help="the folder of the run's checkpoints")
    parser.add_argument("--output", type=Path, help="picture: .png, .svg or .pdf (default: MODEL_DIR/run.png)")
    parser.add_overwrite()
    args = parser.parse_args(argv)
    output = args.output or args.folder / "run.png"
    if output.suffix.lower() not in FORMATS:
        raise UserError(f"--output: found {str(output)!r}, expected a name that ends with {', '.join(FORMATS)}")
    require_new([output], overwrite=args.overwrite or (args.output is None and is_own(output)))
    for target, record in draw_run(args.folder, output).items():
        area = f", area under the ROC curve {record['auc']:.4f}" if "auc" in record else ""
        print(f"{target}: accuracy {record['accuracy']:.5f}+-{record['std']:.5f} after step {record['step']}{area}")
    print(f"picture: {output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
