# SPDX-License-Identifier: Apache-2.0
"""The bench of sampled steps, small: it runs, and its table is whole."""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench.accuracy.sixteen_bits import print_row
from bench.sampled import main


def test_samples_drawn_in_a_step_and_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["draw", "--classes", "3000", "--dim", "16", "--repeats", "2", "--json", str(tmp_path / "r")]) == 0
    assert capsys.readouterr().out.startswith("3,000 classes x 16, ratio 0.1, B = 64: the draw alone ")
    assert json.loads((tmp_path / "r").read_text())["draw beside the step"] > 0


@pytest.mark.parametrize("numbers", ["float32", pytest.param("bfloat16", id="torch")])
def test_class_centres_on_a_disk(numbers: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if numbers == "bfloat16":
        pytest.importorskip("torch")
    assert main(["disk", "--classes", "3000", "--dim", "16", "--repeats", "1", "--numbers", numbers, "--folder",
                 str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith(f"3,000 classes x 16 in {numbers}: ")
    assert [line[:12].strip() for line in lines[3:8]] == ["resident", "on demand", "read", "read ahead", "write back"]
    assert not list(tmp_path.iterdir())


def test_rows_of_one_run_and_of_several(capsys: pytest.CaptureFixture[str]) -> None:
    print_row("one", np.array([2.0, 1.0]), np.array([0.5, 0.75]))
    print_row("both", np.array([[2.0, 1.0], [4.0, 1.0]]), np.array([[0.5, 0.75], [0.5, 0.85]]))
    assert capsys.readouterr().out.splitlines() == [
        "| one | 2.00, 1.00 | 0.500, 0.750 |",
        "| both | 3.00 ± 1.41, 1.00 ± 0.00 | 0.500 ± 0.000, 0.800 ± 0.071 |"]
