# SPDX-License-Identifier: Apache-2.0
"""Whole runs with AdamW, warm-up and schedules that fall to the end of the run."""
from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest

from recognition.training.states.state import SavedState, saved_states

Train = Callable[..., "tuple[int, str, str]"]
ADAMW = ["--optimizer", "adamw", "--lr", "0.002", "--wd", "0.05"]


def arrays_of(state: SavedState) -> dict[str, np.ndarray]:
    backbone, found = state.backbone(), dict(state.rows(0, 11, 1)._asdict())
    for kind in ("parameters", "momentum", "second_moment", "updates"):
        found.update({f"{kind} {name}": array for name, array in getattr(backbone, kind).items()})
    return found


def history(folder: Path) -> list[dict[str, Any]]:
    return [record for record in map(json.loads, (folder / "history.jsonl").open()) if record["kind"] == "train"]


def test_a_run_goes_on_to_the_same_bits_with_adamw_alone(train: Train, tmp_path: Path) -> None:
    """Two devices, sampled centres; a polynomial after warm-up, both counted in epochs, of 8 batches here."""
    flags = [*ADAMW, "--lr-schedule", "polynomial", "--warmup", "0.25e", "--end-epoch", "1", "--devices", "cpu:2",
             "--per-batch-size", "4", "--verbose", "100", "--state-every", "5", "--val-targets", "none",
             "--sample-ratio", "0.5"]
    status, _, err = train("x", *flags)
    assert status == 0, err
    folder = tmp_path / "x" / "tiny-arcface-tiny"
    assert [record["lr"] for record in history(folder)] == pytest.approx([0.002, 0.002 * (4 / 6) ** 2, 0.002 * 4 / 36])
    middle, last = saved_states(folder / "state")
    whole = arrays_of(SavedState(last))
    assert (SavedState(middle).progress.step, SavedState(last).progress.step) == (5, 8)
    assert {int(whole[name]) for name in whole if name.startswith("updates ")} == {8}
    assert whole["second_moment"].shape == whole["centres"].shape and whole["second_moment"].any()
    shutil.rmtree(last)
    status, out, err = train("x", *flags, "--resume")
    assert status == 0 and "going on after step 5" in out, err
    again = arrays_of(SavedState(saved_states(folder / "state")[-1]))
    assert [name for name in whole if whole[name].tobytes() != again[name].tobytes()] == []

    status, _, err = train("x", *flags, "--optimizer", "sgd", "--resume")
    assert status == 2 and "was saved with optimizer 'adamw', this run has 'sgd'" in err
    assert len(err.strip().splitlines()) == 1


def test_a_state_of_before_adamw_goes_on_with_sgd(train: Train, tmp_path: Path) -> None:
    flags = ["--per-batch-size", "8", "--verbose", "100", "--val-targets", "none"]
    assert train("x", *flags, "--max-steps", "1")[0] == 0
    (state,) = saved_states(tmp_path / "x" / "tiny-arcface-tiny" / "state")
    manifest = json.loads((state / "manifest.json").read_text())
    for key in ("files", "sha256", "best_step", "best_number"):
        del manifest[key]
    manifest["format"] = 1  # it was before checksums
    del manifest["identity"]["optimizer"]
    for key in ("optimizer", "lr_schedule", "lr_power", "warmup", "adam_beta1", "adam_beta2", "adam_eps"):
        del manifest["config"][key]
    (state / "manifest.json").write_text(json.dumps(manifest))
    status, out, err = train("x", *flags, "--max-steps", "2", "--resume")
    assert status == 0 and "going on after step 1" in out, err


def test_the_demo_network_learns(train: Train, tmp_path: Path) -> None:
    """The set has 11 identities of 6 images: chance is a loss of 2.4."""
    status, _, err = train("x", *ADAMW, "--network", "demo", "--lr-schedule", "cosine", "--warmup", "5",
                           "--max-steps", "40", "--per-batch-size", "11", "--val-targets", "none", "--ckpt", "0",
                           loss="softmax")
    assert status == 0, err
    first, *_, last = history(tmp_path / "x" / "demo-softmax-tiny")
    assert first["loss"] > 2 and first["accuracy"] < 0.3  # 0.09 is chance
    assert last["loss"] < 1.3 and last["accuracy"] > 0.8
