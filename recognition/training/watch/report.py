# SPDX-License-Identifier: Apache-2.0
"""The report of a training run as one HTML file: curves, the last verification, options, machine, versions."""
from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from recognition.config.options import OPTIONS
from recognition.io.files import require_new, write_whole
from recognition.training.watch.report_charts import Axis, Line, chart, number
from recognition.training.watch.report_page import charts, figure, folded, is_page, page, section, table
from recognition.training.watch.run_files import Record, Roc, read_history, read_roc, read_scores, read_starts, smoothed

FILE = "report.html"
FARS = (1e-2, 1e-3, 1e-4)
History = dict[str, list[Record]]


def make_report(folder: Path, output: Path | None = None, overwrite: bool = False) -> Path:
    """Write the report of the run in ``folder`` to ``output``, by default ``report.html`` in the same folder.

    :raises UserError: if the folder holds no history of a run, or a file that no run writes; without ``overwrite`` also
        if ``output`` exists and is no earlier report of the run.
    """
    target = output or folder / FILE
    require_new([target], overwrite=overwrite or (output is None and is_page(target)))
    write_whole(target, page(folder.resolve().name, report_body(folder)))
    return target


def report_body(folder: Path) -> list[str]:
    """The report of the run in ``folder`` as HTML, part by part.

    :raises UserError: if the folder holds no history of a run, or a file that no run writes.
    """
    history, starts = read_history(folder / "history.jsonl"), read_starts(folder / "run.json")
    targets = list(dict.fromkeys(str(record["target"]) for record in history["verification"]))
    paths = {target: folder / f"roc-{target}.npz" for target in targets}
    rocs = {target: read_roc(path) for target, path in paths.items() if path.is_file()}
    scores = {target: read_scores(paths[target]) for target in rocs}
    body = [f"<header><h1>{escape(folder.resolve().name)}</h1>{_headline(history, starts)}</header>",
            section("Verification", _last(history, rocs), charts(_verification_charts(history, rocs, scores)),
                    _all_verifications(history)) if targets else section("Verification", "<p>None yet.</p>"),
            section("Training", charts(_training_charts(history)), _left_out(history))]
    if starts:
        body += [_configuration(starts[-1]), _where(starts)]
    return body


def _headline(history: History, starts: Sequence[Record]) -> str:
    steps = [record["step"] for kind in history.values() for record in kind]
    last = starts[-1] if starts else {}
    end = last.get("end")
    if not isinstance(end, dict):
        state = f"No end noted (it runs, or was killed); last record at step {max(steps)}"
    elif end.get("status") == 0:
        state = f"Finished after step {end.get('step')}, epoch {end.get('epoch')}"
    else:
        state = f"Stopped with status {end.get('status')} after step {end.get('step')}, epoch {end.get('epoch')}"
    parts = (starts[0] if starts else {}, end)
    times = [str(part["time"]) for part in parts if isinstance(part, dict) and "time" in part]
    return f'<p>{escape(state)}</p><p class="soft">{escape(" to ".join(times))}</p>'


def _last(history: History, rocs: dict[str, Roc]) -> str:
    rows = []
    for target in dict.fromkeys(record["target"] for record in history["verification"]):
        records = [record for record in history["verification"] if record["target"] == target]
        last, best = records[-1], max(records, key=lambda record: record["accuracy"])
        roc = rocs.get(str(target))
        rows.append([str(target), f"{100 * last['accuracy']:.2f} ± {100 * last['std']:.2f}",
                     f"{100 * best['accuracy']:.2f} (step {best['step']})",
                     f"{last['auc']:.4f}" if "auc" in last else "-",
                     *(f"{100 * _tar(roc, far):.2f}" if roc else "-" for far in FARS),
                     f"{last['xnorm']:.2f}" if "xnorm" in last else "-", str(last["step"])])
    header = ["target", "accuracy, %", "best, %", "AUC", *(f"TAR at FAR {far:g}, %" for far in FARS), "XNorm", "step"]
    return table("Last verification: mean and standard deviation of the folds", header, rows, numbers=True)


def _tar(roc: Roc, far: float) -> float:
    """True accept rate at the highest threshold whose false accept rate is at most ``far``."""
    return float(roc["tpr"][np.searchsorted(roc["fpr"], far, side="right") - 1])


def _verification_charts(history: History, rocs: dict[str, Roc], scores: dict[str, Roc]) -> list[str]:
    lines, norms = [], []
    targets = list(dict.fromkeys(record["target"] for record in history["verification"]))
    for place, target in enumerate(targets):
        records = [record for record in history["verification"] if record["target"] == target]
        steps, mean, std, norm = (np.array([record.get(key, np.nan) for record in records], np.float64)
                                  for key in ("step", "accuracy", "std", "xnorm"))
        lines.append(Line(str(target), steps, mean, place, mean - std, np.minimum(mean + std, 1), dots=len(steps) < 60))
        norms.append(Line(str(target), steps, norm, place, dots=len(steps) < 60))
    figures = [_figure("Accuracy", lines, "step"), _figure("XNorm, mean norm of the embeddings", norms, "step")]
    if rocs:
        figures.append(_roc_figure(rocs))
    return figures + [_histogram(target, found) for target, found in scores.items() if found]


def _figure(title: str, lines: list[Line], x_label: str, **options: Any) -> str:
    about = f"{title}. " + " ".join(f"{line.name}: {_described(line)}" for line in lines if not line.faint)
    names = [(line.name, line.look) for line in lines if line.name and not line.faint]
    return figure(title, chart(lines, about, x_label, **options), names if len(names) > 1 or not options else ())


def _described(line: Line) -> str:
    """A description of a line in words: its first, last, lowest and highest value."""
    fine = np.flatnonzero(np.isfinite(line.y))
    if not len(fine):
        return "no finite value."
    first, last = fine[0], fine[-1]
    low, high = line.y[fine].min(), line.y[fine].max()
    return (f"{number(line.y[first])} at {number(line.x[first])}, {number(line.y[last])} at {number(line.x[last])}, "
            f"lowest {number(low)}, highest {number(high)}.")


def _roc_figure(rocs: dict[str, Roc]) -> str:
    floor = min([curve["fpr"][curve["fpr"] > 0].min(initial=1.0) for curve in rocs.values()] + [0.1])
    lines = []
    for place, (target, curve) in enumerate(rocs.items()):
        lines.append(Line(target, curve["fpr"], curve["tpr"], place, steps=True))
        if "pixel_tpr" in curve and "pixel_fpr" in curve:
            lines.append(Line(f"{target}, comparing pixels", curve["pixel_fpr"], curve["pixel_tpr"],
                              place + len(rocs), steps=True))
    about = "ROC curves. " + " ".join(
        f"{target}: TAR {_tar(curve, 1e-2):.3f} at FAR 0.01, {_tar(curve, 0.1):.3f} at FAR 0.1." for target, curve in
        rocs.items())
    return figure("ROC curve of the last verification",
                  chart(lines, about, "false accept rate", "true accept rate", x_axis=Axis(floor, 1, log=True),
                        y_axis=Axis(0, 1.02)), [(line.name, line.look) for line in lines])


def _histogram(target: str, found: Roc) -> str:
    """A histogram of the distances of pairs of one identity and of two."""
    distances, issame, threshold = found["distances"], found["issame"], float(found["threshold"][0])
    bins = np.linspace(0, max(float(distances.max(initial=0)), 1e-6), 61)
    lines = []
    for place, (same, name) in enumerate(((True, "one identity"), (False, "two identities"))):
        counts = np.histogram(distances[issame == same], bins)[0]
        heights = np.concatenate([[0.0], np.repeat(counts, 2), [0.0]])
        lines.append(Line(name, np.repeat(bins, 2), heights, place, area=True))
    means = [f"{name}: mean {number(float(distances[issame == same].mean()))}." for same, name in
             ((True, "one identity"), (False, "two identities")) if (issame == same).any()]
    drawing = chart(lines, f"Squared distances of {target}. {' '.join(means)} Threshold {threshold:.2f}.",
                    "squared distance", "pairs", from_zero=True, marks=[(threshold, "threshold")])
    return figure(f"Scores of {target}, last verification", drawing, [(line.name, line.look) for line in lines])


def _training_charts(history: History) -> list[str]:
    figures = []
    train = history["train"]
    if train:
        steps = _column(train, "step")
        loss = _column(train, "loss")
        middle, mean = smoothed(steps, loss)
        changes = [(before["step"], f"lr {after['lr']:g}") for before, after in zip(train, train[1:])
                   if before["lr"] != after["lr"]]
        marks = changes if len(changes) <= 6 else []  # a rate that falls at every step has a chart of its own
        lines = [Line("loss", steps, loss, faint=True), Line("running mean", middle, mean)] if len(mean) < len(
            loss) else [Line("loss", steps, loss)]
        figures.append(_figure("Loss", lines, "step", from_zero=bool(np.nanmin(loss, initial=0) >= 0), marks=marks))
        for key, title in (("accuracy", "Accuracy on the training batches"), ("lr", "Learning rate"),
                           ("images_per_second", "Throughput, images a second"),
                           ("teacher_distance", "Squared distance from the teacher's embeddings")):
            if any(key in record for record in train):
                line = Line(title, steps, _column(train, key), steps=key == "lr")
                figures.append(_figure(title, [line], "step", from_zero=True))
    if norms := history.get("gradient_norm"):
        lines = [Line(key, _column(norms, "step"), _column(norms, key), place)
                 for place, key in enumerate(("backbone", "centres")) if any(key in record for record in norms)]
        figures.append(_figure("Norm of the gradient", lines, "step"))
    if angles := history.get("angle"):
        line = Line("median, with 5 % and 95 %", _column(angles, "step"), _column(angles, "median"), 0,
                    _column(angles, "p5"), _column(angles, "p95"))
        figures.append(_figure("Angles between features and their centres, degrees", [line], "step"))
    return figures or ["<p>No step logged yet.</p>"]


def _left_out(history: History) -> str:
    """A table of the steps that changed nothing because a number was not finite; empty if there are none."""
    rows = [[str(record["step"]), str(record.get("why", ""))] for record in history.get("left_out", [])]
    content = table("Steps that were left out", ["step", "why"], rows)
    return folded(f"{len(rows)} steps left out", content) if rows else ""


def _column(records: Sequence[Record], key: str) -> np.ndarray:
    """A number of each record, float64 (records,); NaN if a record has none."""
    return np.array([value if isinstance(value := record.get(key), (int, float)) else math.nan for record in records],
                    np.float64)


def _all_verifications(history: History) -> str:
    rows = [[str(record["step"]), str(record["target"]), f"{record['accuracy']:.5f}", f"{record['std']:.5f}",
             f"{record['xnorm']:.3f}" if "xnorm" in record else "-", f"{record['auc']:.5f}" if "auc" in record else "-"]
            for record in history["verification"]]
    return folded(f"Every verification: {len(rows)}", table(
        "Every verification", ["step", "target", "accuracy", "std", "XNorm", "AUC"], rows, numbers=True))


def _configuration(start: Record) -> str:
    """The options that differ from their defaults, then all options."""
    config = start.get("config")
    if not isinstance(config, dict):
        return ""
    defaults = {key: json.loads(json.dumps(item.default)) for key, item in OPTIONS.items()}
    differs = {key: (value or None) != (defaults.get(key) or None) for key, value in config.items()}  # {} equals []
    header = ["option", "value", "default", "meaning"]
    rows = {key: [key, _shown(value), _shown(defaults[key]) if key in defaults else "none",
                  OPTIONS[key].metadata["help"] if key in OPTIONS else ""] for key, value in config.items()}
    return section("Configuration", table("Options that differ from their defaults", header,
                                          [row for key, row in rows.items() if differs[key]]),
                   folded("All options", table("All options; those that differ stand out", header, list(rows.values()),
                                               marked=list(differs.values()))))


def _shown(value: Any) -> str:
    return value or "empty" if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _where(starts: Sequence[Record]) -> str:
    """Command, code, machine and versions of the last start, and a line for each start."""
    last = starts[-1]
    words = last.get("command")
    rows = [["command", shlex.join(map(str, words)) if isinstance(words, list) else ""],
            ["git revision of the code", str(last.get("revision") or "not known")],
            ["processes", str(last.get("processes", ""))]]
    for part in ("machine", "versions"):
        found = last.get(part)
        rows += [[str(key), str(value)] for key, value in (found.items() if isinstance(found, dict) else ())]
    content = table("The last start", ["what", "value"], rows)
    if len(starts) > 1:
        each = []
        for start in starts:
            end = start.get("end")
            end = end if isinstance(end, dict) else {}
            each.append([str(start.get("time", "")), str(start.get("step", "")),
                         f"step {end['step']}, status {end['status']}" if {"step", "status"} <= end.keys() else
                         "not noted", str(start.get("revision", ""))[:12]])
        content += folded(f"All {len(starts)} starts", table(
            "Starts of this run", ["time", "after step", "end", "revision"], each))
    return section("Command, code and machine", content)
