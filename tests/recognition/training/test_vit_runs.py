# SPDX-License-Identifier: Apache-2.0
"""Runs of a vision transformer with masked patches and left-out blocks, on both engines."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from common.export_onnx import main as export_onnx
from recognition.config.options import Config
from recognition.evaluation.trained_backbone import load_backbone
from recognition.io.params import read_arrays
from recognition.training.run import train

VIT = {"net_name": "vit", "num_layers": 2, "net_multiplier": 32 / 512, "net_drop_path": 0.5, "net_mask_ratio": 0.1,
       "emb_size": 32, "optimizer": "adamw", "lr": 1e-3}


def arrays(config: Config) -> dict[str, np.ndarray]:
    file = read_arrays(Path(f"{config.prefix}-0001.params"))
    return {name: np.asarray(array) for name, array in zip(file.names, file.arrays)}


@pytest.mark.usefixtures("engine")
def test_what_is_left_out_is_a_function_of_the_seed_also_after_a_stop(
        make: Callable[..., Config], tmp_path: Path, engine: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that stops and goes on, and one with memonger, end with the bits of one that runs through. The checkpoint
    is exported to ONNX, and its check there holds."""
    def run(name: str, **options: object) -> Config:
        config = make(models_root=str(tmp_path / name), **{**VIT, "max_steps": 6, **options})
        assert train(config) == 0
        return config

    through = run("through", count_flops=True)
    assert "with all operators; " in capsys.readouterr().out
    run("parts", max_steps=3, state_every=3)
    parts = run("parts", resume="yes", state_every=3)
    for other in (parts, run("memonger", memonger=True)):
        assert all(np.array_equal(array, arrays(other)[name]) for name, array in arrays(through).items())
    images = np.random.default_rng(0).integers(0, 256, (3, 112, 112, 3), np.uint8)
    found = load_backbone(through.prefix, through.devices, engine=engine).embed(images)
    assert found.shape == (3, 32) and np.isfinite(found).all()
    pytest.importorskip("onnxruntime")
    assert export_onnx(["--model", f"{through.prefix},1", "--output", str(tmp_path / "vit.onnx")]) == 0
