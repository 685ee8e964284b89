# SPDX-License-Identifier: Apache-2.0
"""The short form of `make chaos`: the same harness, in a process of its own, with few trials."""
from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def chaos(folder: Path, *arguments: str) -> str:
    """What the harness says; every promise has to be kept."""
    done = subprocess.run([sys.executable, "-m", "bench.chaos", *arguments, "--folder", str(folder)], cwd=ROOT,
                          capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and "BROKEN" not in done.stdout, done.stdout + done.stderr
    return done.stdout


def test_killed_at_random_moments_runs_end_with_the_same_bits(tmp_path: Path) -> None:
    said = chaos(tmp_path, "kills", "--kills", "3", "--steps", "24")
    assert "kept: SIGKILL at a random moment, one process | 3 | " in said
    assert int(re.findall(r"(\d+) runs compared", said)[0]) >= 1


@pytest.mark.slow
def test_a_broken_promise_is_said(tmp_path: Path) -> None:
    """The harness itself: what it compares with is made another."""
    chaos(tmp_path, "kills", "--kills", "0", "--steps", "6")
    (tmp_path / "kills" / "undisturbed" / "small-arcface-small" / "model-0000.params").write_bytes(b"another")
    done = subprocess.run([sys.executable, "-m", "bench.chaos", "kills", "--kills", "1", "--steps", "6", "--folder",
                           str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1 and re.search(r"BROKEN: .*kept 0 of 1 times.*: model-0000\.params", done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["processes", "disk", "handles", "clock", "damage"])
def test_other_faults(tmp_path: Path, horovod: None, fault: str) -> None:
    assert chaos(tmp_path, fault, "--kills", "2", "--trials", "2", "--steps", "24").count("kept: ") >= 1
