# SPDX-License-Identifier: Apache-2.0
"""Whole triplet runs of both entry points, as users start them."""
from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Callable

from recognition.training.states.state import SavedState, saved_states

Train = Callable[..., tuple[int, str, str]]


def last_state(folder: Path) -> SavedState:
    return SavedState(saved_states(folder / "state")[-1])


def assert_same_end(left: Path, right: Path) -> None:
    """The same checkpoint, momentum, statistics, place in the data and triplets, bit for bit."""
    assert (left / "model-0000.params").read_bytes() == (right / "model-0000.params").read_bytes()
    ours, theirs = last_state(left), last_state(right)
    assert (ours.progress.epoch, ours.progress.offset) == (theirs.progress.epoch, theirs.progress.offset)
    for mine, other in [(ours.backbone().momentum, theirs.backbone().momentum), (ours.data(), theirs.data()),
                        *zip(ours.backbone().auxiliary, theirs.backbone().auxiliary)]:
        assert mine.keys() == other.keys()
        assert all(mine[name].tobytes() == other[name].tobytes() for name in mine)


def test_a_run_stopped_in_a_bag_goes_on_to_the_same_bits(train: Train, tmp_path: Path) -> None:
    """Bags of 20 images, four identities: 40 positive pairs, 6 triplets a batch, so that the run sees several bags."""
    with open(tmp_path / "config.py", "a") as config:
        config.write("loss.triplet.triplet_bag_size = 20\n")
    flags = ["--per-batch-size", "18", "--verbose", "100", "--max-steps"]
    whole, stopped = (tmp_path / name / "tiny-triplet-tiny" for name in ("whole", "stopped"))
    status, out, err = train("whole", *flags, "9", entry="train", loss="triplet")
    assert status == 0, err
    assert re.search(r"^INFO:recognition.data.triplets:bag 0: 20 images of 4 identities, \d+ triplets;", err, re.M)
    line = r"^INFO:root:Epoch\[\d\] Batch \[0-2\]\tSpeed: \d+\.\d\d samples/sec\tacc=\d\.\d{6}\tlossvalue=\d\.\d{6}$"
    assert re.search(line, err, re.M)
    assert "[tiny][9]Accuracy-Flip: " in out
    assert last_state(whole).progress.epoch > 0

    assert train("stopped", *flags, "2", entry="train", loss="triplet")[0] == 0
    assert last_state(stopped).progress.offset == 36
    assert train("stopped", *flags, "9", "--resume", entry="train", loss="triplet")[0] == 0
    assert_same_end(stopped, whole)


def test_a_killed_run_goes_on_to_the_same_bits(train_apart: Train, start: Callable[..., subprocess.Popen],
                                               tmp_path: Path) -> None:
    """SIGKILL once a state is there; a bag holds the whole set, so that every state lies in the middle of one."""
    flags = ["--devices", "cpu:2", "--per-batch-size", "6", "--max-steps", "10", "--verbose", "99",
             "--state-every", "3"]
    whole, killed = (tmp_path / name / "tiny-atriplet-tiny" for name in ("whole", "killed"))
    assert train_apart("whole", *flags, loss="atriplet")[0] == 0
    process = start("killed", *flags, loss="atriplet")
    while process.poll() is None and not saved_states(killed / "state"):
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert len(last_state(killed).data()["triplets"])
    status, out, err = train_apart("killed", *flags, "--resume", loss="atriplet")
    assert status == 0, err
    assert "going on after step" in out
    assert_same_end(killed, whole)


def test_fine_tuning_lowers_the_loss(train: Train, tmp_path: Path) -> None:
    """Softmax for three steps, then triplets from its checkpoint, as the recipes do; the set cannot fill a bag."""
    flags = ["--verbose", "100", "--per-batch-size", "12"]
    assert train("first", *flags, "--max-steps", "3", entry="train", loss="softmax")[0] == 0
    status, _, err = train("tuned", *flags, "--max-steps", "24", "--lr", "0.05", "--pretrained",
                           f"{tmp_path}/first/tiny-softmax-tiny/model,0", entry="train", loss="triplet")
    assert status == 0, err
    assert "bags of 55 images, 5 of each identity at most, instead of triplet_bag_size 7200" in err
    history = (tmp_path / "tuned" / "tiny-triplet-tiny" / "history.jsonl").read_text()
    losses = [record["loss"] for record in map(json.loads, history.splitlines()) if record["kind"] == "train"]
    assert sum(losses[-5:]) / 5 < sum(losses[:2]) / 2


def test_bad_input_ends_in_one_line_and_status_2(train: Train) -> None:
    status, _, err = train("bad", "--per-batch-size", "8", loss="triplet")
    assert (status, len(err.strip().splitlines())) == (2, 1)
    assert "per_batch_size: found 8, expected a multiple of 3" in err
    status, _, err = train("bad", "--per-batch-size", "6", "--freeze", "*", loss="triplet")
    assert (status, len(err.strip().splitlines())) == (2, 1)
    assert err.startswith("error: freeze, lr_factor: found that no parameter would ever move")
