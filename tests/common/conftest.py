# SPDX-License-Identifier: Apache-2.0
"""A small checkpoint whose embeddings tell images apart, and real photographs."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from common.image_files import read_image
from recognition.mxnet_compat import mx
from recognition.symbol import fmobilefacenet
from recognition.symbol.initialise import initialise
from recognition.training.checkpoint import save_checkpoint

IMAGE = (3, 112, 112)


def smooth_noise(count: int, seed: int = 0) -> np.ndarray:
    """Smooth coloured images, uint8 (count, 112, 112, 3)."""
    random = np.random.RandomState(seed)
    return np.stack([cv2.resize(random.randint(0, 256, (7, 7, 3)).astype(np.uint8), (112, 112)) for _ in range(count)])


def lively(symbol: mx.sym.Symbol, seed: int = 0) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Values of a network whose embeddings tell images apart, and whose batch norms are not what they start from.

    Their moving statistics are those of six images, if the symbol's ``bn_mom`` is 0.
    """
    arguments, auxiliary = initialise(symbol, IMAGE, seed)
    random = np.random.default_rng(seed)
    for name, value in arguments.items():
        if name.endswith("gamma"):
            value[...] = random.uniform(0.6, 1.4, value.shape) * (0.25 if "relu" in name else 1)
        elif name.endswith(("beta", "bias")):
            value[...] = random.normal(0, 0.2, value.shape)
    images = mx.nd.array(smooth_noise(6, seed + 1).transpose(0, 3, 1, 2))
    bound = symbol.simple_bind(mx.cpu(), grad_req="write", data=images.shape)
    bound.copy_params_from({"data": images, **{name: mx.nd.array(value) for name, value in arguments.items()}},
                           {name: mx.nd.array(value) for name, value in auxiliary.items()})
    bound.backward([mx.nd.zeros_like(bound.forward(is_train=True)[0])])  # MXNet moves them in the backward pass
    mx.nd.waitall()
    return arguments, {name: value.asnumpy() for name, value in bound.aux_dict.items()}


@pytest.fixture(scope="session")
def save_network() -> Callable[..., Path]:
    """``save_network(folder, symbol)``: a checkpoint of it, number 1, with lively values; returns its prefix."""

    def save(folder: Path, symbol: mx.sym.Symbol, seed: int = 0) -> Path:
        save_checkpoint(folder / "model", 1, symbol, *lively(symbol, seed))
        return folder / "model"

    return save


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory, save_network: Callable[..., Path]) -> Path:
    """Prefix of the checkpoint, number 1, of a MobileFaceNet of 64 numbers with a quarter of the channels."""
    symbol = fmobilefacenet.get_symbol(emb_size=64, net_multiplier=0.25, net_blocks=[1, 1, 1, 1], net_output="GDC",
                                       bn_mom=0.0)
    return save_network(tmp_path_factory.mktemp("small"), symbol)


@pytest.fixture(scope="session")
def faces(shared: Path) -> np.ndarray:
    """Ten aligned photographs, uint8 (10, 112, 112, 3) RGB."""
    return np.stack([read_image(path)[1] for path in sorted((shared / "data" / "wild").glob("*.jpg"))])


@pytest.fixture
def noise() -> np.ndarray:
    """Seven smooth coloured images, uint8 (7, 112, 112, 3)."""
    return smooth_noise(7)
