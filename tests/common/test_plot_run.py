# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib.figure import Figure

from common.plot_run import draw_loss, main


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "demo-arcface-demo"
    folder.mkdir()
    lines = [{"kind": "train", "step": step, "epoch": 0, "loss": 20 / step, "accuracy": 0.1, "images_per_second": 9.0,
              "lr": 0.1 if step < 300 else 0.01} for step in range(20, 501, 20)]
    lines += [{"kind": "verification", "step": step, "target": "demo", "accuracy": 0.7 + step / 2000, "std": 0.01,
               "xnorm": 20.0, "auc": 0.9} for step in (250, 500)]
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rates = np.linspace(0, 1, 50)
    np.savez(folder / "roc-demo.npz", fpr=rates, tpr=rates ** 0.1, thresholds=rates, pixel_fpr=rates, pixel_tpr=rates)
    return folder


def fails(capsys, *arguments) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def panels_with_colour(path) -> list[bool]:
    """Whether each third of the picture holds a curve: text, axes and grid are grey."""
    image = cv2.imread(str(path)).astype(int)
    coloured = image.max(axis=2) - image.min(axis=2) > 60
    return [bool(part.sum() > 200) for part in np.array_split(coloured, 3, axis=1)]


def test_draws_three_panels_and_prints_the_path(run, capsys):
    assert main([str(run)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("demo: accuracy ") and printed[-1] == f"picture: {run / 'run.png'}"
    assert panels_with_colour(run / "run.png") == [True, True, True]
    assert not list(run.glob(".*"))


def test_other_formats(run, tmp_path):
    assert main([str(run), "--output", str(tmp_path / "a.svg")]) == 0
    assert "<svg" in (tmp_path / "a.svg").read_text()


def test_run_that_has_just_begun(run):
    history = run / "history.jsonl"
    history.write_text(history.read_text().splitlines()[0] + '\n{"kind": "tra')  # the second line is cut by a kill
    assert main([str(run)]) == 0
    assert panels_with_colour(run / "run.png")[1:] == [False, False]


def test_diverged_run(run):
    with open(run / "history.jsonl", "a") as file:
        file.write('{"kind": "train", "step": 520, "loss": NaN, "lr": 0.01}\n')
    assert main([str(run)]) == 0


def test_what_cannot_be_drawn(run, capsys):
    assert "ends with .png" in fails(capsys, run, "--output", run / "run.bmp")
    (run / "roc-demo.npz").write_bytes(b"PK\x03\x04 no archive")
    assert "roc-demo.npz" in fails(capsys, run)
    history = run / "history.jsonl"
    history.write_text('{"kind": "train", "step": 1}\n')
    assert "line 1: found" in fails(capsys, run)
    for line in ("[" * 100_000, "[]", '"train"'):
        history.write_text(line + "\n")
        assert "line 1: found" in fails(capsys, run)
    history.write_text("")
    assert "nothing to draw yet" in fails(capsys, run)
    history.unlink()
    assert "history.jsonl: cannot be read" in fails(capsys, run)
    assert not list(run.glob("*.png"))


def test_pickled_arrays_are_refused(run, capsys):
    np.savez(run / "roc-demo.npz", fpr=np.array([{}], object), tpr=np.zeros(1))
    assert "roc-demo.npz" in fails(capsys, run)


@pytest.mark.parametrize("count", [20, 40, 60, 999, 2000])
def test_the_running_mean_of_a_line_lies_on_it(count):
    axes = Figure().subplots()
    draw_loss(axes, [{"step": 20 * i, "loss": 3.0 * i, "lr": 0.1} for i in range(1, count)] +
              [{"step": 20 * count, "loss": 3.0 * count, "lr": 0.1}])
    steps, mean = axes.lines[1].get_data()
    np.testing.assert_allclose(mean, steps * 3 / 20, rtol=1e-12)  # sums of up to 51 numbers in another order
    assert steps[0] - 20 == 20 * count - steps[-1]  # as many points on both sides


def test_the_learning_rate_is_marked_at_the_last_step_before_its_change():
    axes = Figure().subplots()
    draw_loss(axes, [{"step": step, "loss": 1.0, "lr": 0.1 if step < 60 else 0.01} for step in (20, 40, 60, 80)])
    assert list(axes.lines[-1].get_xdata()) == [40, 40]
    assert [(text.get_text(), text.xy[0]) for text in axes.texts] == [("lr 0.01", 40)]


def test_bad_flags_are_one_line(run, capsys):
    assert "unrecognized arguments: --outptu" in fails(capsys, run, "--outptu", "x.png")
