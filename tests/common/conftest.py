# SPDX-License-Identifier: Apache-2.0
"""A small checkpoint whose embeddings tell images apart, and real photographs."""
from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from common.image_files import read_image
from recognition.symbol import fmobilefacenet
from recognition.symbol.initialise import initialise
from recognition.training.checkpoint import save_checkpoint

IMAGE = (3, 112, 112)


def lively(symbol, seed: int = 0, shape: tuple[int, int, int] = IMAGE):
    """First values of a network, with batch norms and biases that are not the ones and zeros they start from."""
    arguments, auxiliary = initialise(symbol, shape, seed)
    random = np.random.default_rng(seed)
    for name, value in (*arguments.items(), *auxiliary.items()):
        if name.endswith(("gamma", "moving_var")):
            value[...] = random.uniform(0.6, 1.4, value.shape) * (0.25 if "relu" in name else 1)
        elif name.endswith(("beta", "moving_mean", "bias")):
            value[...] = random.normal(0, 0.2, value.shape)
    return arguments, auxiliary


def save_network(folder: Path, symbol, seed: int = 0) -> Path:
    """A checkpoint of ``symbol`` in ``folder``, number 1; returns its prefix."""
    save_checkpoint(folder / "model", 1, symbol, *lively(symbol, seed))
    return folder / "model"


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prefix of the checkpoint, number 1, of a MobileFaceNet of 64 numbers with a quarter of the channels."""
    symbol = fmobilefacenet.get_symbol(emb_size=64, net_multiplier=0.25, net_blocks=[1, 1, 1, 1], net_output="GDC")
    return save_network(tmp_path_factory.mktemp("small"), symbol)


@pytest.fixture(scope="session")
def faces(shared: Path) -> np.ndarray:
    """Ten aligned photographs, uint8 (10, 112, 112, 3) RGB."""
    return np.stack([read_image(path)[1] for path in sorted((shared / "data" / "wild").glob("*.jpg"))])


@pytest.fixture
def noise() -> np.ndarray:
    """Seven smooth coloured images, uint8 (7, 112, 112, 3)."""
    random = np.random.RandomState(0)
    return np.stack([cv2.resize(random.randint(0, 256, (7, 7, 3)).astype(np.uint8), (112, 112)) for _ in range(7)])
