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
    done = subprocess.run([sys.executable, "-m", "faults.chaos", *arguments, "--folder", str(folder)], cwd=ROOT,
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
    done = subprocess.run([sys.executable, "-m", "faults.chaos", "kills", "--kills", "1", "--steps", "6", "--folder",
                           str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1 and re.search(r"BROKEN: .*kept 0 of 1 times.*: model-0000\.params", done.stdout)


MUTANTS = {
    # A state has its name before its manifest, for the time of the first argument.
    "renamed early": """
from recognition.training.states import save as save_state
manifest, commit, late, gap = save_state.save_manifest, save_state._commit, [], float(sys.argv.pop(1))
save_state.save_manifest = lambda folder, *rest: late.append(rest)

def early(temporary, target):
    commit(temporary, target)
    time.sleep(gap)
    manifest(target, *late.pop())

save_state._commit = early
""",
    # States are passed over without a word, and a run ends with the bits that it should end with.
    "begun anew": """
from recognition.training import run
run.find_state, run.set_aside = lambda *_: None, lambda _: ""
""",
    # What a run starts outlives it, in a session of its own or as a fork.
    "left program": """
train = train_parall.main
train_parall.main = lambda: (subprocess.Popen(["sleep", "40"], start_new_session=True), train())[1]
""",
    "left fork": """
train = train_parall.main
train_parall.main = lambda: train() if os.fork() else time.sleep(40)
""",
}
BEGIN = "import os, subprocess, sys, time\nimport train_parall\nfrom faults.chaos import main\n"


@pytest.mark.slow
@pytest.mark.parametrize("mutant, gap, kills, words", [
    ("renamed early", ["0.01"], 40, r"files \['state/step-\d+\.damaged/|went on from step|no state before it is whole"),
    ("begun anew", [], 6, r"went on from step 0, but there was a state of step \d"),
    ("left program", [], 2, r"left processes \['\d+ sleep 40"), ("left fork", [], 2, r"left processes \['\d+ ")])
def test_a_trainer_that_breaks_its_promise_is_caught(tmp_path: Path, mutant: str, gap: list[str], kills: int,
                                                     words: str) -> None:
    """The odds of missing the first: a state takes about 10 ms until its name, and kills are spread over twice that, so
    of those aimed at states, 0.45 of all, about four in ten come within the gap of 10 ms (5 of 30 when it was counted):
    (1 - 0.17) ** 40 = 0.0006. The others are caught whenever a run ends."""
    done = subprocess.run([sys.executable, "-c", BEGIN + MUTANTS[mutant] + "sys.exit(main())", *gap, "kills", "--kills",
                           str(kills), "--steps", "24", "--folder", str(tmp_path)], cwd=ROOT, capture_output=True,
                          text=True, timeout=600)
    assert done.returncode == 1 and re.search(f"BROKEN: .*({words})", done.stdout), done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["processes", "disk", "handles", "clock", "damage"])
def test_other_faults(tmp_path: Path, horovod: None, fault: str) -> None:
    assert chaos(tmp_path, fault, "--kills", "2", "--trials", "2", "--steps", "24").count("kept: ") >= 1
