# SPDX-License-Identifier: Apache-2.0
"""The parts of bench.accuracy.image_margins and bench.accuracy.recipes that need no training."""
from __future__ import annotations

import cv2
import numpy as np
import pytest

from bench.accuracy.image_margins import half_worse, make_worse
from bench.accuracy.recipes import RECIPES
from bench.accuracy.runs import cells
from recognition.config.cli import parse_args
from recognition.config.options import Config, option_key


def picture(random: np.random.Generator) -> bytes:
    smooth = cv2.resize(random.integers(0, 256, (28, 28, 3)).astype(np.uint8), (112, 112))
    return bytes(cv2.imencode(".jpg", smooth, [cv2.IMWRITE_JPEG_QUALITY, 95])[1])


def test_a_picture_made_worse_has_its_size_and_fewer_details() -> None:
    image = picture(np.random.default_rng(0))
    worse = make_worse(image, np.random.default_rng(1))
    assert worse == make_worse(image, np.random.default_rng(1)) != make_worse(image, np.random.default_rng(2))
    before, after = (cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) for data in (image, worse))
    assert after.shape == before.shape
    details = [cv2.Laplacian(one, cv2.CV_64F).var() for one in (before, after)]
    assert details[1] < details[0] / 2


def test_half_of_the_pictures_become_worse() -> None:
    random = np.random.default_rng(0)
    images = [picture(random) for _ in range(200)]
    changed = sum(a != b for a, b in zip(images, half_worse(images, random)))
    assert 72 < changed < 128  # four standard deviations around 100


def test_cells_of_one_run_and_of_several() -> None:
    assert cells(np.array([0.5, 1.25]), 2) == "0.50, 1.25"
    assert cells(np.array([[1.0, 2.0], [3.0, 2.0]]), 1) == "2.0 ± 1.4, 2.0 ± 0.0"


@pytest.mark.parametrize("name", RECIPES)
def test_the_flags_of_a_recipe_are_flags(name: str) -> None:
    flags = {key: str(value).replace("right", "demo").replace("FOLDER", "synthetic:9")
             for key, value in {"dataset": "demo", **RECIPES[name]}.items()}
    words = [f"--{key.replace('_', '-')}={value}" for key, value in flags.items()]
    config = parse_args("train_parall", ["--max-steps=100", *words], environ={})
    assert all(getattr(config, option_key(key)) != getattr(Config(), option_key(key)) for key in RECIPES[name])
