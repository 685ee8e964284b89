# SPDX-License-Identifier: Apache-2.0
"""Recorded passes against the operators one by one, with a stand-in for CUDA: the same bits, whatever comes between.

``python -m bench.gpu --only graphs`` compares them on a GPU.
"""
from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest

from recognition.networks import sym
from recognition.networks.graph import Graph
from recognition.networks.initialise import initialise
from recognition.optim.adamw import AdamW
from recognition.optim.loss_scale import LossScale
from tests.recognition.engines.torch import fake_graphs
from tests.recognition.engines.torch.test_backbone import (
    BATCH,
    CPU,
    DIM,
    SHAPE,
    batch,
    network,
    same_bits,
    steps,
    torch_backbone,
)

torch = pytest.importorskip("torch")
from recognition.engines.torch import deterministic as settings  # noqa: E402
from recognition.engines.torch.graphs import graphed  # noqa: E402
from recognition.engines.torch.replica import Replica  # noqa: E402


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> type[fake_graphs.Graph]:
    return fake_graphs.install(monkeypatch)


@pytest.mark.parametrize("options", [
    {}, {"adamw": AdamW()}, {"low": torch.bfloat16, "loss_scale": LossScale(8.0)}], ids=["sgd", "adamw", "16 bits"])
@pytest.mark.parametrize("devices", [1, 2])
def test_recorded_steps_have_the_bits_of_the_operators(graphs: Any, devices: int, options: dict[str, Any]) -> None:
    """With dropout, batch norm and a factor fixed at 1; the first step is one of operators."""
    found, wanted = (torch_backbone(network(0.4), devices, **options) for _ in range(2))
    for one in wanted.replicas:
        one.records = False
    assert same_bits(steps(found, 0, 4), steps(wanted, 0, 4))
    assert graphs.replays == 3 * 2 * devices


def test_a_run_that_goes_on_has_the_bits_of_one_that_did_not_stop(graphs: Any) -> None:
    """Its first step is of operators, and was a replay in the other run."""
    whole, first, second = (torch_backbone(network(0.4)) for _ in range(3))
    second.load(steps(first, 0, 3), 3)
    assert same_bits(steps(second, 3, 6), steps(whole, 0, 6))


def replica(graph: Graph | None = None, recompute: bool = False, records: bool = True) -> Replica:
    graph = graph or network(0.4)
    made = Replica(graph, *initialise(graph, SHAPE, 1), CPU, None, SHAPE, recompute)
    made.records = records
    return made


def one_pass(made: Replica, step: int, count: int = BATCH) -> dict[str, np.ndarray]:
    images, d_features = batch(step)
    features = made.forward(images[:count], step)
    made.backward(d_features[:count])
    left = {"features": features, **{f"d {name}": tensor for name, tensor in made.gradients.items()}, **made.auxiliary}
    return {name: tensor.numpy().copy() for name, tensor in left.items()}


def alike(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> bool:
    return found.keys() == wanted.keys() and all(found[name].tobytes() == wanted[name].tobytes() for name in wanted)


def test_batches_of_another_shape_are_computed_by_operators(graphs: Any) -> None:
    sizes = (BATCH, BATCH, 2, 2, BATCH, 3)
    recorded, plain = replica(), replica(records=False)
    found = [one_pass(recorded, step, size) for step, size in enumerate(sizes)]
    assert graphs.replays == 2 * 2
    assert all(alike(one_pass(plain, step, size), found[step]) for step, size in enumerate(sizes))


def test_a_forward_pass_alone_does_not_count_as_warm(graphs: Any) -> None:
    made = replica()
    for _ in range(3):
        made.forward(batch(0)[0], 0)
    assert graphs.replays == 0


def test_features_stay_and_gradients_are_lost_in_the_next_pass(graphs: Any) -> None:
    made = replica()
    one_pass(made, 0)
    features = made.forward(batch(1)[0], 1)
    before = features.clone()
    made.backward(batch(1)[1])
    assert made.gradients
    made.forward(batch(2)[0], 2)
    assert torch.equal(features, before) and not made.gradients


def test_statistics_return_to_those_before_a_recorded_pass(graphs: Any) -> None:
    made = replica()
    one_pass(made, 0)
    for step in (1, 2):
        before = {name: tensor.clone() for name, tensor in made.auxiliary.items()}
        made.keep_statistics()
        one_pass(made, step)
        assert any(not torch.equal(before[name], tensor) for name, tensor in made.auxiliary.items())
        made.restore_statistics()
        assert all(torch.equal(before[name], tensor) for name, tensor in made.auxiliary.items())
    assert graphs.replays == 4


def test_what_cannot_be_recorded_goes_on_by_operators_and_says_so_once(
        graphs: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A network that looks at a number on the host, for which a GPU would be waited for."""
    looked, plain = replica(), replica(records=False)
    inner = looked.network
    monkeypatch.setattr(looked, "network", lambda pixels, **options: inner(pixels, **options) * (
        1.0 if pixels.sum().item() > -1 else 2.0))
    with caplog.at_level("WARNING", "recognition"):
        found = [one_pass(looked, step) for step in range(4)]
    assert graphs.replays == 0
    assert [record.getMessage() for record in caplog.records] == [
        "backbone: computed operator by operator rather than by CUDA graphs: CUDA error: operation not permitted when "
        "stream is capturing (RuntimeError)"]
    assert all(alike(one_pass(plain, step), found[step]) for step in range(4))


@pytest.mark.parametrize("error", [RuntimeError("the operator's"), None])
def test_a_recording_that_cuda_breaks_off_gives_its_memory_back(
        graphs: Any, monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> None:
    """The first error says why."""
    def broken_off(graph: Any) -> None:
        ended(graph)
        raise RuntimeError("CUDA's")

    ended, told = graphs.capture_end, []
    monkeypatch.setattr(graphs, "capture_end", broken_off)
    for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
        monkeypatch.setattr(torch._C, name, lambda *args, name=name: told.append((name, *args)))
    with pytest.raises(RuntimeError, match="the operator's" if error else "CUDA's"), graphed._recorded(
            graphs(), torch.cuda.Stream(), "pool"):
        if error:
            raise error
    assert told == [("_cuda_endAllocateToPool", None, "pool"), ("_cuda_releasePool", None, "pool")]
    assert graphs.recording is None


def residual(dropout: bool) -> Graph:
    """Blocks between which memonger keeps maps; with or without dropout inside of them."""
    data = (sym.Variable("data") - 127.5) * 0.0078125
    for block in range(4):
        inner = sym.Convolution(data, num_filter=3, kernel=(3, 3), pad=(1, 1), no_bias=True, name=f"conv{block}")
        inner = sym.BatchNorm(inner, fix_gamma=False, name=f"bn{block}")
        data = data + (sym.Dropout(inner, p=0.3) if dropout else inner)
    data = sym.Dropout(data, p=0.4)  # behind the last map that is kept
    return sym.BatchNorm(sym.FullyConnected(data, num_hidden=DIM, no_bias=True, name="pre_fc1"), fix_gamma=True,
                         name="fc1").graph()


@pytest.mark.parametrize("dropout", [False, True])
def test_layers_computed_again_are_recorded_unless_they_draw(
        graphs: Any, caplog: pytest.LogCaptureFixture, dropout: bool) -> None:
    recorded, plain = (replica(residual(dropout), recompute=again, records=again) for again in (True, False))
    with caplog.at_level("WARNING", "recognition"):
        for step in range(3):
            assert alike(one_pass(recorded, step), one_pass(plain, step))
    assert graphs.replays == (0 if dropout else 4)
    assert ("random numbers are drawn between layers" in caplog.text) == dropout


def test_gradients_are_announced_in_the_order_of_the_operators(graphs: Any) -> None:
    """Processes sum them in that order, whether each has graphs or not."""
    made, orders = replica(), []
    for step in range(3):
        given: list[Any] = []
        made.ready = given.append
        one_pass(made, step)
        names = {id(tensor): name for name, tensor in made.gradients.items()}
        orders.append([names[id(tensor)] for tensor in given])
    assert graphs.replays == 4
    assert orders[0] == orders[1] == orders[2] and len(orders[0]) >= len(made.arguments) - 1


def test_a_replica_leaves_its_memory_at_once(graphs: Any) -> None:
    made = replica()
    for step in range(3):
        one_pass(made, step)
    held = [weakref.ref(made), weakref.ref(made.recorded)]
    gc.disable()
    try:
        del made
        assert [reference() for reference in held] == [None, None]
    finally:
        gc.enable()


def test_gradients_have_memory_of_their_own_and_the_layout_of_their_arguments() -> None:
    shared, turned, features = torch.ones(2, 3), torch.arange(6.0).reshape(3, 2).t(), torch.ones(2, 3)
    arguments = [torch.zeros(2, 3, requires_grad=True) for _ in range(7)]
    first, second = torch.ones(2, 2, 3)  # two parts of one tensor, apart
    found = graphed._apart([shared, shared, turned, None, features, first, second], arguments, (features,))
    assert found[0] is shared and found[3] is None and found[5] is first and found[6] is second
    assert len({tensor.data_ptr() for tensor in (*found, features) if tensor is not None}) == 7
    assert all(tensor is None or tensor.is_contiguous() for tensor in found)
    assert torch.equal(found[1], shared) and torch.equal(found[2], turned) and torch.equal(found[4], features)


def test_cudnn_searches_only_where_bits_may_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    cudnn = torch.backends.cudnn
    monkeypatch.setattr(cudnn, "benchmark", False)
    with settings.fastest_convolutions():
        assert cudnn.benchmark
    assert not cudnn.benchmark
    with settings.deterministic({}), settings.fastest_convolutions():
        assert not cudnn.benchmark


def test_embedding_takes_the_memory_of_the_recorded_pass_where_it_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """The maps of a recorded pass keep their memory; the next step records it again."""
    from recognition.engines.torch import placed

    given_back: list[str] = []

    class Full:
        def features(self, images: np.ndarray) -> torch.Tensor:
            if not given_back:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return torch.from_numpy(images).float()

        def give_back(self) -> None:
            given_back.append("recorded")

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given_back.append("cache"))
    images = np.arange(6, dtype=np.uint8).reshape(3, 2)
    found: Any = placed.embed([Full()], 2, images)  # type: ignore[list-item]
    assert np.array_equal(np.concatenate(found), images) and given_back == ["recorded", "cache"]
