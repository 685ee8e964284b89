# SPDX-License-Identifier: Apache-2.0
"""SGD over all parameters in one kernel, in Triton's interpreter, against PyTorch's calls for many tensors: the same
bits.

The interpreter rounds twice in a fused multiply-add, a card once. Here it gets one that adds in float64: of normal
float32 numbers their product is exact there, and rounding the sum twice differs once in 2^29.
"""
from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton", "3.7", reason="Triton 3.7 or newer is not installed")
from triton.runtime import interpreter  # noqa: E402

from recognition.engines.torch.optimisers import SgdOptimiser  # noqa: E402
from recognition.engines.torch.triton import sgd  # noqa: E402
from recognition.optim.factors import LearningRateFactors  # noqa: E402
from tests.recognition.engines.torch.test_backbone import same_bits, steps, torch_backbone  # noqa: E402

CPU = torch.device("cpu")
SHAPES = {"long": (3 * sgd.NUMBERS + 5,), "map": (6, 5, 3, 3), "point": (8, 4, 1, 1), "one": (1,)}


@pytest.fixture
def _rounded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def fma(_: Any, x: Any, y: Any, z: Any) -> Any:
        return interpreter.TensorHandle((x.data.astype(np.float64) * y.data + z.data).astype(np.float32), x.dtype)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_fma", fma)


@pytest.fixture(autouse=True)
def _interpreted() -> None:
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("Triton's interpreter is off")
    sgd.works.cache_clear()


def after_steps(kind: Any, rates: dict[str, float]) -> dict[str, np.ndarray]:
    """Parameters and momentum after three steps, the maps' channels last and their gradients' not."""
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    weights["map"] = weights["map"].to(memory_format=torch.channels_last)
    optimiser = kind(weights, list(SHAPES), 0.9, 5e-4)
    for number in range(3):
        gradients = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
        optimiser(weights, gradients, {name: rate / (number + 1) for name, rate in rates.items()}, 0.37)
    return {**{name: tensor.numpy() for name, tensor in weights.items()},
            **{f"momentum of {name}": tensor.numpy() for name, tensor in optimiser.moments["momentum"].items()}}


@pytest.mark.usefixtures("_rounded_once")
@pytest.mark.parametrize("rates", [dict.fromkeys(SHAPES, 0.1), {"long": 0.1, "map": 0.01, "one": 0.1}],
                         ids=["one rate", "two rates, one frozen"])
def test_the_same_bits_as_from_pytorchs_calls(rates: dict[str, float]) -> None:
    ours, theirs = (after_steps(kind, rates) for kind in (sgd.FusedSgd, SgdOptimiser))
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name].view(np.int32), array.view(np.int32), err_msg=name)


@pytest.mark.usefixtures("_rounded_once")
def test_the_kernel_is_used_where_it_gives_these_bits() -> None:
    assert sgd.works(CPU)


def test_the_kernel_is_not_used_where_it_rounds_otherwise_or_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not sgd.works(CPU)  # the interpreter as it is
    monkeypatch.setattr(sgd, "sgd", None)
    sgd.works.cache_clear()
    assert not sgd.works(CPU)


@pytest.mark.usefixtures("_rounded_once")
def test_a_backbone_with_kernels_steps_to_the_same_bits() -> None:
    """In float32, where batch norm is PyTorch's."""
    ours = torch_backbone(fused=True)
    assert isinstance(ours._optimiser, sgd.FusedSgd)
    assert same_bits(steps(ours, 0, 3), steps(torch_backbone(), 0, 3))


@pytest.mark.usefixtures("_rounded_once")
def test_a_backbone_whose_parameters_are_all_frozen_stays_as_it_is() -> None:
    """``--freeze '*'`` does so, while class centres learn."""
    frozen = torch_backbone(fused=True, factors=lambda names: LearningRateFactors(names, freeze=["*"]))
    assert isinstance(frozen._optimiser, sgd.FusedSgd)
    before = frozen.state()
    after = steps(frozen, 0, 2)
    for name, array in before.parameters.items():
        np.testing.assert_array_equal(after.parameters[name], array, err_msg=name)
