# SPDX-License-Identifier: Apache-2.0
"""Runs with margins that depend on the image: they go on to the same bits, and their statistics are part of a state."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest

from recognition.config.options import Config
from recognition.training.states.state import SavedState, saved_states

SMALL: dict[str, Any] = {"net_name": "fmobilefacenet", "net_output": "E", "net_multiplier": 0.25,
                         "net_blocks": [1, 1, 1, 1], "per_batch_size": 6, "state_every": 2}


def last(config: Config) -> SavedState:
    return SavedState(saved_states(Path(config.output_dir) / "state")[-1])


@pytest.mark.parametrize("options", [
    {"loss_margin": "adaface", "loss_m2": 0.4, "adaface_share": 0.3, "devices": "cpu:2", "per_batch_size": 3},
    {"loss_margin": "elastic", "elastic_sorted": True, "sample_ratio": 0.5}], ids=["adaface", "elastic"])
def test_a_run_goes_on_to_the_same_bits(engine: str, gone_on: Callable[..., tuple[Config, Config]],
                                        options: dict[str, Any]) -> None:
    options = {**SMALL, **options}
    found, wanted = map(last, gone_on(**options))
    assert found.progress.margin == wanted.progress.margin
    assert len(wanted.progress.margin) == (2 if options["loss_margin"] == "adaface" else 0)
    named = "margin" in json.loads((wanted.path / "manifest.json").read_text())
    assert named == bool(wanted.progress.margin)  # earlier versions read a state without
    for name in ("centres-0.npy", "momentum-0.npy"):
        assert (found.path / name).read_bytes() == (wanted.path / name).read_bytes()
    ours, theirs = (state.backbone().parameters for state in (found, wanted))
    assert all(np.array_equal(ours[name], array) for name, array in theirs.items())
