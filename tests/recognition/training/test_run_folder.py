# SPDX-License-Identifier: Apache-2.0
"""One run alone writes to a folder; its output may go away."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable

import pytest

from recognition.errors import UserError
from recognition.training.run_folder import sole_writer
from recognition.training.watch.lasting_output import LastingOutput

HOLD = """
import sys, time
from pathlib import Path
from recognition.training.run_folder import sole_writer
with sole_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_is_held_until_its_holder_ends_however_it_does(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f" {tmp_path} is written to by another run, process {holder.pid}, expected"), \
            sole_writer(tmp_path):
        pass
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with sole_writer(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def wait_for(path: Path) -> None:
    end = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < end, f"no {path}"
        time.sleep(0.02)


def test_a_second_run_is_refused_and_harms_nothing(start: Callable[..., subprocess.Popen], tmp_path: Path) -> None:
    first = start("once", "--max-steps", "100000", "--state-every", "2", "--per-batch-size", "6")
    folder = tmp_path / "once" / "tiny-arcface-tiny"
    wait_for(folder / "state" / "step-000000002")
    second = start("once", "--max-steps", "4", "--per-batch-size", "6")
    _, err = second.communicate()
    assert second.returncode == 2
    assert f"is written to by another run, process {first.pid}, expected a folder of this run's own" in err
    assert err.count("\n") == 1 and not (folder / "state.1").exists()
    first.send_signal(signal.SIGTERM)
    first.communicate()
    assert first.returncode == 143


def test_a_run_outlives_the_reader_of_its_output(start: Callable[..., subprocess.Popen], tmp_path: Path) -> None:
    run = start("alone", "--max-steps", "30", "--frequent", "1", "--per-batch-size", "6")
    assert run.stdout is not None and run.stderr is not None
    run.stdout.readline()
    run.stdout.close()
    err = run.stderr.read()
    assert run.wait() == 0
    assert err.count("standard output cannot be written to any more: Broken pipe; the run goes on without") == 1
    assert "Traceback" not in err and "BrokenPipeError" not in err
    history = (tmp_path / "alone" / "tiny-arcface-tiny" / "history.jsonl").read_text().splitlines()
    assert json.loads(history[-1])["step"] == 30


def test_a_full_disk_under_the_output(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    with open("/dev/full", "w") as full:
        output = LastingOutput(full)
        for _ in range(3):
            print("a line", file=output, flush=True)
    assert [record.getMessage() for record in caplog.records] == [
        "standard output cannot be written to any more: No space left on device; the run goes on without"]
