# SPDX-License-Identifier: Apache-2.0
"""The head as Triton kernels, in Triton's interpreter: odd sizes against float64, chunks and Numba; bits; fallbacks.

tests/conftest.py asks for the interpreter before Triton is imported. Tiles of 16 x 16, so that there are several.
"""
from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
# The interpreter of 3.5, PyTorch 2.9's, takes no NumPy 2.4: the extra "triton" asks for 3.7.
pytest.importorskip("triton", "3.7", reason="Triton 3.7 or newer is not installed")

from bench.gpu.heads import Kind, reference  # noqa: E402
from bench.gpu.report import Setting  # noqa: E402
from recognition.engines.cpu.shard import CpuShard  # noqa: E402
from recognition.engines.torch.shard import TorchShard  # noqa: E402
from recognition.engines.torch.triton import choice  # noqa: E402
from recognition.engines.torch.triton import shard as triton_shard  # noqa: E402
from recognition.engines.torch.triton.card import trial  # noqa: E402
from recognition.engines.torch.triton.tiles import TABLE, Tiles, tiles_for  # noqa: E402
from recognition.head.margin import Margin  # noqa: E402
from recognition.head.sampling import ClassSampler  # noqa: E402
from recognition.head.shard import ShardState, split_classes  # noqa: E402
from recognition.head.sharded import HeadResult, ShardedHead  # noqa: E402
from recognition.optim.adamw import AdamW  # noqa: E402
from recognition.processes.communicator import SingleProcess  # noqa: E402
from tests.recognition.head.test_torch_shard import load, state_of  # noqa: E402

ARCFACE = Margin(64, 1, 0.5)
CLASSES, DIM, BATCH = 75, 20, 19
CPU = torch.device("cpu")
CHUNKS = functools.partial(TorchShard, CPU)
EXACT, LOW = (functools.partial(triton_shard.TritonShard, CPU, products=kind) for kind in (
    torch.float32, torch.float16))
KINDS = {
    "arcface": Kind(ARCFACE), "cosface": Kind(Margin(64, 1, 0, 0.35)), "combined": Kind(Margin(64, 1, 0.3, 0.2)),
    "straight through": Kind(Margin(64, 1, 0.5, straight_through=True)),
    "three sub-centres": Kind(ARCFACE, {"sub_centres": 3}), "sampled": Kind(ARCFACE, ratio=0.5),
    "sampled, two sub-centres, AdamW": Kind(ARCFACE, {"sub_centres": 2}, 0.5, AdamW()),
}
FILTER = Kind(ARCFACE, {"ceiling": 12.8})


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Two threads wait for each other longer than so little work takes."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("Triton's interpreter is off")
    monkeypatch.setattr(triton_shard, "tiles_for", lambda *size: Tiles(16, 16, 16, 1, 4))
    monkeypatch.setattr(triton_shard, "TRITON_ROWS_A_CHUNK", 33)


def make(kind: Any, shards: int = 1, ratio: float = 1.0, adamw: AdamW | None = None, margin: Margin = ARCFACE,
         **options: Any) -> ShardedHead:
    made = [kind(*place, DIM, normalised=True, scale=64.0, **options) for place in split_classes(CLASSES, shards)]
    return ShardedHead(made, margin, SingleProcess(), sampler=ClassSampler(ratio, 3), adamw=adamw)


def step(head: ShardedHead, number: int, lr: float = 0.05) -> HeadResult:
    random = np.random.default_rng(number)
    x, labels = random.standard_normal((BATCH, DIM), dtype=np.float32), random.integers(0, CLASSES, BATCH)
    result = head.forward_backward(x, labels)
    head.step(lr)
    return result


def error(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def errors_against_float64(build: Any, kind: Kind) -> tuple[float, float, float]:
    """Errors of the loss, and of the gradients by x and by W (the first moment after a step), by their norms."""
    head = make(build, ratio=kind.ratio, adamw=kind.adamw, margin=kind.margin, **kind.options)
    k, random = kind.options.get("sub_centres", 1), np.random.default_rng(7)
    w = torch.from_numpy(random.standard_normal((CLASSES * k, DIM), dtype=np.float32)).bfloat16().float().numpy()
    zeros = np.zeros(len(w), np.float32)
    head.shards[0].load(ShardState(w, np.zeros_like(w), zeros, zeros))
    x, labels = random.standard_normal((BATCH, DIM), dtype=np.float32), random.integers(0, CLASSES, BATCH)
    drawn = head.sampler(labels, 0, 0, CLASSES)
    classes = np.arange(CLASSES) if drawn is None else drawn
    rows = (classes[:, None] * k + np.arange(k)).ravel()
    head.wd = 0.0
    result = head.forward_backward(x, labels)
    norm = head.step(1.0, measure=True)
    loss, d_x, d_w = reference(Setting(CPU, None), kind, ShardState(w[rows], w[:0], zeros[rows], zeros[:0]),
                               x, np.searchsorted(classes, labels))
    moment = head.shards[0].state().momentum[rows]
    found = moment / (1 - np.float32(kind.adamw.beta1)) if kind.adamw else -moment
    assert norm == pytest.approx(np.linalg.norm(found), rel=1e-3)
    return abs(result.loss / loss - 1), error(result.d_features, d_x), error(found, d_w)


# Margins are the host's, the same as with chunks: one of them each time, all in the slow tests.
MARGINS = ("cosface", "combined", "straight through")
EACH = [pytest.param(kind, id=name, marks=pytest.mark.slow if name in MARGINS else ()) for name, kind in KINDS.items()]


@pytest.mark.parametrize("kind", [*EACH, pytest.param(FILTER, id="a filter")])
def test_float32_products_are_as_precise_as_chunks(kind: Kind) -> None:
    """Logits reach 64 and lose 4e-6 to float32: 5e-6 of the norms, found 1e-6."""
    assert max(errors_against_float64(EXACT, kind)) < 5e-6


@pytest.mark.parametrize("kind", EACH)
def test_products_of_16_bits(kind: Kind) -> None:
    """Numbers of unit vectors lose 2^-12 of themselves, a cosine 2^-12 / sqrt(D), and a logit 64 times that, 0.0035 at
    20 numbers: 5e-3 of the norms of gradients, found up to 3e-3 (less with more numbers). A loss is a mean of logits.

    Not with a filter: a cosine within the error of its threshold may come to lie on the other side.
    """
    loss, d_x, d_w = errors_against_float64(LOW, kind)
    assert loss < 5e-4 and d_x < 5e-3 and d_w < 5e-3


def test_w_in_16_bits() -> None:
    """W is exact, also as an operand. Its moment, in which the gradient is, loses 2^-7 of each number at most. In the
    kernels features lose 2^-8 of theirs at most, which logits of 64 make 2e-2 (found 1e-2); in chunks nothing."""
    kind = KINDS["arcface"]
    assert np.all(np.array(errors_against_float64(functools.partial(CHUNKS, in_16_bits=True), kind))
                  < (1e-5, 5e-6, 4e-3))
    assert max(errors_against_float64(functools.partial(LOW, in_16_bits=True), kind)) < 2e-2


@pytest.mark.parametrize(("shards", "options"), [
    (1, {}), (2, {"ratio": 0.5}), (2, {"sub_centres": 3, "adamw": AdamW(eps=0.1)}), (1, {"ceiling": 30.0})],
    ids=["full", "sampled, two shards", "sub-centres, AdamW, two shards", "a filter"])
def test_two_steps_as_in_numba(shards: int, options: dict[str, Any]) -> None:
    """Float32 products; other orders of sums, 1e-6 a step that s = 64 amplifies: 1e-4."""
    ours, theirs = make(EXACT, shards, **options), make(CpuShard, 1 if options.get("ratio") is None else shards,
                                                        **options)
    for number in range(2):
        a, b = step(ours, number), step(theirs, number)
        assert a.loss == pytest.approx(b.loss, rel=1e-5) and error(a.d_features, b.d_features) < 1e-4
    for a, b in zip(state_of(ours), state_of(theirs)):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * max(np.abs(b).max(initial=0), 1e-3))


@pytest.mark.parametrize(("kind", "options"), [
    (LOW, {}), (LOW, {"in_16_bits": True}), (LOW, {"ratio": 0.5, "adamw": AdamW(), "in_16_bits": True}),
    (CHUNKS, {"in_16_bits": True}), (CHUNKS, {"ratio": 0.5, "adamw": AdamW(), "in_16_bits": True, "on_host": True})],
    ids=["kernels", "16 bits", "16 bits, sampled, AdamW", "chunks, 16 bits", "the same, sampled, AdamW, on the host"])
def test_a_state_goes_on_to_the_same_bits(kind: Any, options: dict[str, Any]) -> None:
    whole, ended = (make(kind, **options) for _ in range(2))
    step(whole, 0)
    load(ended, state_of(whole), 1)
    assert step(ended, 1).d_features.tobytes() == step(whole, 1).d_features.tobytes()
    assert [a.tobytes() for a in state_of(ended)] == [a.tobytes() for a in state_of(whole)]


def test_a_state_of_float32_goes_on_in_16_bits() -> None:
    """Numbers to the nearest, 2^-8 of themselves away at most; back again they stay."""
    first, second = make(CpuShard), make(LOW, 2, in_16_bits=True)
    step(first, 0)
    load(second, state_of(first), 1)
    for ours, theirs in zip(state_of(second), state_of(first)):
        np.testing.assert_allclose(ours, theirs, rtol=2**-8, atol=0)
    load(first, state_of(second), 1)
    np.testing.assert_array_equal(state_of(first).centres, state_of(second).centres)


class Alike(SingleProcess):
    """One of two processes with the same images: their sum is twice a gradient, and the head halves each."""

    size = 2

    def sum_in_place(self, name: str, arrays: list[Any]) -> None:
        for array in arrays:
            array *= 2

    def all_gather(self, array: np.ndarray) -> np.ndarray:
        return np.concatenate([array, array])

    def all_reduce(self, array: np.ndarray) -> np.ndarray:
        return 2 * array


def test_gradients_of_several_processes_are_summed() -> None:
    """Two processes of the same images are one: 3e-3, as the logits of the first pass are made of 16 bits."""
    alone, one_of_two = make(LOW), make(LOW)
    one_of_two.replicas = Alike()
    for number in range(2):
        losses = [step(head, number).loss for head in (alone, one_of_two)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert error(state_of(one_of_two).momentum, state_of(alone).momentum) < 5e-3


def test_a_target_with_a_steep_slope_does_not_overflow_float16() -> None:
    """psi' is 480 at an angle of 1e-3: its weight goes beyond what float16 takes at the usual gain."""
    head = make(LOW)
    w = np.random.default_rng(0).standard_normal((CLASSES, DIM), dtype=np.float32)
    load(head, ShardState(w, np.zeros_like(w), *np.zeros((2, CLASSES), np.float32)), 0)
    result = head.forward_backward(w[:3].copy(), np.arange(3))
    head.step(0.01)
    assert head.finite and np.isfinite(result.d_features).all() and np.isfinite(state_of(head).momentum).all()
    exact = make(EXACT)
    load(exact, ShardState(w, np.zeros_like(w), *np.zeros((2, CLASSES), np.float32)), 0)
    exact.forward_backward(w[:3].copy(), np.arange(3))
    exact.step(0.01)
    assert error(state_of(head).centres, state_of(exact).centres) < 1e-2


@pytest.mark.parametrize("grown", [1e20, np.inf, np.nan])
def test_centres_beyond_float32_are_told(grown: float) -> None:
    head = make(LOW)
    state = state_of(head)
    state.centres[7] = grown
    load(head, state, 0)
    step(head, 0, 0.0)
    assert not head.finite
    assert np.isnan(step(head, 1).loss)


@pytest.mark.parametrize("number_bytes", [2, 4])
def test_tiles_fit_into_shared_memory(number_bytes: int) -> None:
    """The memory of cards of 8.0 (163 KB a block), 8.6 and 8.9 (99 KB) and 9.0 (227 KB)."""
    for memory in (166912, 101376, 232448):
        tiles = tiles_for(number_bytes, memory)
        assert (tiles.batch + tiles.columns) * tiles.depth * tiles.stages * number_bytes <= memory
        assert tiles in TABLE and min(tiles[:3]) >= 16


def test_the_head_says_why_it_has_no_kernels() -> None:
    from recognition.config.options import Config
    from recognition.engines.torch.engine import TorchEngine

    def about(**options: Any) -> str:
        made = TorchEngine().shard(("cpu", 0), (0, 8), 4, False, **{"normalised": True, "scale": 64.0, **options})
        return made.startup_line

    assert about() == ""
    assert about(low_products=True) == (
        "head: float32 rather than Triton's kernels of 16 bits: the kernels are for GPUs")
    assert about(low_products=True, normalised=False).endswith("are not those of unit vectors")
    assert choice.why_not(torch.device("cuda"), 2049, False, True) == (
        "features have 2049 numbers, and the kernels take 2048")
    assert choice.why_not(torch.device("cuda"), 512, True, True) == "its class centres are in the host's memory"
    assert [Config(fp16=fp16, head_products=products).low_products for fp16, products in (
        (False, "auto"), (True, "auto"), (True, "float32"), (False, "float16"))] == [False, True, False, True]


def test_the_trial_before_the_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels are compared with chunks; if they fail or err, the line says so."""
    monkeypatch.setattr(choice, "TRIAL_CLASSES", 40)
    compute = functools.partial(choice.small_steps, CPU, DIM)
    assert trial(compute, choice.ALLOWED) == ""
    monkeypatch.setattr(triton_shard, "LOG2_E", 1.0)
    assert trial(compute, choice.ALLOWED).startswith("Triton's kernels err by")
    monkeypatch.setattr(triton_shard, "tiles_for", lambda *size: None)
    assert trial(compute, choice.ALLOWED).startswith("Triton's kernels fail here (")


@pytest.mark.slow  # a minute
@pytest.mark.parametrize("card", [80, 90])
def test_the_kernels_compile_for_a_card(card: int) -> None:
    """Without one: Triton's compiler makes machine code for any. In a process of its own, where no interpreter is."""
    environ = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-m", "bench.gpu.compiled", str(card)], env=environ, capture_output=True,
                          text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(re.findall(r"^(\w+)[,:].* registers", done.stdout, re.MULTILINE)) == {
        "exponentials", "slopes", "advance", "collect", "renew", "update", "measure", "merge_moments", "normalise",
        "sum_gradients", "merge_sums", "differentiate", "sgd", "draw"}
