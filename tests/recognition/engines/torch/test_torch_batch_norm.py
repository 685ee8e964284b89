# SPDX-License-Identifier: Apache-2.0
"""Batch norm, PReLU and sum as Triton kernels, in Triton's interpreter: odd sizes against float64; the same bits.

tests/conftest.py asks for the interpreter before Triton is imported. Tiles are small, so that there are several.
"""
from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("Triton's interpreter is off", allow_module_level=True)

from recognition.engines.torch.triton.batch_norm import choice, function  # noqa: E402
from recognition.engines.torch.triton.batch_norm.function import (  # noqa: E402
    Cut,
    batch_norm,
    blocks_of,
    matrix_like,
)
from recognition.engines.torch.triton.card import trial  # noqa: E402

SMALL, EPS = Cut(numbers=256), 1e-3
SIZES = [(3, 20, 5, 7), (2, 70, 3, 3), (2, 1, 9, 9)]
# Float32 loses 6e-8 of a number, and sums some times that. What is stored in 16 bits loses 2^-11 and 2^-8 at most.
TOLERANCES = {torch.float32: 2e-6, torch.float16: 5e-4, torch.bfloat16: 5e-3}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Two threads wait for each other longer than so little work takes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Found(NamedTuple):
    y: Any
    mean: Any
    var: Any
    gradients: list[Any]


def inputs(size: tuple[int, ...], dtype: Any, seed: int = 0) -> tuple[list[Any], list[Any]]:
    """x, gamma, beta, slope and what is added; and gradients of y and of the second x."""
    generator = torch.Generator().manual_seed(seed)
    x, added, d_y, d_x = (torch.randn(size, generator=generator).to(dtype) for _ in range(4))
    x = (x * 2 + 3).contiguous(memory_format=torch.channels_last)
    vectors = [torch.randn(size[1], generator=generator) for _ in range(3)]
    return [x, *vectors, added.contiguous(memory_format=torch.channels_last)], [d_y, d_x]


def with_gradients(function: Any, arrays: list[Any], gradients: list[Any]) -> Found:
    leaves = [array.detach().clone().requires_grad_() for array in arrays]
    y, mean, var, again = function(*leaves)
    torch.autograd.backward([y, again], gradients)
    return Found(y.detach(), mean.detach(), var.detach(), [leaf.grad for leaf in leaves])


def by_kernels(arrays: list[Any], gradients: list[Any], active: bool = True, added: bool = True) -> Found:
    return with_gradients(lambda x, gamma, beta, slope, more: batch_norm(
        x, gamma, beta, EPS, slope if active else None, more if added else None, SMALL), arrays, gradients)


def in_float64(arrays: list[Any], gradients: list[Any], active: bool = True, added: bool = True) -> Found:
    def function(x: Any, gamma: Any, beta: Any, slope: Any, more: Any) -> Any:
        y = torch.nn.functional.batch_norm(x, None, None, gamma, beta, training=True, eps=EPS)
        y = torch.nn.functional.prelu(y, slope) if active else y
        axes = (0, 2, 3)
        return y + more if added else y, x.mean(axes), x.var(axes), x.view_as(x)

    return with_gradients(function, [array.double() for array in arrays], [array.double() for array in gradients])


def error(found: Any, wanted: Any) -> float:
    return float((found.double() - wanted).norm() / wanted.norm().clamp(min=1e-6))


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_numbers_and_gradients_against_float64(size: tuple[int, ...], dtype: Any) -> None:
    """Vectors stay float32, and so do their errors."""
    arrays, gradients = inputs(size, dtype)
    found, wanted = by_kernels(arrays, gradients), in_float64(arrays, gradients)
    assert found.y.dtype == found.gradients[0].dtype == found.gradients[4].dtype == dtype and matrix_like(found.y)
    assert error(found.y, wanted.y) < TOLERANCES[dtype]
    assert error(found.mean, wanted.mean) < 2e-6 and error(found.var, wanted.var) < 2e-6
    for place, (ours, theirs) in enumerate(zip(found.gradients, wanted.gradients)):
        assert error(ours, theirs) < (TOLERANCES[dtype] if place in (0, 4) else 2e-6), place


@pytest.mark.parametrize(("active", "added"), [(True, False), (False, True), (False, False)])
def test_without_prelu_or_sum(active: bool, added: bool) -> None:
    arrays, gradients = inputs((3, 20, 5, 7), torch.float32)
    found, wanted = (kind(arrays, gradients, active, added) for kind in (by_kernels, in_float64))
    absent = {place for place, there in ((3, active), (4, added)) if not there}
    assert error(found.y, wanted.y) < 2e-6
    for place, (ours, theirs) in enumerate(zip(found.gradients, wanted.gradients)):
        assert (ours is None) == (theirs is None) == (place in absent)
        assert ours is None or error(ours, theirs) < 2e-6


def test_one_number_a_channel_is_the_offset() -> None:
    arrays, gradients = inputs((1, 5, 1, 1), torch.float32)
    found = by_kernels(arrays, gradients, active=False, added=False)
    assert torch.equal(found.y.flatten(), arrays[2]) and not found.var.any()
    assert torch.equal(found.gradients[0], gradients[1]) and not found.gradients[1].any()


def test_one_slope_for_all_channels() -> None:
    arrays, gradients = inputs((3, 20, 5, 7), torch.float32)
    arrays[3] = arrays[3][:1]
    found, wanted = by_kernels(arrays, gradients), in_float64(arrays, gradients)
    assert found.gradients[3].shape == (1,) and error(found.gradients[3], wanted.gradients[3]) < 2e-6


def test_a_large_mean_leaves_the_variance_its_digits() -> None:
    """Around 1e4 float32 numbers are 1e-3 apart, 5e-4 of their deviation, and so are means: 2e-4 of the variance, found
    5e-5. Squares less the squared mean, 1e8 with digits of 8, would lose all of it."""
    arrays, gradients = inputs((4, 20, 7, 7), torch.float32)
    arrays[0] = (arrays[0] + 1e4).contiguous(memory_format=torch.channels_last)
    found, wanted = by_kernels(arrays, gradients), in_float64(arrays, gradients)
    assert error(found.var, wanted.var) < 2e-4 and error(found.mean, wanted.mean) < 1e-6


def test_gradients_in_another_layout_and_none_of_the_second_output() -> None:
    arrays, gradients = inputs((3, 20, 5, 7), torch.float32)
    first = by_kernels(arrays, gradients)
    turned = [gradient.contiguous(memory_format=torch.channels_last) for gradient in gradients]
    assert all(map(torch.equal, first.gradients, by_kernels(arrays, turned).gradients))
    leaves = [array.clone().requires_grad_() for array in arrays]
    batch_norm(*leaves[:3], EPS, *leaves[3:], cut=SMALL).y.backward(gradients[0])
    assert error(leaves[0].grad, (first.gradients[0] - gradients[1]).double()) < 2e-6


def test_the_same_bits_twice() -> None:
    arrays, gradients = inputs((3, 20, 5, 7), torch.float16)
    first, second = (by_kernels(arrays, gradients) for _ in range(2))
    assert all(map(torch.equal, [*first[:3], *first.gradients], [*second[:3], *second.gradients]))


@pytest.mark.parametrize("processors", [1, 108, 132])
@pytest.mark.parametrize("rows", [1, 100, 6272, 1605632])
@pytest.mark.parametrize("channels", [3, 64, 130, 512, 2048])
def test_cuts_cover_a_matrix(rows: int, channels: int, processors: int) -> None:
    """No part without a tile, none with more than one tile more than it must, and no more than a program merges."""
    blocks = blocks_of(rows, channels, processors, Cut())
    tiles = -(-rows // blocks.rows)
    assert blocks.rows * blocks.channels == 4096 and 1 <= blocks.parts <= min(tiles, 1024)
    most = -(-tiles // blocks.parts)
    assert (blocks.parts - 1) * most < tiles


def test_a_trial_tells_whether_the_kernels_work_here(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    compute = partial(choice.small_pass, cpu)
    assert choice.why_not(cpu) == "the kernels are for GPUs"
    monkeypatch.setattr(choice, "SIZE", (2, 20, 3, 3))
    assert trial(compute, choice.ALLOWED) == ""
    assert trial(compute, 1e-9).startswith("Triton's kernels err by")
    one = np.ones(1)
    assert trial(lambda: [(one, one), (one * np.nan, one)], choice.ALLOWED).startswith("Triton's kernels err by nan")
    monkeypatch.setattr(function.kernels, "measure", None)
    assert trial(compute, choice.ALLOWED).startswith("Triton's kernels fail here (")
