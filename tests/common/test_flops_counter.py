# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np

from common.flops_counter import main
from recognition.io.params import read_arrays

SAMPLE = str(Path(__file__).resolve().parents[2] / "sample_config.py")


def test_a_checkpoint_and_a_preset(small_model, tmp_path, capsys):
    report = tmp_path / "table.json"
    flags = ["--config", SAMPLE, "--batch-size", "1", "3", "--repeats", "1", "--json", str(report)]
    assert main(["--network", "demo", "--model", str(small_model), *flags]) == 0
    preset, checkpoint = json.loads(report.read_text())
    assert (preset["network"], preset["embedding"], checkpoint["embedding"]) == ("demo", 128, 64)
    arrays = read_arrays(Path(f"{small_model}-0001.params")).arrays
    assert checkpoint["bytes"] == 4 * sum(np.asarray(array).size for array in arrays)
    assert 0 < checkpoint["flops"] < checkpoint["operations"]
    assert sorted(checkpoint["milliseconds"]) == ["1", "3"]
    assert np.all(np.array(list(checkpoint["milliseconds"].values())) > 0)
    assert "ms, batch 3" in capsys.readouterr().out


def test_all_presets_in_one_table_with_every_operator_counted(capsys):
    assert main(["--network", "all", "--config", SAMPLE, "--no-latency"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(runpy.run_path(SAMPLE)["network"])
    assert "not counted" not in "".join(lines)


def test_the_published_figures_of_r50_and_mistakes(tmp_path, capsys):
    """r50 of the recipes: 43.6 million parameters; 6.3 G multiply-adds, counted as 12.6 G."""
    report = tmp_path / "table.json"
    assert main(["--network", "r50", "--config", SAMPLE, "--no-latency", "--json", str(report)]) == 0
    (found,) = json.loads(report.read_text())
    assert round(found["parameters"] / 1e6, 1) == 43.6
    assert round(found["flops"] / 1e9, 1) == 12.6
    assert main(["--no-latency"]) == 2
    assert main(["--network", "r51", "--config", SAMPLE]) == 2
    assert capsys.readouterr().err.count("\n") == 2
