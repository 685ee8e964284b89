# SPDX-License-Identifier: Apache-2.0
"""The moving average of the weights (``ema``): its numbers against float64 NumPy, states, verification, checkpoints."""
from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest

from recognition.config.options import Config
from recognition.engines.replicas import mean
from recognition.networks import sym
from recognition.networks.initialise import initialise
from recognition.processes.communicator import SingleProcess
from recognition.training.checkpoints.pretrained import read_params
from recognition.training.run import train
from recognition.training.states.state import SavedState, saved_states

SHAPE, DIM, BATCH, DECAY = (3, 16, 16), 6, 4, 0.3
SMALL: dict[str, Any] = {"net_name": "fmobilefacenet", "net_output": "E", "net_multiplier": 0.25,
                         "net_blocks": [1, 1, 1, 1], "loss_m2": 0.1, "per_batch_size": 6, "ema": 0.9}


def backbone_of(replicated: Callable[..., Any], devices: int, **options: Any) -> Any:
    x = sym.Convolution((sym.Variable("data") - 127.5) / 128, num_filter=5, kernel=(3, 3), stride=(2, 2), name="conv0")
    x = sym.BatchNorm(x, fix_gamma=False, momentum=0.9, eps=2e-5, name="bn0")
    graph = sym.FullyConnected(x, num_hidden=DIM, name="fc1").graph()
    return replicated(graph, *initialise(graph, SHAPE, 1), devices, BATCH // devices, SHAPE, SingleProcess(),
                      **{"mu": 0.9, "wd": 5e-4, "ema": DECAY, **options})


def step(backbone: Any, number: int) -> None:
    random = np.random.RandomState(number)
    backbone.forward(random.randint(0, 256, (BATCH, *SHAPE)).astype(np.uint8))
    backbone.backward(random.standard_normal((BATCH, DIM)).astype(np.float32))
    assert backbone.finite()
    backbone.step(0.1)


@pytest.mark.parametrize("devices", [1, 2])
def test_the_average_is_that_of_float64(replicated: Callable[..., Any], devices: int) -> None:
    """Five steps, of which one is left out. Tolerance 1e-6 of the largest number: float32 in each step."""
    backbone = backbone_of(replicated, devices, leaves_out=True)

    def values() -> list[dict[str, np.ndarray]]:
        state = backbone.state()
        return [{name: array.astype(np.float64) for name, array in group.items()}
                for group in (state.parameters, *state.auxiliary)]

    wanted = values()
    for number in range(1, 6):
        if number == 3:
            backbone.forward(np.zeros((BATCH, *SHAPE), np.uint8))
            backbone.leave_out()
            continue
        step(backbone, number)
        decay = min(DECAY, (1 + number) / (10 + number))
        assert (decay == DECAY) == (number > 2)
        wanted = [{name: decay * old[name] + (1 - decay) * array for name, array in new.items()}
                  for old, new in zip(wanted, values())]
    state, before = backbone.state(), values()
    for found, group in zip((state.average, *state.average_auxiliary), wanted):
        assert found.keys() == group.keys()
        for name, array in group.items():
            np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-6 * np.abs(array).max(), err_msg=name)

    with backbone.averaged():
        parameters, auxiliary = backbone.parameters()
        images = np.random.RandomState(9).randint(0, 256, (3, *SHAPE)).astype(np.uint8)
        features = backbone.embed(images)
    assert all(np.array_equal(parameters[name], state.average[name]) for name in parameters)
    wanted_auxiliary = mean(state.average_auxiliary)
    assert all(np.array_equal(auxiliary[name], wanted_auxiliary[name]) for name in auxiliary)
    assert all(np.array_equal(old[name], new[name]) for old, new in zip(before, values()) for name in old)
    plain = backbone_of(replicated, 1, ema=0.0)
    plain.load(state._replace(parameters=parameters, auxiliary=[auxiliary]), 5)
    wanted_features = plain.embed(images)
    np.testing.assert_allclose(features, wanted_features, rtol=0, atol=1e-6 * np.abs(wanted_features).max())


def test_other_replicas_take_the_mean_and_a_state_without_begins_anew(replicated: Callable[..., Any]) -> None:
    two, one, without = backbone_of(replicated, 2), backbone_of(replicated, 1), backbone_of(replicated, 1, ema=0.0)
    for number in range(3):
        step(two, number)
    state = two.state()
    one.load(state, 3)
    found, wanted = one.state(), mean(state.average_auxiliary)
    assert all(np.array_equal(found.average[name], state.average[name]) for name in state.average)
    assert all(np.array_equal(found.average_auxiliary[0][name], wanted[name]) for name in wanted)
    without.load(state, 3)
    assert without.state().average is None
    one.load(without.state(), 3)
    assert all(np.array_equal(one.state().average[name], array) for name, array in state.parameters.items())


def arrays(config: Config) -> dict[str, np.ndarray]:
    backbone = SavedState(saved_states(Path(config.output_dir) / "state")[-1]).backbone()
    groups = [backbone.parameters, backbone.momentum, *backbone.auxiliary, backbone.average or {},
              *(backbone.average_auxiliary or ())]
    return {f"{place} {name}": array for place, group in enumerate(groups) for name, array in group.items()}


@pytest.mark.parametrize("entry", ["train_parall", pytest.param("train", marks=pytest.mark.slow)])
def test_a_run_goes_on_to_the_same_bits(engine: str, gone_on: Callable[..., tuple[Config, Config]], entry: str) -> None:
    options = {**SMALL, "entry": entry, "devices": "cpu:2", "per_batch_size": 3, "state_every": 2}
    found, wanted = map(arrays, gone_on(**options))
    assert found.keys() == wanted.keys() and any(name.startswith("4 ") for name in wanted)
    assert [name for name in wanted if wanted[name].tobytes() != found[name].tobytes()] == []


def test_it_is_verified_and_saved_beside(engine: str, make: Callable[..., Config], tmp_path: Path,
                                         capsys: pytest.CaptureFixture[str]) -> None:
    """The run itself is not another one: its parameters are those of a run without, to the bit."""
    options = {**SMALL, "verbose": 1, "val_targets": "tiny", "ckpt": 2, "keep_ckpt": 1, "state_every": 5}
    config, plain = make(**options), make(**{**options, "ema": 0.0, "models_root": str(tmp_path / "plain")})
    assert train(config) == 0
    out = capsys.readouterr().out
    assert train(plain) == 0
    folder = Path(config.output_dir)
    found = re.findall(r"\[(tiny|tiny-ema)\]\[(\d)\]Accuracy-Flip", out)
    assert found == [(name, str(number)) for number in (1, 2, 3) for name in ("tiny", "tiny-ema")]
    assert (folder / "roc-tiny-ema.npz").exists() and (folder / "ema-symbol.json").exists()
    numbers = [path.name[-11:] for path in sorted(folder.glob("model-*.params"))]
    assert [path.name[-11:] for path in sorted(folder.glob("ema-*.params"))] == numbers
    average = SavedState(saved_states(folder / "state")[-1]).backbone().average
    assert average is not None
    saved, _ = read_params(folder / "ema-0000.params")
    assert all(np.array_equal(saved[name], array) for name, array in average.items())
    ours, theirs = (Path(c.output_dir, "model-0000.params").read_bytes() for c in (config, plain))
    assert ours == theirs and not list(Path(plain.output_dir).glob("ema*"))
