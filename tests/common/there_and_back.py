# SPDX-License-Identifier: Apache-2.0
"""Weights of a network of arcface_torch's, to a checkpoint of ours and back, whatever network it is."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.convert_torch import main
from recognition.evaluation.trained_backbone import load_backbone
from recognition.networks.torch_weights.of_torch import moments_from_torch, moments_to_torch, parameters_of


def assert_there_and_back(name: str, network: Any, prepared: Callable[[Any], Any], noise: np.ndarray, folder: Path,
                          capsys: pytest.CaptureFixture[str]) -> None:
    """Outputs: 1e-4 of the largest, float32 through some fifty layers; what comes back is what went in.

    :param network: of 24 numbers an embedding; ``prepared``: makes its input of pixels.
    """
    import torch

    torch.save({f"module.{key}": value for key, value in network.state_dict().items()}, folder / "model.pt")
    assert main([str(folder / "model.pt"), f"{folder}/model,1"]) == 0
    assert f"{name}, 24 numbers an embedding" in (said := capsys.readouterr().out) and f"--network {name} " in said
    with torch.no_grad():
        pixels = torch.tensor(noise[:3].transpose(0, 3, 1, 2).astype(np.float32))
        expected = network.eval()(prepared(pixels)).numpy()
    found = load_backbone(f"{folder}/model,1", batch_size=3).embed(noise[:3], flip=False, unit=False)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    assert main([f"{folder}/model,1", str(folder / "back.pt")]) == 0
    assert f": {name}, " in capsys.readouterr().out
    back = torch.load(folder / "back.pt", weights_only=True)
    assert list(back) == list(network.state_dict())
    for key, value in network.state_dict().items():
        assert "num_batches" in key or torch.equal(back[key], value), key
    tensors = {key: value.numpy() for key, value in network.state_dict().items()}
    assert parameters_of(tensors) == [key for key, _ in network.named_parameters()]
    moments = {key: value.detach().numpy() * 2 for key, value in network.named_parameters()}
    there = moments_to_torch(moments_from_torch(moments, tensors, 1), 1)
    assert there.keys() == moments.keys() and all(np.array_equal(there[key], moments[key]) for key in moments)
