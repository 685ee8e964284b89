# SPDX-License-Identifier: Apache-2.0
"""Clipping by norm (``clip_norm``) against float64 NumPy."""
from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest

from recognition.config.options import Config
from recognition.networks import sym
from recognition.networks.initialise import initialise
from recognition.optim.adamw import AdamW
from recognition.optim.factors import LearningRateFactors
from recognition.optim.loss_scale import LossScale
from recognition.processes.communicator import SingleProcess
from recognition.training.run import train

SHAPE, DIM, BATCH = (3, 16, 16), 6, 8


def after_a_step(replicated: Callable[..., Any], devices: int = 1, **options: Any) -> tuple[dict[str, np.ndarray], ...]:
    """Parameters before and after a step at the rate 0.5, and the gradients without a loss scale, float64."""
    x = sym.Convolution((sym.Variable("data") - 127.5) / 128, num_filter=5, kernel=(3, 3), stride=(2, 2), name="conv0")
    graph = sym.FullyConnected(x, num_hidden=DIM, name="fc1").graph()
    backbone = replicated(graph, *initialise(graph, SHAPE, 1), devices, BATCH // devices, SHAPE, SingleProcess(),
                          **{"mu": 0.9, "wd": 0.0, **options})
    random = np.random.RandomState(0)
    backbone.forward(random.randint(0, 256, (BATCH, *SHAPE)).astype(np.uint8))
    backbone.backward(random.standard_normal((BATCH, DIM)).astype(np.float32))
    assert backbone.finite()
    gradients = backbone.to_host(backbone.replicas[0].gradients)
    before = backbone.state().parameters
    backbone.step(0.5)
    scale = options["loss_scale"].value if options.get("loss_scale") else 1.0
    return before, backbone.state().parameters, {name: g.astype(np.float64) / scale for name, g in gradients.items()}


def norm(arrays: dict[str, np.ndarray]) -> float:
    return float(np.sqrt(sum(np.square(array).sum() for array in arrays.values())))


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("share", [0.25, 4.0], ids=["longer", "shorter"])
@pytest.mark.parametrize("scale", [0, 1024], ids=["plain", "loss scale"])
def test_a_gradient_that_is_longer_is_made_as_long(replicated: Callable[..., Any], devices: int, share: float,
                                                   scale: int) -> None:
    """SGD's first step is ``-lr g``. Tolerance 1e-6 of the largest parameter: it is stored in float32."""
    longest = share * norm(after_a_step(replicated)[2])
    before, after, gradients = after_a_step(replicated, devices, clip_norm=longest,
                                            loss_scale=LossScale(scale) if scale else None)
    factor = min(1.0, longest / norm(gradients))
    assert factor == pytest.approx(min(1.0, share), rel=1e-5)
    for name, array in before.items():
        wanted = array.astype(np.float64) - 0.5 * factor * gradients[name]
        np.testing.assert_allclose(after[name], wanted, rtol=0, atol=1e-6 * np.abs(wanted).max(), err_msg=name)


def test_parameters_that_do_not_move_do_not_count(replicated: Callable[..., Any]) -> None:
    rates = partial(LearningRateFactors, freeze=("fc1*",))
    before, after, gradients = after_a_step(replicated, clip_norm=0.125, factors=rates)
    moved = {name: (before[name].astype(np.float64) - after[name]) / 0.5 for name in before}
    assert norm({name: gradients[name] for name in gradients if name.startswith("conv")}) > 0.125
    assert norm(moved) == pytest.approx(0.125, rel=1e-4)  # differences of float32 numbers that are larger


def test_adamw_gets_the_clipped_gradient(replicated: Callable[..., Any]) -> None:
    """With an epsilon far above the gradients a step is in proportion to them: ``-lr g / eps``."""
    options: dict[str, Any] = {"adamw": AdamW(eps=1e3)}
    before, plain, gradients = after_a_step(replicated, **options)
    _, clipped, _ = after_a_step(replicated, clip_norm=norm(gradients) / 4, **options)
    name = max(before, key=lambda name: np.abs(gradients[name]).max())
    ratio = np.abs(plain[name] - before[name]).max() / np.abs(clipped[name] - before[name]).max()
    assert ratio == pytest.approx(4, rel=0.1)


def test_no_gradient_at_all_stays_none(replicated: Callable[..., Any]) -> None:
    before, after, _ = after_a_step(replicated, clip_norm=1.0, factors=partial(LearningRateFactors, freeze=("*",)))
    assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("entry", ["train_parall", "train"])
def test_a_run_with_a_clipped_gradient(engine: str, make: Callable[..., Config], entry: str, tmp_path: Path) -> None:
    """A norm above all gradients gives the bits of a run without; a tiny one holds the network where it is."""
    def run(name: str, **options: Any) -> tuple[bytes, list[float]]:
        config = make(entry=entry, wd=0.0, frequent=1, models_root=str(tmp_path / name), **options)
        assert train(config) == 0
        folder = Path(config.output_dir)
        records = map(json.loads, (folder / "history.jsonl").read_text().splitlines())
        return (folder / "model-0000.params").read_bytes(), [r["loss"] for r in records if r["kind"] == "train"]

    plain, high, low = run("plain"), run("high", clip_norm=1e9), run("low", clip_norm=1e-9)
    assert plain == high and plain[0] != low[0]
